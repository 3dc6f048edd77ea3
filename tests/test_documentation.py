"""What README.rst and docs/ name exists: log lines, metrics, settings, and the files that links lead to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cocoa_tornado.rules.labels import LABELS
from cocoa_tornado.settings.sources import OTHER_VARIABLES
from cocoa_tornado.settings.table import TABLE

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst")), ROOT / "examples" / "README.rst"]
COMMANDS = ("make", "cocoa", "go", "pip", "serve", "mint-token", "probe-device", "ulimit", "npm", "idf.py")
OTHER_PROGRAMS = {"appendonly yes", "maxmemory-policy noeviction", "frontend devices"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")


def literals(page: Path) -> set[str]:
    """The inline literals of a page, each on one line."""
    return {re.sub(r"\s+", " ", text) for text in re.findall(r"``([^`]+)``", page.read_text(encoding="utf-8"))}


def strings_of_the_code() -> set[str]:
    paths = [path for folder in ("cocoa_tornado", "cli") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_phrase_in_code_type_is_one_that_the_gateway_says() -> None:
    said = "\n".join(strings_of_the_code())
    phrases = {text for page in PAGES for text in literals(page) if re.fullmatch(r"[a-z][a-z']*( [a-z'-]+)+", text)}
    phrases = {text for text in phrases - OTHER_PROGRAMS if text.split()[0] not in COMMANDS}
    assert len(phrases) > 30
    assert {text for text in phrases if text not in said} == set()


def test_every_metric_that_is_named_exists() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "benchmark.rst")
    named = {re.sub("_(total|bucket)$", "", name) for name in re.findall(r"\bcocoa_[a-z_]+\b", text)}
    assert len(named) > 60
    assert named - {"cocoa_tornado"} - strings_of_the_code() == set()


def test_every_setting_that_is_named_by_its_variable_exists() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    ours = {row.environment for row in TABLE.values()} | OTHER_VARIABLES
    assert set(re.findall(r"\bCOCOA_[A-Z_]+\b", text)) - ours == {"COCOA_GATEWAY_SERVICE_HOST"}


@pages
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"^\.\. _[^:]+: (?!http)(\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pages
def test_every_reference_has_a_target(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.\. _([^:]+):", text, re.MULTILINE))
    titles = set(re.findall(r"^(.+)\n(?:=+|-+|~+)$", text, re.MULTILINE))
    named = {re.sub(r"\s+", " ", name) for name in re.findall(r"(?<!`)`([^`<>]+)`_", text)}
    assert named - targets - titles == set()


def test_the_reasons_for_rejecting_a_record_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "records.rst").read_text(encoding="utf-8")
    rule = r"^=+ =+\n"
    table = re.search(rf"{rule}reason +the record\n{rule}((?:.*\n)*?){rule}", text, re.MULTILINE)
    assert table is not None
    assert sorted(re.findall("^``(.+?)``", table[1], re.MULTILINE)) == sorted(LABELS["cocoa_records_quarantined"])
