"""The rule about log lines, tried on a small suite of its own in a process of its own."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .expected_logs import Expected, Watch, shown

ROOT = Path(__file__).parent.parent

CONFTEST = """
from tests.expected_logs import ExpectedLogs

def pytest_configure(config):
    config.pluginmanager.register(ExpectedLogs())
"""

PRODUCT = """
import logging

def say(name="shop.door", level=logging.WARNING, **extra):
    logging.getLogger(name).log(level, "it sticks", extra=extra)
"""

SAMPLES = """
import asyncio, logging, threading
import pytest
from product import say

logs = pytest.mark.logs
kept = logging.NullHandler()
logging.getLogger().addHandler(kept)

def test_stray(): say(device_id="doll")

def test_stray_traceback():
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("shop").exception("failed")
        say(exc="see above")

def test_below_warning(): say(level=logging.INFO)

def test_below_level_of_logger():
    logging.getLogger("shop").setLevel(logging.ERROR)
    say()

def test_level_is_back(): say()

@logs("shop.door", "^it sticks$")
def test_announced():
    say()
    say()

@logs("shop", "sticks")
def test_announced_for_the_parent(): say()

@logs("shop.do", "sticks")
def test_another_logger(): say()

@logs("shop.door", "squeaks")
def test_another_message(): say()

@logs("shop.door", "sticks")
@logs("shop.window", "sticks")
def test_two_announced_one_came(): say()

@logs("shop.door", "sticks", optional=True)
def test_optional(): pass

@logs("shop.door", "sticks")
def test_fails_anyway(): assert not "the true reason"

@logs("shop.door", "sticks", optinal=True)
def test_misspelt_mark(): pass

def test_own_file(): logging.getLogger("shop").error("said by the test")

def test_no_propagation():
    logging.getLogger("shop.door").propagate = False
    say()

def test_no_handlers():
    logging.getLogger().handlers[:] = []
    say()

def test_handlers_and_propagation_are_back(caplog):
    assert kept in logging.getLogger().handlers
    assert logging.getLogger("shop.door").propagate
    with caplog.at_level(logging.INFO):
        logging.getLogger("shop.door").info("heard")
    assert caplog.messages == ["heard"]

@logs("shop", "sticks")
def test_with_caplog(caplog):
    say()
    assert caplog.messages == ["it sticks"]

def test_copy():
    record = logging.makeLogRecord({"levelno": logging.ERROR, "msg": "a formatter's copy"})
    assert record.levelno == logging.ERROR

def test_thread():
    thread = threading.Thread(target=say)
    thread.start()
    thread.join()

later = threading.Event()
laggard = threading.Thread(target=lambda: (later.wait(10), say()))

def test_leaves_a_thread(): laggard.start()

def test_thread_of_another_test():
    later.set()
    laggard.join()

@pytest.fixture
def noisy_setup(): say()

def test_setup(noisy_setup): pass

@pytest.fixture
def noisy_teardown():
    yield
    say()

def test_teardown(noisy_teardown): pass

@logs("shop.door", "sticks")
def test_announced_teardown(noisy_teardown): pass

@pytest.fixture
def announcing(request):
    request.node.add_marker(logs("shop.door", "sticks"))

def test_announced_by_its_fixture(announcing): say()

async def fail(): raise RuntimeError("nobody asks")

@pytest.mark.gen_test
async def test_lost_task():
    cycle = [asyncio.ensure_future(fail())]
    cycle.append(cycle)
    await asyncio.sleep(0.01)

@pytest.mark.gen_test
async def test_lost_callback():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)

def test_innocent(): pass
"""

WHOLE_FILE = """
import pytest
from product import say

pytestmark = pytest.mark.logs("shop.door", "sticks")

def test_announced_by_the_file(): say()

def test_announced_by_the_file_in_vain(): pass
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What pytest says of each sample: nothing of those that pass."""
    folder = tmp_path_factory.mktemp("samples")
    for name, text in {
        "conftest.py": CONFTEST,
        "product.py": PRODUCT,
        "test_samples.py": SAMPLES,
        "test_whole_file.py": WHOLE_FILE,
        "pytest.ini": "[pytest]",
    }.items():
        (folder / name).write_text(text)
    code = f"import sys, pytest; sys.path.insert(0, {str(ROOT)!r}); sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ["--strict-markers", "-p", "no:cacheprovider", "-p", "no:randomly", "--junitxml=report.xml"]
    run = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, timeout=60)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout.decode() + run.stderr.decode()
    return {
        case.attrib["name"]: "".join(f"{part.attrib['message']}\n{part.text}" for part in case.iter() if part.text)
        if (case.find("failure"), case.find("error")) != (None, None)
        else ""
        for case in ElementTree.parse(folder / "report.xml").iter("testcase")
    }


STRAY = "unexpected log lines"


def test_a_stray_line_fails_the_test_and_is_quoted_with_its_data(verdicts: dict[str, str]) -> None:
    assert STRAY in verdicts["test_stray"]
    assert "WARNING shop.door: it sticks device_id='doll'" in verdicts["test_stray"]


def test_the_test_beside_it_is_not_blamed(verdicts: dict[str, str]) -> None:
    assert verdicts["test_innocent"] == ""


def test_what_is_below_warning_or_hidden_by_its_loggers_level_is_no_matter(verdicts: dict[str, str]) -> None:
    assert verdicts["test_below_warning"] == verdicts["test_below_level_of_logger"] == ""


def test_an_announced_line_may_come_any_number_of_times(verdicts: dict[str, str]) -> None:
    assert verdicts["test_announced"] == verdicts["test_announced_for_the_parent"] == ""


@pytest.mark.parametrize("sample", ["test_another_logger", "test_another_message"])
def test_an_announcement_covers_no_other_line(sample: str, verdicts: dict[str, str]) -> None:
    assert STRAY in verdicts[sample]


def test_an_announced_line_that_never_comes_fails_the_test(verdicts: dict[str, str]) -> None:
    verdict = verdicts["test_two_announced_one_came"]
    assert "did not come:\nshop.window: sticks" in verdict
    assert "shop.door: sticks" not in verdict


def test_an_optional_line_need_not_come(verdicts: dict[str, str]) -> None:
    assert verdicts["test_optional"] == ""


def test_a_test_that_fails_anyway_is_not_blamed_for_its_log_as_well(verdicts: dict[str, str]) -> None:
    verdict = verdicts["test_fails_anyway"]
    assert "the true reason" in verdict
    assert "did not come" not in verdict


def test_a_misspelt_mark_is_an_error(verdicts: dict[str, str]) -> None:
    assert "optinal" in verdicts["test_misspelt_mark"]


def test_what_the_tests_file_says_itself_is_no_surprise(verdicts: dict[str, str]) -> None:
    assert verdicts["test_own_file"] == ""
    assert "KeyError" not in verdicts["test_stray_traceback"]
    assert "exc='see above'" in verdicts["test_stray_traceback"]


@pytest.mark.parametrize("sample", ["test_no_propagation", "test_no_handlers", "test_level_is_back"])
def test_a_test_that_configures_logging_is_watched_all_the_same(sample: str, verdicts: dict[str, str]) -> None:
    assert STRAY in verdicts[sample]


def test_levels_handlers_and_propagation_are_put_back(verdicts: dict[str, str]) -> None:
    assert verdicts["test_handlers_and_propagation_are_back"] == ""


def test_caplog_works_beside_it(verdicts: dict[str, str]) -> None:
    assert verdicts["test_with_caplog"] == ""


def test_a_record_that_no_logger_made_is_no_line(verdicts: dict[str, str]) -> None:
    assert verdicts["test_copy"] == ""


def test_a_thread_of_the_test_is_watched_and_one_of_an_earlier_test_is_not(verdicts: dict[str, str]) -> None:
    assert STRAY in verdicts["test_thread"]
    assert verdicts["test_leaves_a_thread"] == verdicts["test_thread_of_another_test"] == ""


@pytest.mark.parametrize("phase", ["setup", "teardown"])
def test_a_stray_line_of_a_fixture_is_an_error_of_its_phase(phase: str, verdicts: dict[str, str]) -> None:
    assert f"failed on {phase}" in verdicts[f"test_{phase}"]
    assert STRAY in verdicts[f"test_{phase}"]


def test_an_announced_line_may_come_in_the_teardown(verdicts: dict[str, str]) -> None:
    assert verdicts["test_announced_teardown"] == ""


def test_a_fixture_or_a_file_can_announce(verdicts: dict[str, str]) -> None:
    assert verdicts["test_announced_by_its_fixture"] == verdicts["test_announced_by_the_file"] == ""
    assert "did not come" in verdicts["test_announced_by_the_file_in_vain"]


def test_an_exception_that_nobody_asks_for_fails_the_test_that_lost_it(verdicts: dict[str, str]) -> None:
    assert "ERROR asyncio: Task exception was never retrieved" in verdicts["test_lost_task"]
    assert "RuntimeError: nobody asks" in verdicts["test_lost_task"]
    assert "ERROR asyncio: Exception in callback" in verdicts["test_lost_callback"]


def test_a_quoted_line_has_the_traceback() -> None:
    try:
        raise ValueError("100 %")
    except ValueError:
        log = logging.getLogger("shop")
        record = log.makeRecord(
            "shop", logging.ERROR, __file__, 0, "no %s", ("more",), sys.exc_info(), extra={"share": "5 %"}
        )
    first, *_, last = shown(record).splitlines()
    assert (first, last) == ("ERROR shop: no more share='5 %'", "ValueError: 100 %")


def test_each_line_is_judged_once() -> None:
    watch = Watch(__file__, logging.LogRecord)
    watch.record("shop", logging.WARNING, "door.py", 0, "it sticks", None, None)
    assert [record.msg for record in watch.unexpected([])] == ["it sticks"]
    assert watch.unexpected([]) == []
    assert watch.missing([Expected("shop", "sticks")]) == []
