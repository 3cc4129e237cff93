"""How the operators on a way back are treated, in words: for reports and checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxviz.model.graph import Constants, Node
from onnxviz.model.soundness import understood
from onnxviz.reverse.methods import Method
from onnxviz.reverse.rules import RULES

__all__ = ["Treatment", "problem", "treatments"]


@dataclass(frozen=True)
class Treatment:
    """Nodes of one operator that are treated alike.

    ``rule`` names the reverse rule and ``how`` says what it does, ``"exact"`` where it is the derivative, with
    ``approximation`` where it is none; where it cannot be reversed, ``problem`` says why and ``rule`` is None.
    ``pieces``: the operators that the file writes it in. ``first``: the name of the first such node.
    """

    op: str
    count: int
    rule: str | None
    how: str
    approximation: str
    problem: str | None
    pieces: tuple[str, ...]
    first: str

    def __str__(self) -> str:
        words = (
            [self.how.rstrip("."), self.approximation]
            if self.problem is None
            else [f"NOT AT ALL: {self.problem}"]
        )
        words += [f"written as {', '.join(self.pieces)}"] if self.pieces else []
        return "; ".join(filter(None, words))


def problem(node: Node, constants: Constants, method: Method) -> str | None:
    """Why a node cannot be reversed, or None."""
    rule = method.rule(node)
    with understood(node):
        return "no reverse rule" if rule is None else rule.refusal(node, constants)


def treatments(nodes: Sequence[Node], constants: Constants, method: Method) -> tuple[Treatment, ...]:
    """The operators of some nodes, alike ones together: first those that cannot be reversed, then by name."""
    groups: dict[tuple[str, str | None, str | None, tuple[str, ...]], list[Node]] = {}
    for node in nodes:
        rule = method.rule(node)
        key = (node.kind, rule.name if rule else None, problem(node, constants, method), node.pieces)
        groups.setdefault(key, []).append(node)
    found = []
    for (kind, name, reason, pieces), members in groups.items():
        rule = method.rule(members[0])
        exact = rule is not None and rule is RULES.get(members[0].op) and not rule.approximation
        found.append(
            Treatment(
                op=kind,
                count=len(members),
                rule=None if reason else name,
                how="exact" if exact else rule.summary if rule else "",
                approximation=rule.approximation if rule else "",
                problem=reason,
                pieces=pieces,
                first=members[0].name,
            )
        )
    return tuple(sorted(found, key=lambda one: (one.problem is None, one.op)))
