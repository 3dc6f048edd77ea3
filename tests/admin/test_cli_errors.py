"""``cocoa admin``: the source of the token, and the error for each problem."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from cocoa_tornado.identity.devkey import development_secret
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import AdminTokenRequest, admin_claims
from testing.certificates import write_certificate
from testing.ports import ReservedPort

from ..harness import SECRET, Harness
from ..hostile_answers import answer, answering
from ..probe.scripted_proxy import ScriptedProxy
from .conftest import StartAdmin, admin_token
from .operator import COMMANDS, commands, done, fails, invoke, run

pytestmark = pytest.mark.gen_test(timeout=60)

# -- the token


async def test_the_token_is_from_the_option_a_file_or_the_environment(gateway: Harness, tmp_path: Path) -> None:
    await gateway.raw("doll")
    file = tmp_path / "token.txt"
    file.write_text(admin_token() + "\n")
    for token in (admin_token(), f"@{file}"):
        await done(gateway, "devices", "--token", token, env={"COCOA_ADMIN_TOKEN": "wrong"})
        await done(gateway, "devices", env={"COCOA_ADMIN_TOKEN": token})
    fails(await run(gateway, "devices", "--token", "@no/such"), "--token: cannot read the file", 2)
    fails(await run(gateway, "devices", "--token", ""), "--token: it is empty", 2)
    fails(await run(gateway, "devices", "--token", "a b"), "--token: not a token", 2)
    fails(await run(gateway, "devices", env={"COCOA_ADMIN_TOKEN": "ä"}), "COCOA_ADMIN_TOKEN: not a token", 2)


@pytest.mark.logs("cocoa.service", "DEVELOPMENT KEY IN USE")
async def test_on_the_machine_of_the_development_key_no_token_is_needed(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin(jwt_secret="", admin_jwt_secret="", data_dir=tmp_path)
    env = {"COCOA_ADMIN_TOKEN": None, "COCOA_DATA_DIR": str(tmp_path)}
    result = await run(gateway, "devices", env=env)
    assert (result.exit_code, result.stderr) == (0, "No device is connected.\n")
    fails(await run(gateway, "devices", env=env | {"COCOA_DATA_DIR": str(tmp_path / "none")}), "No admin token", 2)
    fails(invoke("devices", "--url", "https://gateway.example", env=env), "for gateways on this machine", 2)


async def test_a_development_key_that_the_gateway_does_not_have_is_said(gateway: Harness, tmp_path: Path) -> None:
    development_secret(tmp_path)
    env = {"COCOA_ADMIN_TOKEN": None, "COCOA_DATA_DIR": str(tmp_path)}
    fails(await run(gateway, "devices", env=env), "This machine's development key has signed it")


async def test_no_output_has_the_token(gateway: Harness) -> None:
    for token in (admin_token("admin:text"), admin_token(lifetime_s=-100), "x" * 60):
        for command in COMMANDS if token.startswith("ey") else COMMANDS[:2]:
            result = await run(gateway, *command, "--token", token, "--json")
            assert token not in result.output
            assert token.rpartition(".")[2] not in result.output


# -- problems


def test_an_empty_id_is_wrong_usage_and_not_another_path() -> None:
    for command in ("device", "kick", "block", "unblock", "trace", "empty"):
        arguments = ["--yes"] if command == "empty" else []
        fails(invoke(command, "", *arguments, env={"COCOA_ADMIN_TOKEN": "a.b.c"}), "An id must not be empty.", 2)


async def test_with_json_a_refusal_of_the_api_is_json_with_its_status(gateway: Harness) -> None:
    for arguments, refusal in (
        (("device", "doll"), {"message": "Unknown device", "status": 404}),
        (("requeue", "0/5"), {"message": "No such record", "status": 404}),
        (("empty", "doll", "--yes"), {"message": "There is no mailbox", "status": 404}),
        (("devices", "--group", "g" * 129), {"message": "Invalid group", "status": 400}),
        (
            ("kick", "doll", "--token", admin_token("admin:read")),
            {"message": "Missing scope admin:write", "status": 403},
        ),
        (("devices", "--token", "a.b.c"), {"message": "Invalid JWT token", "status": 401}),
    ):
        result = await run(gateway, *arguments, "--json")
        assert result.exit_code == 1
        assert (json.loads(result.stdout), result.stdout.count("\n")) == (refusal, 1)
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1


async def test_with_json_an_error_that_is_not_of_the_api_is_on_standard_error_only(gateway: Harness) -> None:
    with closing(ReservedPort()) as port:
        away = f"http://127.0.0.1:{port.number}"
        fails(await run(gateway, "device", "doll", "--json", env={"COCOA_ADMIN_URL": away}), "cannot connect")
    with answering(lambda send: send(answer(b"<html>", status=b"404 Not Found"))) as url:
        fails(
            await run(gateway, "device", "doll", "--json", env={"COCOA_ADMIN_URL": url}),
            "not an answer of the admin API",
        )
    fails(await run(gateway, "tail", "--json", token="a.b.c"), "Invalid JWT token")


@commands
async def test_without_the_scope_each_command_fails_and_names_it(gateway: Harness, command: tuple[str, ...]) -> None:
    reads = command[0] in ("devices", "device", "trace", "explain", "quarantine")
    token = admin_token("admin:write" if reads else "admin:read", "admin:text")
    problem = f"the token does not permit this: Missing scope admin:{'read' if reads else 'write'}"
    fails(await run(gateway, *command, token=token), problem)
    fails(await run(gateway, *command, token=gateway.token()), problem)  # of a device


async def test_a_token_that_is_not_accepted_is_one_line_that_says_why(gateway: Harness) -> None:
    fails(
        await run(gateway, "devices", token=admin_token(lifetime_s=-100)), "does not accept the token: it expired at 2"
    )
    fails(await run(gateway, "devices", token="a.b.c"), "does not accept the token: Invalid JWT token")
    claims = admin_claims(AdminTokenRequest("ann"), 4e9)
    other = Signer.from_secret(SECRET[::-1]).sign(claims)
    fails(await run(gateway, "devices", token=other), "does not accept the token: Invalid JWT token")


async def test_a_disabled_api_is_not_taken_for_something_unknown(start_admin: StartAdmin) -> None:
    gateway = await start_admin(admin_jwt_secret="")
    for command in COMMANDS:
        fails(await run(gateway, *command), "has no admin API: it is disabled (set admin_jwt_secret")


@pytest.mark.logs("cocoa.http", "host not allowed")
async def test_a_host_name_that_the_gateway_does_not_allow_is_one_line_that_names_the_setting(
    start_admin: StartAdmin,
) -> None:
    gateway = await start_admin(allowed_hosts=("gateway.example",))
    proxy = ScriptedProxy(gateway.port)
    proxy.request = lambda head: ["Host: a1b2.tunnel.example" if line.startswith("Host:") else line for line in head]
    await proxy.start()
    said = "does not answer by this host name: Host not allowed: add its name to the setting allowed_hosts"
    for command in (("devices",), ("tail",)):
        fails(await run(gateway, *command, "--url", f"http://127.0.0.1:{proxy.port}"), said)
    await proxy.stop()


@pytest.mark.logs("tornado.general", "SSL Error")
async def test_certificates_are_verified(start_admin: StartAdmin, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await start_admin(tls_cert=certificate.cert, tls_key=certificate.key)
    url = {"COCOA_ADMIN_URL": f"https://127.0.0.1:{gateway.port}"}
    fails(await run(gateway, "devices", env=url), "is not trusted")
    for trust in (["--ca", str(certificate.cert)], ["--insecure"]):
        assert (await run(gateway, "devices", *trust, env=url)).exit_code == 0
    fails(await run(gateway, "devices", "--insecure", "--ca", str(certificate.cert), env=url), "exclusive", 2)
    fails(await run(gateway, "devices", "--ca", __file__, env=url), "--ca: ", 2)
    fails(await run(gateway, "devices"), "This port speaks TLS")
