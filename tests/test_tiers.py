"""The lists of ``tiers.py`` name tests that exist: one that is renamed would run in another tier, unnoticed."""

from __future__ import annotations

import pytest

from .tiers import BUT_AT_LOWEST, NIGHTLY, NOT_AT_LOWEST, PURE, TESTS, TOGETHER, is_at_lowest, scope

LISTS = {
    "PURE": PURE,
    "TOGETHER": TOGETHER,
    "NIGHTLY": NIGHTLY,
    "NOT_AT_LOWEST": NOT_AT_LOWEST,
    "BUT_AT_LOWEST": BUT_AT_LOWEST,
}


@pytest.mark.parametrize("names", LISTS.values(), ids=LISTS)
def test_each_name_is_the_beginning_of_a_test(names: tuple[str, ...]) -> None:
    assert [name for name in names if not exists(name)] == []


def exists(name: str) -> bool:
    place, _, test = name.partition("::")
    files = [path for path in TESTS.rglob("test_*.py") if path.relative_to(TESTS).as_posix().startswith(place)]
    return any(not test or f"def {test.partition('[')[0]}" in path.read_text(encoding="utf-8") for path in files)


def test_what_is_at_the_lowest_versions_all_the_same_is_in_the_list_it_is_an_exception_to() -> None:
    assert [name for name in BUT_AT_LOWEST if not name.startswith(NOT_AT_LOWEST)] == []


@pytest.mark.parametrize(
    ("test", "runs"),
    [
        ("tests/rules/test_feed.py::test_one", False),
        ("tests/rules/test_records.py::test_one", True),
        ("tests/web/test_http.py::test_one", True),
        ("tests/cli/test_serve.py::test_a_pause", False),
        ("tests/cli/test_serve.py::test_check_says", True),
    ],
)
def test_the_lowest_versions_run_what_is_not_listed_and_the_exceptions(test: str, runs: bool) -> None:
    assert is_at_lowest(test) is runs


@pytest.mark.parametrize(
    ("test", "together"),
    [
        ("tests/rules/test_feed.py::test_one[a]", "rules/test_feed.py"),
        ("tests/web/test_http.py::test_one[a]", "tests/web/test_http.py::test_one[a]"),
        ("tests/bench/test_soak.py::test_one", "bench/"),
    ],
)
def test_a_process_takes_a_file_of_pure_tests_or_all_of_bench_or_one_other_test(test: str, together: str) -> None:
    assert scope(test) == together
