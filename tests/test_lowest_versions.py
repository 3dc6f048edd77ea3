"""CI repeats tests on the lowest versions only if one of them is lower."""

from __future__ import annotations

import sys

from testing.lowest_versions import differences, versions


def test_a_library_that_is_lower_or_only_there_is_named() -> None:
    lowest = {"tornado": "6.6.1", "click": "8.1.0", "mypy": "1.0", "idna": "3.0"}
    installed = {"tornado": "6.6.1", "click": "8.4.0", "mypy": "2.0", "av": "18.1.0"}
    assert differences(installed, lowest) == ["click 8.1.0, not 8.4.0", "idna 3.0, not installed"]


def test_the_same_versions_are_no_difference_whatever_the_tools_are() -> None:
    assert differences({"tornado": "6.6.1", "ruff": "2"}, {"tornado": "6.6.1", "ruff": "1"}) == []


def test_names_are_normalized() -> None:
    assert "prometheus-client" in versions(*sys.path)
