"""Counts what a tree of the project consists of: modules, functions, classes, comments, words. For comparing commits.

    python -m bench.figures            the working tree
    python -m bench.figures v1 main    two commits side by side
    python -m bench.figures --names    also what the largest are, and each private part of a dependency

It reads ``cocoa_tornado/`` and ``cli/``, and for words also README.rst, CONTRIBUTING.rst, ``docs/`` and ``examples/``.
:data:`ROWS` defines the rows. Nothing is imported or run, so a commit of any age works.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CODE: Final = ("cocoa_tornado", "cli")
PAGES: Final = ("README.rst", "CONTRIBUTING.rst", "docs/*.rst", "examples/**/*.rst")

WORDS: Final[dict[str, str]] = {
    "told": r"told",
    "tell": r"tells?|telling",
    "era": r"eras?",
    "seal": r"seal(s|ed|ing)?",
    "for ever": r"for ?ever",
    "whoever": r"who(ever|mever)",
    "circle": r"circles?",
    "leave out": r"(leaves?|leaving|left)[ _](it |them )?out",
    "deaf": r"deaf",
    "excused": r"excused?",
    "mailroom": r"mailrooms?",
    "arrivals": r"arrivals?",
}
"""The words that are to go, as whole words, and how they are spelled."""

DOCUMENTED: Final = frozenset({"_replace", "_fields", "_asdict", "_make", "_exit"})
"""They begin with an underscore and are public: of named tuples and of os."""

NO_COMMENT: Final = re.compile(r"#\s*(noqa|type:|ruff:|mypy:|pragma:|!)")
LOG_CALLS: Final = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})

ROWS: Final = """\
modules                 Python files
lines                   of them
code lines              lines with a token of Python that is neither comment nor docstring
docstring lines
comments                lines with a comment, markers of tools not counted
code lines a comment
functions               methods and nested functions too
median function         lines from ``def`` to the end
longest function
most methods            of a class: its own ``def``, without those it inherits
most attributes         of a class: fields of its body, slots, and what its methods assign to ``self``
private parts           of dependencies: ``x._name`` and imports of ``_name``, if no module here defines that name; once
                        a module. A heuristic: it sees neither ``getattr`` nor a private method that is overridden,
                        and takes ``_CAPITALS`` for public constants
words in prose          the words of WORDS in docstrings, comments and the texts of log calls
words in names          names that consist of or contain such a word, each once
words in pages          the words in the documentation
"""


@dataclass(slots=True)
class Figures:
    """The counts of one tree. Sizes come with the names that they belong to."""

    modules: int = 0
    lines: int = 0
    code_lines: int = 0
    docstring_lines: int = 0
    comments: int = 0
    functions: list[tuple[int, str]] = field(default_factory=list)
    methods: list[tuple[int, str]] = field(default_factory=list)
    attributes: list[tuple[int, str]] = field(default_factory=list)
    private_parts: list[str] = field(default_factory=list)
    prose: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WORDS, 0))
    names: dict[str, set[str]] = field(default_factory=lambda: {word: set() for word in WORDS})
    pages: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WORDS, 0))


class _Module:
    """One module, parsed."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text, self.tree = name, text, ast.parse(text)
        self.docstrings = [node for node in ast.walk(self.tree) if isinstance(node, ast.Expr) and _is_text(node.value)]

    def lines(self) -> tuple[int, int, list[str]]:
        """How many have code, how many a docstring; and the comments."""
        docstring = {line for node in self.docstrings for line in _span(node)}
        code: set[int] = set()
        comments = []
        skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                if not NO_COMMENT.match(token.string):
                    comments.append(token.string)
            elif token.type not in skipped:
                code.update(range(token.start[0], token.end[0] + 1))
        return len(code - docstring), len(docstring), comments

    def log_texts(self) -> Iterator[str]:
        """The strings in calls such as ``log.info(...)``, names of fields too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOG_CALLS:
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id.strip("_") in ("log", "logger"):
                    strings = (part for part in ast.walk(node) if isinstance(part, ast.Constant))
                    yield from (part.value for part in strings if isinstance(part.value, str))

    def defined(self) -> Iterator[str]:
        """Every name that it gives to something."""
        yield from self.name.split(".")
        for node in ast.walk(self.tree):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    yield name
                case ast.arg(arg=name):
                    yield name
                case ast.Name(id=name, ctx=ast.Store()):
                    yield name
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                    yield name
                case ast.ClassDef():
                    yield from _slots(node)

    def foreign_private(self, ours: frozenset[str]) -> Iterator[str]:
        """Private names that it uses and no module here defines."""
        for node in ast.walk(self.tree):
            names: Iterable[str] = ()
            if isinstance(node, ast.Attribute):
                names = (node.attr,)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = (*(node.module or "").split("."), *(alias.name for alias in node.names))
            elif isinstance(node, ast.Import):
                names = (part for alias in node.names for part in alias.name.split("."))
            yield from (name for name in names if _is_private(name) and name not in ours)


def measure(root: Path) -> Figures:
    """Count the tree in a folder."""
    found = Figures()
    paths = sorted(path for folder in CODE for path in (root / folder).rglob("*.py"))
    modules = [_module(root, path) for path in paths]
    ours = frozenset(name for module in modules for name in module.defined())
    for module in modules:
        _count(found, module)
        found.private_parts += [f"{module.name}: {name}" for name in sorted(set(module.foreign_private(ours)))]
    for name in ours:
        for word in _words_in(_split(name)):
            found.names[word].add(name)
    for pattern in PAGES:
        for page in root.glob(pattern):
            _add(found.pages, page.read_text(encoding="utf-8"))
    return found


def _module(root: Path, path: Path) -> _Module:
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    return _Module(name, path.read_text(encoding="utf-8"))


def _count(found: Figures, module: _Module) -> None:
    code, docstring, comments = module.lines()
    found.modules += 1
    found.lines += len(module.text.splitlines())
    found.code_lines += code
    found.docstring_lines += docstring
    found.comments += len(comments)
    texts = [str(node.value.value) for node in module.docstrings if isinstance(node.value, ast.Constant)]
    for text in (*texts, *comments, *module.log_texts()):
        _add(found.prose, text)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.functions.append((len(_span(node)), f"{module.name}.{node.name}"))
        elif isinstance(node, ast.ClassDef):
            name = f"{module.name}.{node.name}"
            own = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            found.methods.append((len(own), name))
            found.attributes.append((len(set(_attributes(node))), name))


def _attributes(of: ast.ClassDef) -> Iterator[str]:
    yield from _slots(of)
    for part in of.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            yield part.target.id
    for node in ast.walk(of):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def _slots(of: ast.ClassDef) -> Iterator[str]:
    for part in of.body:
        match part:
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                constants = (node for node in ast.walk(value) if isinstance(node, ast.Constant))
                yield from (str(node.value) for node in constants)


def _is_text(node: ast.AST) -> bool:
    """A string. By itself it is what Python calls a docstring, or stands below an attribute."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_") and not name.isupper() and name not in DOCUMENTED


def _span(node: ast.AST) -> range:
    first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
    return range(first, last + 1)


_PATTERNS: Final = {word: re.compile(rf"\b({spelled})\b", re.IGNORECASE) for word, spelled in WORDS.items()}


def _words_in(text: str) -> Iterator[str]:
    yield from (word for word, pattern in _PATTERNS.items() if pattern.search(text))


def _add(counts: dict[str, int], text: str) -> None:
    for word, pattern in _PATTERNS.items():
        counts[word] += sum(1 for _ in pattern.finditer(text))


def _split(name: str) -> str:
    """``_is_deaf`` and ``IsDeaf`` as words, which stand apart."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name)


def table(trees: dict[str, Figures]) -> str:
    """The rows, with a column for each tree."""
    figures = list(trees.values())
    rows: list[tuple[str, list[str]]] = [
        ("modules", [str(each.modules) for each in figures]),
        ("lines", [str(each.lines) for each in figures]),
        ("code lines", [str(each.code_lines) for each in figures]),
        ("docstring lines", [str(each.docstring_lines) for each in figures]),
        ("comments", [str(each.comments) for each in figures]),
        ("code lines a comment", [f"{each.code_lines / max(1, each.comments):.1f}" for each in figures]),
        ("functions", [str(len(each.functions)) for each in figures]),
        ("median function", [f"{_median(each.functions):g}" for each in figures]),
        ("longest function", [str(_largest(each.functions)[0]) for each in figures]),
        ("most methods", [str(_largest(each.methods)[0]) for each in figures]),
        ("most attributes", [str(_largest(each.attributes)[0]) for each in figures]),
        ("private parts", [str(len(each.private_parts)) for each in figures]),
        ("words in prose", [str(sum(each.prose.values())) for each in figures]),
        ("words in names", [str(sum(map(len, each.names.values()))) for each in figures]),
        ("words in pages", [str(sum(each.pages.values())) for each in figures]),
    ]
    for word in WORDS:
        cells = [f"{each.prose[word]} {len(each.names[word])} {each.pages[word]}" for each in figures]
        rows.append((f"  {word} (prose, names, pages)", cells))
    head = ("", list(trees))
    return "\n".join(f"{label:<34}" + "".join(f"{cell:>14}" for cell in cells) for label, cells in (head, *rows))


def details(figures: Figures) -> str:
    """The names of the largest, for people."""
    lines = []
    for title, sizes in (("functions", figures.functions), ("methods", figures.methods)):
        lines.append(f"most {title}: " + ", ".join(f"{name} {size}" for size, name in _top(sizes)))
    lines.append("most attributes: " + ", ".join(f"{name} {size}" for size, name in _top(figures.attributes)))
    lines += [f"private part: {part}" for part in figures.private_parts]
    lines += [f"name: {name} ({word})" for word, names in figures.names.items() for name in sorted(names)]
    return "\n".join(lines)


def _top(sizes: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    return sorted(sizes, reverse=True)[:5]


def _largest(sizes: Sequence[tuple[int, str]]) -> tuple[int, str]:
    return max(sizes, default=(0, ""))


def _median(sizes: Sequence[tuple[int, str]]) -> float:
    return statistics.median(size for size, _ in sizes) if sizes else 0.0


def of_commit(revision: str) -> Figures:
    """Count a commit of the repository that the current folder is in."""
    archive = subprocess.run(["git", "archive", revision], check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        return measure(Path(folder))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=ROWS, prog="python -m bench.figures")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("commits", nargs="*", help="none: the working tree")
    parser.add_argument("--names", action="store_true", help="name the largest, and the private parts")
    given = parser.parse_args(arguments)
    trees = {commit: of_commit(commit) for commit in given.commits} or {"here": measure(Path())}
    print(table(trees))
    if given.names:
        for name, figures in trees.items():
            print(f"\n{name}\n{details(figures)}")


if __name__ == "__main__":
    main(sys.argv[1:])
