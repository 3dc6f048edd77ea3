"""Options that are not settings: any text is accepted, or causes one plain line and status 2.

Status 1 is for an unusable key, which is detected on use.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from ..any_text import any_text, argument, assert_done_or_plain_line, slips_in

SECRET = "a secret of thirty-two bytes, or more"
main: click.Command = importlib.import_module("cli.commands").cocoa
probe_device = importlib.import_module("cli.probe_device")

MINT = ("--device-id", "--user-id", "--device-version", "--expires-in", "--group", "--claim", "--algorithm", "--config")
MINT_KEYS = ("--secret", "--private-key")
PROBE = ("--timeout", "--idle", "--listen", "--broker", "--results-topic", "--device-id", "--token", "--format", "--ca")
texts = any_text | slips_in(
    [
        *(
            "doll-1",
            "7",
            "-1h",
            "1h30m",
            "n=5",
            'list=[1,{"a":null}]',
            "text=hello",
            "x=1e5",
            "HS256",
            "5",
            "0.5",
            "600",
        ),
        *(
            "kafka://a,b:9093",
            "transcription.results",
            "a.b.c",
            "json",
            "ws://h:80/ws",
            "wss://[::1]/?token=a.b.c",
            "h:1",
        ),
        *("@/etc/hostname", "-----BEGIN PRIVATE KEY-----", "https://b\u00fccher.example/ws"),
    ]
)


def run(*arguments: str, folder: Path) -> Result:
    environment = {"COCOA_DATA_DIR": str(folder), "COCOA_JWT_SECRET": None, "COCOA_PROBE_TOKEN": None}
    return CliRunner().invoke(main, arguments, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the development key."""
    return tmp_path_factory.mktemp("data")


@given(option=st.sampled_from(MINT), text=texts)
@example(option="--expires-in", text="0\x1f")
@example(option="--expires-in", text="9" * 308)
@example(option="--expires-in", text="9" * 5000)
@example(option="--user-id", text="9" * 5000)
@example(option="--claim", text="x=" + "9" * 5000)
@example(option="--claim", text="x=" + "[" * 900 + "]" * 900)  # could be read, and then not be written
@example(option="--claim", text="x=" + "[" * 100_000)
@example(option="--claim", text='x="\\ud800"')
@example(option="--claim", text="\x1b[2J")
@example(option="--group", text="\udcff")
@example(option="--config", text="\x1b[2J")
@example(option="--algorithm", text="\x1b" * 5000)
def test_any_text_for_a_token_makes_one_or_is_one_plain_line(folder: Path, option: str, text: str) -> None:
    text = argument(text)
    for arguments in ([f"{option}={text}"], [f"{option}={text}", "--json"]):
        result = run("mint-token", "--device-id=d", f"--secret={SECRET}", *arguments, folder=folder)
        assert_done_or_plain_line(result, 2)
        if result.exit_code == 0:
            assert result.stdout.count("\n") == 1


@given(option=st.sampled_from(MINT_KEYS), text=texts)
@example(option="--private-key", text="/a\x1bb")
@example(option="--private-key", text="a" * 5000)
@example(option="--private-key", text="~nobody-of-this-name/x")
@example(option="--secret", text="@/a\nb")
@example(option="--secret", text="\udcff")
def test_any_key_signs_or_is_one_plain_line(folder: Path, option: str, text: str) -> None:
    assert_done_or_plain_line(run("mint-token", "--device-id=d", f"{option}={argument(text)}", folder=folder), 1, 2)


@pytest.fixture(scope="module")
def no_network() -> Iterator[None]:
    """Replace the run of the probe, as the URL may be any text too."""

    async def passed(*_: object) -> bool:
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_device, "_check", passed)
        patch.setattr(probe_device, "_listen", passed)
        yield


@pytest.mark.usefixtures("no_network")
@given(option=st.sampled_from(PROBE), text=texts)
@example(option="--timeout", text="nan")
@example(option="--idle", text="nan")
@example(option="--listen", text="-nan")
@example(option="--timeout", text="1\x1f")
@example(option="--timeout", text="9" * 5000)
@example(option="--device-id", text="\udcff")
@example(option="--device-id", text="a\nb")
@example(option="--results-topic", text="a b")
@example(option="--broker", text="kafka://a:99999")
@example(option="--broker", text="kafka://a:\u0663")
@example(option="--token", text="e30.eyJkZXZpY2VfaWQiOiJcdWRjZmYifQ.x")  # its device_id is a lone surrogate
def test_any_option_of_a_probe_is_taken_or_one_plain_line(folder: Path, option: str, text: str) -> None:
    secret = () if option == "--token" else (f"--secret={SECRET}",)
    result = run("probe-device", "ws://gateway", *secret, f"{option}={argument(text)}", folder=folder)
    assert_done_or_plain_line(result, 2)


@pytest.mark.usefixtures("no_network")
@given(text=texts)
@example(text="ws://h/\udcff")
@example(text="ws://a..b")
@example(text="ws://" + "a" * 70)
@example(text="ws://" + "\u00e4" * 5000)
@example(text="ws://h:" + "9" * 5000)
@example(text="ws://h/\x1b")
@example(text="http://[")
def test_any_url_of_a_probe_is_taken_or_one_plain_line(folder: Path, text: str) -> None:
    assert_done_or_plain_line(run("probe-device", f"--secret={SECRET}", "--", argument(text), folder=folder), 2)


@pytest.mark.usefixtures("no_network")
@given(text=texts)
@example(text="@/a\x1bb")
@example(text="@" + "a" * 5000)
@example(text="@a\0b")
@example(text="-----BEGIN PUBLIC KEY-----")
def test_any_secret_of_a_probe_is_taken_or_one_plain_line(folder: Path, text: str) -> None:
    assert_done_or_plain_line(run("probe-device", "ws://gateway", f"--secret={argument(text)}", folder=folder), 1, 2)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--timeout", "nan"), "'nan' is not a number of seconds"),
        (("--timeout", "5s"), "'5s' is not a number of seconds"),
        (("--idle", "nan"), "'nan' is not a number of seconds"),
        (("--listen", "-nan"), "'-nan' is not a number of seconds"),
        (("--device-id", "\udcff"), "--device-id"),
        (("--device-id", "a\nb"), "--device-id"),
        (("--results-topic", "a b"), "--results-topic: 'a b' is not allowed"),
        (("--broker", "kafka://a:99999"), "is not kafka://HOST:PORT"),
        (("--broker", "kafka://user:hunter2@a"), "is not kafka://HOST:PORT"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_what_no_gateway_can_be_probed_with_is_refused(folder: Path, arguments: tuple[str, ...], problem: str) -> None:
    result = run("probe-device", "ws://gateway", f"--secret={SECRET}", *arguments, folder=folder)
    assert result.exit_code == 2
    assert_done_or_plain_line(result, 2)
    assert problem in result.stderr
    assert "hunter2" not in result.stderr


@pytest.mark.usefixtures("no_network")
def test_a_host_that_no_resolver_takes_is_refused_before_it_is_asked(folder: Path) -> None:
    for url in ("ws://a..b", "ws://" + "a" * 70, "ws://" + "a." * 200):
        result = run("probe-device", f"--secret={SECRET}", url, folder=folder)
        assert (result.exit_code, result.stderr.startswith("Error: not a URL: ")) == (2, True)


def test_a_claim_that_is_nested_too_deep_is_refused(folder: Path) -> None:
    for levels, status in ((100, 0), (101, 2), (100_000, 2)):
        claim = f"x={'[' * levels}{']' * levels}"
        assert (
            run("mint-token", "--device-id=d", f"--secret={SECRET}", "--claim", claim, folder=folder).exit_code
            == status
        )
