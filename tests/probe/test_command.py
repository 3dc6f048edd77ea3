"""The command: its output and its exit status."""

from __future__ import annotations

import importlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from cli.probe_device import probe_device
from cocoa_tornado.probe.credentials import Key, minted
from cocoa_tornado.probe.run import CHECKS

from .broken_gateways import SECRET, Fault, running

TOKEN = minted(Key("the test", SECRET), "doll", time.time()).token
SECOND = minted(Key("the test", SECRET), "second", time.time()).token
NO_ENVIRONMENT: dict[str, str | None] = {"COCOA_JWT_SECRET": None, "COCOA_DATA_DIR": None, "COCOA_PROBE_TOKEN": None}


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(probe_device, arguments, env={**NO_ENVIRONMENT, **environment})


def test_a_healthy_gateway_is_one_line_per_check_and_status_0() -> None:
    with running() as gateway:
        result = invoke(f"http://127.0.0.1:{gateway.port}", "--secret", SECRET)

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert result.stderr == ""
    assert [line.split()[1] for line in lines[: len(CHECKS)]] == [check.name for check in CHECKS]
    assert lines[-1].startswith("30 passed, 0 failed, 4 skipped in ")
    assert "\x1b" not in result.stdout


def test_a_broken_gateway_is_status_1_and_says_what_is_broken() -> None:
    with running(Fault.OTHER_401_BODY) as gateway:
        result = invoke(f"ws://127.0.0.1:{gateway.port}/ws", "--secret", SECRET)

    assert result.exit_code == 1
    [line] = [line for line in result.stdout.splitlines() if line.startswith("\u2717")]
    assert line.split()[1] == "no-token"
    assert '{"message":"missing token"}' in line


def test_json_is_one_line_and_nothing_else() -> None:
    with running(Fault.NO_409) as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", "--secret", SECRET, "--format", "json")

    [line] = result.stdout.splitlines()
    assert result.exit_code == 1
    assert [check["name"] for check in json.loads(line)["checks"] if check["status"] == "failed"] == ["duplicate"]


def test_junit_is_an_xml_document_and_nothing_else() -> None:
    with running() as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", "--secret", SECRET, "--format", "junit")

    assert result.exit_code == 0
    suite = ElementTree.fromstring(result.stdout.encode()).find("testsuite")
    assert suite is not None
    assert suite.get("tests") == str(len(CHECKS))


def test_a_required_check_that_is_skipped_fails_the_run() -> None:
    with running() as gateway:
        url = f"127.0.0.1:{gateway.port}"
        result = invoke(url, "--secret", SECRET, "--require", "delivery", "--require", "idle")
        strict = invoke(url, "--secret", SECRET, "--strict")

    assert result.exit_code == 1
    [line] = [line for line in result.stdout.splitlines() if line.startswith("\u2717")]
    assert line.split()[1] == "idle"
    assert "required, but skipped: " in line
    assert strict.exit_code == 1
    assert strict.stdout.splitlines()[-1].startswith("30 passed, 4 failed, 0 skipped in ")


def test_a_required_check_that_the_run_does_not_have_is_wrong_usage() -> None:
    result = invoke("127.0.0.1:1", "--secret", SECRET, "--require", "audio-words")

    assert result.exit_code == 2
    assert (
        "--require 'audio-words': this run has no such check; its checks are addressing, alg-none, audio, "
        in result.stderr
    )


def test_brokers_are_reached_as_the_gateways_settings_say(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[kafka]\nsecurity_protocol = "SSL"\nssl_ca = "/none/ca.pem"\n', encoding="utf-8")
    result = invoke("127.0.0.1:1", "--secret", SECRET, "--broker", "kafka://k1:9093", "--config", str(config))

    assert result.exit_code == 1
    assert "cannot use the CA file /none/ca.pem" in result.stderr


def test_the_secret_may_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"\xef\xbb\xbf" + SECRET.encode() + b"\r\n")  # as Windows' editors write it
    with running() as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", COCOA_JWT_SECRET=f"@{file}")

    assert result.exit_code == 0


def test_a_file_that_holds_a_secret_is_read_as_the_gateway_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "blank").write_text(" \n")
    with running() as gateway:
        assert invoke(f"127.0.0.1:{gateway.port}", "--secret", "@~/secret").exit_code == 0
    result = invoke("ws://host", "--secret", "@~/blank")

    assert result.exit_code == 2
    assert "--secret: the file ~/blank that it names after @ is empty" in result.stderr


def test_without_a_key_the_development_key_is_tried(tmp_path: Path) -> None:
    with running() as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", COCOA_DATA_DIR=str(tmp_path))

    assert result.exit_code == 1
    assert any(line.split()[:2] == ["\u2717", "handshake"] for line in result.stdout.splitlines())
    assert "signed with this machine's development key" in result.stdout
    assert (tmp_path / "development.key").exists()


def test_given_tokens_are_used_and_announced() -> None:
    with running() as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", "--token", TOKEN, "--token", SECOND)

    assert result.exit_code == 0
    assert set(gateway.opened) == {"doll", "second"}
    assert result.stderr.startswith("note: while this runs, the probe gets the messages for 'doll', 'second'")
    assert "\n- expired" in result.stdout
    assert TOKEN not in result.output


@pytest.mark.parametrize("where", ["url", "environment"])
def test_a_token_need_not_stand_among_the_arguments_options(where: str) -> None:
    with running() as gateway:
        url = f"ws://127.0.0.1:{gateway.port}/ws"
        result = invoke(f"{url}?token={TOKEN}") if where == "url" else invoke(url, COCOA_PROBE_TOKEN=TOKEN)

    assert result.exit_code == 0
    assert set(gateway.opened) == {"doll"}
    assert TOKEN not in result.output


def test_a_given_token_and_the_right_key_allow_every_check() -> None:
    with running() as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", "--token", TOKEN, "--secret", SECRET)

    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("30 passed")


def test_a_device_id_is_given_a_token_and_a_companion() -> None:
    with running() as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", "--device-id", "doll", "--secret", SECRET)

    assert result.exit_code == 0
    assert gateway.opened[0] == "doll"
    assert len(set(gateway.opened)) == 2


def test_a_live_device_is_left_in_peace() -> None:
    with running() as gateway:
        gateway.hold("doll")
        result = invoke(f"127.0.0.1:{gateway.port}", "--token", TOKEN)

    assert result.exit_code == 1
    assert "a live device holds this id" in result.stdout
    assert "doll" not in gateway.opened


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["ftp://host"],
        ["ws://host?x=1"],
        ["ws://host", "--token", "no-jwt"],
        ["ws://host", "--token", TOKEN, "--device-id", "a"],
        ["ws://host", "--token", TOKEN, "--token", TOKEN],
        ["ws://host", "--device-id", "a", "--device-id", "a"],
        ["ws://host", "--device-id", "a", "--device-id", "b", "--device-id", "c"],
        ["ws://host", "--device-id", ""],
        ["ws://host", "--secret", ""],
        ["ws://host", "--secret", " "],
        ["ws://host", "--secret", "@/no/such/file"],
        ["ws://host", "--format", "yaml"],
        ["ws://host", "--timeout", "0"],
        ["ws://host", "--idle", "-1"],
        ["ws://host", "--audio", "/no/such/file"],
        ["ws://host", "--audio", __file__],
        ["ws://host", "--broker", "amqp://host"],
        ["ws://host", "--listen", "1", "--format", "json"],
        ["ws://host", "--ca", __file__, "--insecure"],
    ],
)
def test_wrong_usage_is_status_2_and_nothing_on_standard_output(arguments: list[str]) -> None:
    result = invoke(*arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr.splitlines()[-1]
    assert TOKEN not in result.output


@pytest.mark.parametrize("mode", [[], ["--listen", "1"]])
def test_a_refused_connection_is_one_line_and_status_1(mode: list[str]) -> None:
    result = invoke("ws://127.0.0.1:1/ws", "--secret", SECRET, *mode)

    assert result.exit_code == 1
    assert result.output == "Error: cannot connect to 127.0.0.1:1: Connection refused\n"


def test_tls_with_a_plain_port_is_one_line_and_status_1() -> None:
    with running() as gateway:
        result = invoke(f"wss://127.0.0.1:{gateway.port}", "--secret", SECRET, "--timeout", "2")

    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert result.output.startswith("Error: ")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(plain)
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize("trust", ["nothing", "ca", "insecure"])
def test_over_tls_only_what_is_trusted_is_probed(trust: str, certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    options = {"nothing": [], "ca": ["--ca", str(certificate[0])], "insecure": ["--insecure"]}[trust]
    with running(tls=context) as gateway:
        result = invoke(f"https://127.0.0.1:{gateway.port}", "--secret", SECRET, *options)

    if trust == "nothing":
        assert result.exit_code == 1
        assert result.output.count("\n") == 1
        assert "is not trusted: self-signed certificate" in result.output
    else:
        assert result.exit_code == 0
        assert result.stdout.splitlines()[-1].startswith("30 passed, 0 failed")


def test_a_plain_url_for_a_tls_port_is_one_line_and_status_1(certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with running(tls=context) as gateway:
        result = invoke(f"http://127.0.0.1:{gateway.port}", "--secret", SECRET)

    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "127.0.0.1" in result.output


def test_a_key_that_is_no_secret_is_one_line_and_status_1() -> None:
    result = invoke("ws://host", "--secret", "-----BEGIN PUBLIC KEY-----")

    assert result.exit_code == 1
    assert result.output.startswith("Error: --secret")


def test_help_names_every_option_and_has_examples() -> None:
    result = invoke("--help")

    assert result.exit_code == 0
    for option in ("--token", "--device-id", "--secret", "--audio", "--format", "--timeout", "--broker", "--idle"):
        assert option in result.stdout
    for option in ("--results-topic", "--take-over", "--listen", "--ca", "--insecure", "-h"):
        assert option in result.stdout
    assert "cocoa probe-device ws://127.0.0.1:8080/ws" in result.stdout


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    root = str(Path(__file__).parents[2])
    # What a shell starts in the background ignores Ctrl-C, and so would all that comes from it.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from cli.probe_device import probe_device; probe_device()"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": root} | environment
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=env, stdout=pipe, stderr=pipe, text=True)


def test_a_terminal_of_old_gets_letters_for_marks() -> None:
    with running(Fault.NOT_READY) as gateway:
        process = start(f"127.0.0.1:{gateway.port}", "--secret", SECRET, PYTHONIOENCODING="ascii")
        output, errors = process.communicate(timeout=30)

    assert process.returncode == 1
    assert output.startswith("ok   health ")
    assert "\nFAIL ready " in output
    assert errors == ""


def test_colours_are_for_terminals_without_no_color() -> None:
    main: click.Command = importlib.import_module("cli.commands").cocoa
    with running(Fault.NOT_READY) as gateway:
        arguments = ["probe-device", f"127.0.0.1:{gateway.port}", "--secret", SECRET]
        for variables, has_colours in (({"NO_COLOR": None, "TERM": "xterm"}, True), ({"NO_COLOR": "1"}, False)):
            result = CliRunner().invoke(main, arguments, env=variables, color=True)
            assert ("\x1b[" in result.stdout) is has_colours


def test_listening_prints_messages_until_ctrl_c() -> None:
    with running() as gateway, start(f"127.0.0.1:{gateway.port}", "--token", TOKEN, "--listen", "0") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "messages for 'doll'" in process.stderr.readline()
        deadline = time.monotonic() + 20
        while not gateway.opened and time.monotonic() < deadline:
            time.sleep(0.02)
        gateway.deliver_soon("doll", {"device_id": "doll", "text": "hi"})
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=20)
        finally:
            process.kill()

    assert line == '{"type":"transcription","device_id":"doll","text":"hi"}\n'
    assert (output, errors) == ("", "")
    assert process.returncode == 0


def test_listening_ends_when_its_time_is_over() -> None:
    with running() as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", "--secret", SECRET, "--listen", "0.2")

    assert result.exit_code == 0
    assert result.output == ""
