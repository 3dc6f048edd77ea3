"""``cocoa mint-token``: what it prints, what it signs with, and how it fails.

The command is imported from the repository's folder ``cli``, so that these tests need no installed package.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cocoa_tornado.errors import IdentityError, InvalidClaims
from cocoa_tornado.identity.devkey import development_secret
from cocoa_tornado.identity.keys import ALGORITHMS, KeyRing, keys_from_pem, secret_key
from cocoa_tornado.rules.admin_tokens import SCOPES, operator_of
from cocoa_tornado.rules.identity import MAX_GROUPS, MAX_NAME_BYTES, TokenPolicy, check_claims

from ..identity.material import ENCRYPTED, SECRET, private_pem, public_pem

Mint = Callable[..., Result]
main: click.Command = importlib.import_module("cli.commands").cocoa


@pytest.fixture
def mint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mint:
    """Runs the command for device ``d``, with a data directory of its own and no other setting."""

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
        environment = {"COCOA_DATA_DIR": str(tmp_path / "data"), "COCOA_JWT_SECRET": None, **(env or {})}
        return CliRunner().invoke(main, ["mint-token", "--device-id", "d", *arguments], env=environment)

    return run


@pytest.fixture
def mint_admin(tmp_path: Path) -> Mint:
    """Runs the command for an operator."""

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
        environment = {"COCOA_DATA_DIR": str(tmp_path / "data"), "COCOA_JWT_SECRET": None, **(env or {})}
        return CliRunner().invoke(main, ["mint-token", "--admin", *arguments], env=environment)

    return run


@pytest.fixture
def pem(tmp_path: Path) -> Callable[[bytes], str]:
    def write(data: bytes) -> str:
        path = tmp_path / "key.pem"
        path.write_bytes(data)
        return str(path)

    return write


def claims_of(result: Result, secret: str = SECRET) -> Mapping[str, object]:
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return KeyRing([secret_key(secret, "test")], ALGORITHMS).verify(result.stdout.strip())


def fails(result: Result, exit_code: int, problem: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert problem in result.stderr


def test_the_token_and_nothing_else_is_printed(mint: Mint) -> None:
    result = mint("--secret", SECRET)
    claims = claims_of(result)
    identity = check_claims(claims, TokenPolicy(), time.time())
    assert (identity.device_id, identity.user_id, identity.device_version, identity.groups) == ("d", 0, "1.0.0", ())
    assert result.stderr == ""
    assert list(claims) == ["device_id", "user_id", "device_version", "iss", "sub", "iat", "exp", "jti"]
    assert identity.expires_at - time.time() == pytest.approx(86400, abs=60)


@pytest.mark.parametrize(
    ("text", "user_id"),
    [
        ("99", 99),
        ("0", 0),
        ("-5", -5),
        ("u-1", "u-1"),
        ("007", "007"),
        ("1.0", "1.0"),
        ("+7", "+7"),
        ("", ""),
        ('"99"', "99"),
        ('"', '"'),
        ('"u"x', '"u"x'),
        ('"\\"99\\""', '"99"'),
    ],
)
def test_a_user_id_is_an_integer_if_it_looks_like_one_and_a_string_in_quotes(
    mint: Mint, text: str, user_id: int | str
) -> None:
    claims = claims_of(mint("--secret", SECRET, "--user-id", text))
    assert claims["user_id"] == user_id
    assert type(claims["user_id"]) is type(user_id)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h30m", 5400), ("7d", 604800), ("0s", 0), ("-1h", -3600)]
)
def test_expires_in_is_a_duration_and_may_lie_in_the_past(mint: Mint, text: str, seconds: int) -> None:
    claims = claims_of(mint("--secret", SECRET, "--expires-in", text))
    assert isinstance(claims["iat"], int)
    assert claims["exp"] == claims["iat"] + seconds


def test_groups_and_other_claims_are_put_in(mint: Mint) -> None:
    extra = (
        "n=5",
        "list=[1,null]",
        "text=hello",
        "empty=",
        "nan=NaN",
        "eq=a=b",
        "iss=other",
        "device_id=5",
        "big=1e999",
    )
    arguments = [word for claim in extra for word in ("--claim", claim)]
    claims = claims_of(mint("--secret", SECRET, "--group", "a", "--group", "b", "--device-version", "2", *arguments))
    assert {name: claims[name] for name in ("groups", "device_version", "n", "list", "text", "empty", "nan", "eq")} == {
        "groups": ["a", "b"],
        "device_version": "2",
        "n": 5,
        "list": [1, None],
        "text": "hello",
        "empty": "",
        "nan": "NaN",
        "eq": "a=b",
    }
    assert (claims["iss"], claims["device_id"], claims["big"]) == ("other", 5, "1e999")


def test_as_many_and_as_long_groups_as_the_gateway_accepts_fit_into_a_token(mint: Mint) -> None:
    names = [f"{number:03}" + "g" * (MAX_NAME_BYTES - 3) for number in range(MAX_GROUPS)]
    arguments = [word for name in names for word in ("--group", name)]
    result = mint("--secret", SECRET, *arguments)
    assert check_claims(claims_of(result), TokenPolicy(), time.time()).groups == tuple(names)


@pytest.mark.parametrize("names", [["g" * (MAX_NAME_BYTES + 1)], [""], ["a\nb"], ["g"] * (MAX_GROUPS + 1)], ids=len)
def test_groups_that_the_gateway_refuses_are_put_in_all_the_same(mint: Mint, names: list[str]) -> None:
    arguments = [word for name in names for word in ("--group", name)]
    claims = claims_of(mint("--secret", SECRET, *arguments))
    assert claims["groups"] == names
    with pytest.raises(InvalidClaims, match="groups"):
        check_claims(claims, TokenPolicy(), time.time())


def test_json_is_one_compact_object(mint: Mint) -> None:
    result = mint("--secret", SECRET, "--group", "küche", "--json")
    document = json.loads(result.stdout)
    assert list(document) == ["token", "claims", "expires_at"]
    assert KeyRing([secret_key(SECRET, "test")]).verify(document["token"]) == document["claims"]
    assert document["expires_at"] == document["claims"]["exp"]
    assert result.stdout == json.dumps(document, separators=(",", ":"), ensure_ascii=False) + "\n"


def test_with_no_key_the_development_key_is_used_and_announced(mint: Mint, tmp_path: Path) -> None:
    first, second = mint(), mint()
    key = development_secret(tmp_path / "data")
    for result in (first, second):
        assert claims_of(result, key.secret)["device_id"] == "d"
        assert str(key.path) in result.stderr
        assert key.secret not in result.stderr
    assert "created just now" in first.stderr
    assert "created just now" not in second.stderr


def test_the_secret_of_the_settings_is_used_before_the_development_key(mint: Mint, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    config = tmp_path / "cocoa.toml"
    config.write_text(f'jwt_secret = "{SECRET}"\njwt_issuer = "us"\njwt_lifetime = "1h"\n')
    for result in (
        mint(env={"COCOA_JWT_SECRET": SECRET}),
        mint(env={"COCOA_JWT_SECRET": f"@{tmp_path / 'secret'}"}),
        mint("--config", str(config)),
        mint("--secret", SECRET, env={"COCOA_JWT_SECRET": "o" * 32}),
    ):
        claims = claims_of(result)
        assert result.stderr == ""
    assert claims["iss"] == "cocoa-fruit-agentic"
    claims = claims_of(mint("--config", str(config)))
    assert claims["iss"] == "us"
    assert isinstance(claims["iat"], int)
    assert claims["exp"] == claims["iat"] + 3600


@pytest.mark.parametrize(("kind", "algorithm"), [("RSA", "RS256"), ("EC", "ES256"), ("Ed25519", "EdDSA")])
def test_a_private_key_signs_with_the_algorithm_of_its_kind(
    mint: Mint, pem: Callable[[bytes], str], kind: str, algorithm: str
) -> None:
    path = pem(private_pem(kind))
    ring = KeyRing(keys_from_pem(public_pem(kind), "test"))
    # The last one: the settings name it, with a host that the development key would not do for.
    for result in (
        mint("--private-key", path),
        mint("--private-key", path, "--algorithm", algorithm, env={"COCOA_JWT_SECRET": SECRET}),
        mint(env={"COCOA_JWT_KEY": path, "COCOA_HOST": "0.0.0.0"}),
    ):
        assert result.exit_code == 0, result.output
        assert ring.verify(result.stdout.strip())["device_id"] == "d"


@pytest.mark.parametrize("curve", ["Ed25519", "Ed448"])
def test_an_edwards_key_signs_under_either_name_of_its_algorithm(
    mint: Mint, pem: Callable[[bytes], str], curve: str
) -> None:
    path = pem(private_pem(curve))
    ring = KeyRing(keys_from_pem(public_pem(curve), "test"))
    configured = {"COCOA_JWT_KEY": path, "COCOA_JWT_ALGORITHMS": f"ES256,{curve}"}
    for name, result in (
        ("EdDSA", mint("--private-key", path)),
        ("EdDSA", mint("--private-key", path, "--algorithm", "EdDSA")),
        (curve, mint("--private-key", path, "--algorithm", curve)),
        (curve, mint(env=configured)),
    ):
        token = result.stdout.strip()
        assert ring.examine(token).proof[1] == name
    other = {"Ed25519": "Ed448", "Ed448": "Ed25519"}[curve]
    fails(mint("--private-key", path, "--algorithm", other), 2, "does not match this key")


def test_a_short_secret_signs_though_the_settings_are_a_networks(mint: Mint) -> None:
    result = mint("--secret", "short", env={"COCOA_HOST": "0.0.0.0", "COCOA_JWT_SECRET": SECRET})
    assert (result.exit_code, result.stderr) == (0, "")
    fails(mint(env={"COCOA_HOST": "0.0.0.0", "COCOA_JWT_SECRET": "short"}), 2, "too short")


def test_with_a_key_of_its_own_the_keys_of_the_settings_are_not_judged(mint: Mint, pem: Callable[[bytes], str]) -> None:
    for key in (("--private-key", pem(private_pem("EC"))), ("--secret", SECRET)):
        for env in ({"COCOA_JWT_SECRET": "a"}, {"COCOA_JWT_SECRET": "@no-file"}, {"COCOA_JWT_ALGORITHMS": "ES256"}, {}):
            result = mint(*key, env={"COCOA_HOST": "0.0.0.0"} | env)
            assert (result.exit_code, result.stderr) == (0, ""), env


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_secret_signs_with_the_hmac_that_is_asked_for(mint: Mint, algorithm: str) -> None:
    token = mint("--secret", SECRET, "--algorithm", algorithm).stdout.strip()
    assert KeyRing([secret_key(SECRET, "test")], (algorithm,)).verify(token)


def test_a_key_that_contradicts_the_algorithm_is_wrong_usage(mint: Mint, pem: Callable[[bytes], str]) -> None:
    path = pem(private_pem("EC"))
    fails(mint("--private-key", path, "--algorithm", "RS256"), 2, "signs with ES256")
    fails(mint("--private-key", path, "--algorithm", "HS256"), 2, "signs with ES256")
    fails(mint("--secret", SECRET, "--algorithm", "ES256"), 2, "requires a private key")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--secret", SECRET, "--private-key", "key.pem"), "mutually exclusive"),
        (("--secret", ""), "--secret: it is empty"),
        (("--secret", "  "), "--secret: it is blank"),
        (("--secret", "@no-file"), "--secret: cannot read the file that it names after @: no such file"),
        (("--expires-in", "tomorrow"), "is not a duration"),
        (("--claim", "novalue"), "NAME=VALUE"),
        (("--claim", "=5"), "NAME=VALUE"),
        (("--algorithm", "none"), "none"),
        (("--colour", "red"), "--colour"),
        (("extra",), "extra"),
        (("--config", "no/such.toml"), "no/such.toml"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(mint: Mint, arguments: tuple[str, ...], problem: str) -> None:
    result = mint(*arguments)
    fails(result, 2, problem)
    assert SECRET not in result.stderr


def test_a_missing_device_id_is_one_line_and_status_2() -> None:
    fails(CliRunner().invoke(main, ["mint-token"]), 2, "--device-id")


def test_a_key_that_cannot_be_used_is_one_line_and_status_1(mint: Mint, pem: Callable[[bytes], str]) -> None:
    fails(mint("--private-key", "no/such.pem"), 1, "no/such.pem")
    for data, problem in (
        (b"not a key", "no PEM private key"),
        (public_pem("EC"), "no PEM private key"),
        (private_pem("EC", ENCRYPTED), "encrypted"),
        (private_pem("RSA-1024"), "2048"),
    ):
        fails(mint("--private-key", pem(data)), 1, problem)
    fails(mint(env={"COCOA_JWT_KEY": pem(public_pem("EC"))}), 1, "cannot sign")


def test_a_development_key_that_others_can_read_is_one_line_and_status_1(mint: Mint, tmp_path: Path) -> None:
    development_secret(tmp_path / "data").path.chmod(0o644)
    fails(mint(), 1, "chmod 600")


def test_tokens_can_be_bad_on_purpose(mint: Mint) -> None:
    for arguments in (("--device-id", ""), ("--expires-in", "-1h"), ("--claim", "exp=null"), ("--claim", "sub=x")):
        claims = claims_of(mint("--secret", SECRET, *arguments))
        with pytest.raises(IdentityError):
            check_claims(claims, TokenPolicy(), time.time())


def test_an_admin_token_has_the_scopes_and_the_subject_that_are_asked_for(mint_admin: Mint) -> None:
    asked = ("--scope", "admin:read", "--scope", "admin:text", "--subject", "ann", "--expires-in", "1h")
    claims = claims_of(mint_admin("--secret", SECRET, *asked))
    operator = operator_of(claims, 0, time.time())
    assert operator.subject == "ann"
    assert operator.scopes == {"admin:read", "admin:text"}
    assert operator.expires_at - time.time() == pytest.approx(3600, abs=60)
    with pytest.raises(InvalidClaims):
        check_claims(claims, TokenPolicy(), time.time())


def test_an_admin_token_has_every_scope_the_users_name_and_12_hours_by_default(
    mint_admin: Mint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "bob")
    operator = operator_of(claims_of(mint_admin("--secret", SECRET)), 0, time.time())
    assert operator.subject == "bob"
    assert operator.scopes == set(SCOPES)
    assert operator.expires_at - time.time() == pytest.approx(12 * 3600, abs=60)


def test_an_admin_token_is_signed_with_the_admin_secret_and_never_with_that_of_devices(
    mint_admin: Mint, tmp_path: Path
) -> None:
    env = {"COCOA_JWT_SECRET": "d" * 32}
    assert claims_of(mint_admin(env=env | {"COCOA_ADMIN_JWT_SECRET": SECRET}))["aud"] == "cocoa-admin"
    fails(mint_admin(env=env), 1, "the admin API is disabled")
    result = mint_admin()
    assert claims_of(result, development_secret(tmp_path / "data").secret)["aud"] == "cocoa-admin"
    assert "development key" in result.stderr


def test_a_private_key_among_the_admin_keys_signs_admin_tokens(mint_admin: Mint, pem: Callable[[bytes], str]) -> None:
    path = pem(private_pem("EC"))
    result = mint_admin(env={"COCOA_ADMIN_JWT_KEY": path, "COCOA_JWT_SECRET": SECRET})
    assert KeyRing(keys_from_pem(public_pem("EC"), "test")).verify(result.stdout.strip())["aud"] == "cocoa-admin"


def test_options_of_the_other_kind_of_token_are_wrong_usage(mint: Mint, mint_admin: Mint) -> None:
    fails(mint("--scope", "admin:read"), 2, "--scope: only with --admin")
    fails(mint("--subject", "ann"), 2, "--subject: only with --admin")
    fails(mint("--admin", "--group", "g"), 2, "--device-id, --group: not for an admin token")
    fails(mint_admin("--scope", "admin:everything"), 2, "admin:everything")


def test_help_shows_every_option_and_examples() -> None:
    text = CliRunner().invoke(main, ["mint-token", "--help"]).output
    for word in (
        *("--device-id", "--user-id", "--device-version", "--expires-in", "--secret", "--private-key", "--algorithm"),
        *(
            "--admin",
            "--scope",
            "--subject",
            "--group",
            "--claim",
            "--json",
            "--config",
            "cocoa mint-token --device-id doll-1 --expires-in -1h",
        ),
    ):
        assert word in text
