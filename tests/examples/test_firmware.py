"""The ESP-IDF and Arduino examples compile against what they use of their libraries, and wait as README.rst says.

Their toolchains are on no machine of ours, so nothing here shows that they run.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .programs import EXAMPLES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("g++") is None, reason="no C compiler is installed"),
]

STUBS = Path(__file__).parent / "stubs"
IDF, ARDUINO = EXAMPLES / "esp-idf" / "main", EXAMPLES / "arduino" / "device"
STRICT = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"]

ASKING = """
#include <stdio.h>
#include "reconnect.h"
int main(void)
{
    int why;
    unsigned attempt, minimum, random;
    while (scanf("%d %u %u %u", &why, &attempt, &minimum, &random) == 4) {
        printf("%u\\n", wait_ms(why, attempt, minimum, random));
    }
}
"""
# Why, attempt and minimum; then the shortest wait in milliseconds, and by how much it may be longer.
WAITS = [
    ((1001, 0, 0), 0, 1000),
    ((1006, 3, 0), 0, 8000),
    ((1012, 6, 0), 0, 60_000),
    ((4401, 1_000_000, 0), 0, 60_000),
    ((1001, 0, 7000), 7000, 1000),
    ((409, 0, 0), 5000, 1000),
    ((503, 2, 9000), 9000, 4000),
    *(((why, 9, 0), 60_000, 240_000) for why in (400, 403, 404, 426, 1002, 1007, 4409)),
]


def compiled(*command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", sorted(IDF.glob("*.c")), ids=lambda path: path.name)
def test_the_esp_idf_example_compiles(source: Path) -> None:
    compiled("gcc", "-std=gnu17", "-fsyntax-only", *STRICT, f"-I{STUBS / 'esp-idf'}", source)


def test_the_arduino_example_compiles() -> None:
    include = [f"-I{STUBS / 'arduino'}", "-include", "Arduino.h"]
    compiled("g++", "-std=gnu++20", "-fsyntax-only", *STRICT, *include, "-x", "c++", ARDUINO / "device.ino")


def test_both_wait_by_the_reason_with_full_jitter_and_never_give_up(tmp_path: Path) -> None:
    source, binary = tmp_path / "ask.c", tmp_path / "ask"
    source.write_text(ASKING)
    compiled("gcc", "-std=gnu17", *STRICT, f"-I{IDF}", source, "-o", binary)
    asked = "".join(
        f"{why} {attempt} {least} {random}\n" for (why, attempt, least), _, more in WAITS for random in (0, more)
    )
    done = subprocess.run([binary], input=asked, capture_output=True, text=True, check=True)
    assert [int(line) for line in done.stdout.split()] == [
        wait for _, shortest, more in WAITS for wait in (shortest, shortest + more)
    ]


def test_the_rule_is_the_same_in_both() -> None:
    assert (IDF / "reconnect.h").read_bytes() == (ARDUINO / "reconnect.h").read_bytes()
