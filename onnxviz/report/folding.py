"""Repeated blocks of a network: runs of blocks that are alike, each to be drawn once.

A cut is a box whose tensor carries the whole network: nothing passes by it. Between one cut and the next lies a
segment, and a block is one or several segments in a row. Two blocks are alike if they have the same operators with
the same settings (kernel, stride), wired alike, and maps of the same size; their channels may differ.

1. `chain_concats`: where each Concat reads all that the one before it reads, and more (DenseNet), it is taken to read
   that Concat instead, which is the same tensor. Only so do its layers have cuts between them;
2. `find_runs`: the runs that spare most boxes, by dynamic programming over the segments;
3. `fold_stacks`: the stacks to draw, those of each run's first block for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from onnxviz.report.data import DiagramNode
from onnxviz.report.stacks import Stack, ranks, stack_nodes

__all__ = ["Run", "chain_concats", "find_runs", "fold_stacks"]

SPARED = 3
"""A run is worth its frame if it spares so many boxes."""
LONGEST = 24
"""Blocks have at most so many segments."""

_Sign: TypeAlias = tuple[object, ...]


@dataclass(frozen=True)
class Run:
    """Blocks in a row that are alike: the nodes at one place in all of them do the same."""

    blocks: tuple[tuple[DiagramNode, ...], ...]

    @property
    def places(self) -> dict[str, tuple[DiagramNode, ...]]:
        """For each node of the first block, by its id: itself and its likes, in order."""
        return {alike[0].id: alike for alike in zip(*self.blocks, strict=True)}


def chain_concats(nodes: Sequence[DiagramNode]) -> tuple[DiagramNode, ...]:
    """Let a Concat read an earlier one in place of all that that one reads, where it puts them together first."""
    result: list[DiagramNode] = []
    latest: dict[str, list[DiagramNode]] = {}  # Concats by their first input
    for node in nodes:
        if node.op != "Concat" or not node.inputs:
            result.append(node)
            continue
        earlier = latest.setdefault(node.inputs[0], [])
        channels = {one.id: _channels(one) for one in nodes} if earlier else {}
        for one in reversed(earlier):
            count = len(one.inputs)
            rest = node.inputs[count:]
            parts = [channels[name] for name in (one.id, *rest)] if node.inputs[:count] == one.inputs else []
            # The sum shows that both lie along the channels.
            if rest and parts and None not in parts and sum(filter(None, parts)) == _channels(node):
                result.append(dataclasses.replace(node, inputs=(one.id, *rest)))
                break
        else:
            result.append(node)
        earlier.append(node)
    return tuple(result)


def find_runs(nodes: Sequence[DiagramNode]) -> tuple[Run, ...]:
    """Find the runs of equal blocks that spare most boxes; no two overlap.

    Raises ValueError for an input that names no earlier node.
    """
    stacks = stack_nodes(nodes)
    segments = _segments(stacks)
    signs = [sign for _, sign in segments]
    sizes = [len(members) for members, _ in segments]
    count = len(segments)
    best = [0] * (count + 1)  # boxes that the segments from here on can spare
    choice: list[tuple[int, int] | None] = [None] * count  # segments in a block, blocks
    # From how many segments on, read backwards, each equals the one that lies ``period`` later.
    alike = [[0] * (count + 1) for _ in range(min(LONGEST, count // 2) + 1)]
    for i in reversed(range(count)):
        best[i] = best[i + 1]
        for period in range(1, len(alike)):
            if i + period >= count or signs[i] != signs[i + period]:
                continue
            alike[period][i] = alike[period][i + 1] + 1
            boxes = sum(sizes[i : i + period])
            for blocks in range(2, alike[period][i] // period + 2):
                spared = boxes * (blocks - 1)
                total = spared + best[i + period * blocks]
                # Of equals the earliest and shortest: a block starts where its like did.
                if spared >= SPARED and (total > best[i] or (total == best[i] and choice[i] is None)):
                    best[i], choice[i] = total, (period, blocks)
    runs: list[Run] = []
    i = 0
    while i < count:
        chosen = choice[i]
        if chosen is None:
            i += 1
            continue
        period, blocks = chosen
        starts = range(i, i + period * blocks, period)
        blocks_of = [[s for part, _ in segments[at : at + period] for s in part] for at in starts]
        runs.append(Run(tuple(tuple(node for s in block for node in stacks[s]) for block in blocks_of)))
        i += period * blocks
    return tuple(runs)


def fold_stacks(stacks: Sequence[Stack], runs: Sequence[Run]) -> list[Stack]:
    """Keep of each run the stacks of its first block; what read a later block reads the first instead."""
    stands = {
        node.id: first for run in runs for first, alike in run.places.items() for node in alike
    }  # for each node of a run, the one that is drawn for it
    return [
        tuple(
            dataclasses.replace(node, inputs=tuple(dict.fromkeys(stands.get(i, i) for i in node.inputs)))
            for node in stack
        )
        for stack in stacks
        if stands.get(stack[0].id, stack[0].id) == stack[0].id
    ]


def _segments(stacks: Sequence[Stack]) -> list[tuple[list[int], _Sign]]:
    """The stacks between cuts, the last of each being one; and what makes two such segments alike."""
    sources, rank = ranks(stacks)
    columns: list[list[int]] = [[] for _ in range(max(rank, default=-1) + 1)]
    for i, c in enumerate(rank):
        columns[c].append(i)
    passing = [0] * (len(columns) + 1)  # changes in the number of edges that pass a column by
    for target, names in enumerate(sources):
        for source in names:
            passing[rank[source] + 1] += 1
            passing[rank[target]] -= 1
    result: list[tuple[list[int], _Sign]] = []
    members: list[int] = []
    entry, around = -1, 0
    for c, column in enumerate(columns):
        around += passing[c]
        members += column
        if len(column) == 1 and around == 0:
            members.sort()
            place = {entry: -1} | {i: p for p, i in enumerate(members)}
            sign = tuple(
                (
                    tuple((node.op, node.setting, _size(node)) for node in stacks[i]),
                    tuple(sorted(place[j] for j in sources[i])),
                )
                for i in members
            )
            result.append((members, sign))
            entry, members = column[0], []
    # What follows the last cut has no end: it is like nothing.
    return [*result, (members, (len(result),))] if members else result


def _channels(node: DiagramNode) -> int | None:
    head = node.detail.partition("×")[0]
    return int(head) if head.isdecimal() else None


def _size(node: DiagramNode) -> str:
    return node.detail.partition("×")[2]
