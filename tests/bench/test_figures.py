"""The figures of a tree that is small enough to be counted by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.figures import ROWS, WORDS, Figures, main, measure, of_commit, table

MODULE = '''\
"""Told once.

Tell twice, tells.
"""

import tornado._private as inner  # it is told here
from tornado.iostream import IOStream


class Wide(IOStream):
    """Waits for ever."""

    __slots__ = ("_told", "a")
    limit: int

    def __init__(self, excuse: int) -> None:
        # A comment.
        self.a = self.b = excuse
        self._told = super()._read_buffer

    def is_deaf(self) -> bool:
        def inside() -> bool:
            return self._state.is_reading  # noqa: E501

        return inside()


log.info("device told", extra={"left_out": 1})
text = "told, but to nobody that reads logs"
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cocoa_tornado").mkdir()
    (tmp_path / "cocoa_tornado" / "module.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.rst").write_text("The era of eras. General, operas.\n", encoding="utf-8")
    return tmp_path


def test_lines_are_code_or_docstrings_or_comments(root: Path) -> None:
    found = measure(root)
    assert (found.modules, found.lines) == (1, len(MODULE.splitlines()))
    assert found.docstring_lines == 5
    assert found.comments == 2, "a marker of a tool is none"
    assert found.code_lines == 14


def test_functions_and_classes_are_measured_with_their_names(root: Path) -> None:
    found = measure(root)
    assert found.functions == [
        (4, "cocoa_tornado.module.__init__"),
        (5, "cocoa_tornado.module.is_deaf"),
        (2, "cocoa_tornado.module.inside"),
    ]
    assert found.methods == [(2, "cocoa_tornado.module.Wide")]
    assert found.attributes == [(4, "cocoa_tornado.module.Wide")], "_told, a, b and limit"


def test_private_names_that_nobody_here_defines_are_parts_of_dependencies(root: Path) -> None:
    parts = measure(root).private_parts
    assert parts == [f"cocoa_tornado.module: {name}" for name in ("_private", "_read_buffer", "_state")]


def test_words_are_counted_where_they_stand(root: Path) -> None:
    found = measure(root)
    used = {word: count for word, count in found.prose.items() if count}
    assert used == {"told": 3, "tell": 2, "for ever": 1, "leave out": 1}
    assert {word: names for word, names in found.names.items() if names} == {
        "told": {"_told"},
        "deaf": {"is_deaf"},
        "excused": {"excuse"},
    }
    assert {word: count for word, count in found.pages.items() if count} == {"era": 2}


def test_the_table_has_a_row_for_each_figure_and_word_and_a_column_for_each_tree(root: Path) -> None:
    lines = table({"old": measure(root), "new": Figures()}).splitlines()
    assert lines[0].split() == ["old", "new"]
    labels = [row.partition("  ")[0] for row in ROWS.splitlines() if not row.startswith(" ")]
    assert [line[:34].strip() for line in lines[1 : len(labels) + 1]] == labels
    assert len(lines) == 1 + len(labels) + len(WORDS)


def test_a_commit_is_counted_as_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "first")):
        subprocess.run(["git", *command], check=True)
    before = measure(root)
    (root / "cocoa_tornado" / "module.py").unlink()
    assert of_commit("HEAD") == before != measure(root)


def test_it_names_the_largest_if_asked(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    main(["--names"])
    shown = capsys.readouterr().out
    assert "longest function" in shown
    assert "private part: cocoa_tornado.module: _read_buffer" in shown
