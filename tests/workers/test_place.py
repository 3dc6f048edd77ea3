from __future__ import annotations

import pytest
from click.testing import CliRunner

from cli.commands import cocoa
from cocoa_tornado.workers.place import Place, take_place

PLACE = Place(7, 2, 3, "here/2", 8080)


def test_a_worker_takes_its_place_out_of_the_environment() -> None:
    environ = PLACE.variable()
    assert take_place(environ) == PLACE
    assert environ == {}
    assert take_place(environ) is None


@pytest.mark.parametrize("text", ["2", "two", '{"fd":7}', "{", "[]", "\udcff"])
def test_another_value_is_an_error_that_names_the_variable(text: str) -> None:
    """Such as one that was meant for COCOA_WORKERS."""
    with pytest.raises(ValueError, match=r"^environment COCOA_WORKER: only cocoa sets it.* COCOA_WORKERS is .*$"):
        take_place({"COCOA_WORKER": text})


def test_serve_says_so_in_one_line_with_status_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOA_WORKER", "2")
    result = CliRunner().invoke(cocoa, ["serve", "--check"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: environment COCOA_WORKER: ")
    assert result.stderr.count("\n") == 1
