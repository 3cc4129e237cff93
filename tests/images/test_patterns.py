"""Patterns of names: braces and globs."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from onnxviz.images.patterns import braces, is_pattern, leading, literal_folder, matcher

BRACES = {
    "a": ["a"],
    "a{0..2}": ["a0", "a1", "a2"],
    "a{08..11}.tar": ["a08.tar", "a09.tar", "a10.tar", "a11.tar"],
    "a{8..11}": ["a8", "a9", "a10", "a11"],
    "{2..0}": ["2", "1", "0"],
    "{0..00}": ["00"],
    "{cat,dog}/{1..2}": ["cat/1", "cat/2", "dog/1", "dog/2"],
    "x{,y}": ["x", "xy"],
    "{a}": ["{a}"],
    "{}": ["{}"],
    "{a..c}": ["{a..c}"],
    "a}b{c": ["a}b{c"],
}


@pytest.mark.parametrize("pattern", BRACES)
def test_braces(pattern: str) -> None:
    assert braces(pattern) == BRACES[pattern]


@pytest.mark.parametrize("pattern", ["{0..100000}", "{0..999}{0..999}", "{0.." + "9" * 5000 + "}"])
def test_too_many(pattern: str) -> None:
    with pytest.raises(ValueError, match="more than 100,000 names"):
        braces(pattern)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a/b.jpg", False), ("a/*.jpg", True), ("a?", True), ("[a]", True), ("{1..2}", True), ("{a}", False)],
)
def test_is_pattern(text: str, expected: bool) -> None:
    assert is_pattern(text) is expected


def test_a_question_mark_may_begin_a_query() -> None:
    assert not is_pattern("http://h/a?b=*", queries=True)
    assert is_pattern("http://h/*?b", queries=True)


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("a/b/*.jpg", "a/b"),
        ("a/b{1..2}/c", "a"),
        ("*.jpg", ""),
        ("/*", ""),
        ("/a/[b]/c", "/a"),
        ("a/b", "a/b"),
    ],
)
def test_literal_folder(pattern: str, folder: str) -> None:
    assert literal_folder(pattern) == folder


FILES = (
    "a.jpg",
    "b.jpg",
    "c.png",
    "x/a.jpg",
    "x/y/a.jpg",
    "x/y/z/b.jpg",
    "xx/a.jpg",
    "x/[1].jpg",
    "x/a+b.jpg",
)
GLOBS = ("*.jpg", "?.png", "x/*.jpg", "*/*.jpg", "**/*.jpg", "x/**/*.jpg", "[ab].jpg", "[!a].jpg", "x*/a.jpg",
         "x/[[]1].jpg", "x/a+b.jpg", "*/y/*.jpg", "x/y/**/b.jpg", "[a-b].*")  # fmt: skip


@pytest.mark.parametrize("pattern", GLOBS)
def test_globs_match_as_pythons_do(tmp_path: Path, pattern: str) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = {
        name.replace("\\", "/")
        for name in glob.glob(pattern, root_dir=tmp_path, recursive=True)  # noqa: PTH207 (the witness)
        if (tmp_path / name).is_file()
    }
    assert expected
    assert {name for name in FILES if matcher(pattern).fullmatch(name)} == expected
    leads = leading(pattern)
    for name in expected:
        assert all(leads(str(folder)) for folder in Path(name).parents if str(folder) != ".")


@pytest.mark.parametrize("pattern", ["x", "x/", "/x"])
def test_the_name_of_a_folder_stands_for_all_in_it(pattern: str) -> None:
    found = {name for name in FILES if matcher(pattern).fullmatch(name)}
    assert found == {name for name in FILES if name.startswith("x/")}


@pytest.mark.parametrize("pattern", ["", "/", "**"])
def test_everything(pattern: str) -> None:
    assert all(matcher(pattern).fullmatch(name) for name in FILES)


@pytest.mark.parametrize(
    ("pattern", "folder", "expected"),
    [("x*/a.jpg", "y", False), ("x*/a.jpg", "xx", True), ("a/*/c", "a/b", True), ("a/*/c", "b/b", False),
     ("a/**/c", "a/b/b", True), ("*.jpg", "photos", False)],
)  # fmt: skip
def test_leading(pattern: str, folder: str, expected: bool) -> None:
    assert leading(pattern)(folder) is expected
