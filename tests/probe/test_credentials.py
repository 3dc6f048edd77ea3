"""Tokens that are given, minted and forged."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest

from cocoa_tornado.probe.credentials import (
    Key,
    development_key,
    expired,
    from_token,
    minted,
    random_device_id,
    relabelled,
    tampered,
    unsigned,
    without_device_id,
)
from cocoa_tornado.probe.verdicts import ProbeError

SECRET = "a secret that the gateway shares with us"
KEY = Key("--secret", SECRET)
NOW = time.time()
TOKEN = minted(KEY, "doll", NOW).token


def verified(token: str) -> dict[str, object]:
    return dict(jwt.decode(token, SECRET, algorithms=["HS256"]))


def test_a_minted_token_is_what_the_contract_asks_for() -> None:
    claims = verified(TOKEN)

    assert claims["device_id"] == "doll"
    assert claims["iss"] == "cocoa-fruit-agentic"
    assert claims["sub"] == "audio-streaming"
    assert isinstance(claims["device_version"], str)
    assert isinstance(claims["user_id"], int)


def test_an_expired_token_is_genuine_in_all_else() -> None:
    token = expired(KEY, minted(KEY, "doll", NOW), NOW)

    with pytest.raises(jwt.ExpiredSignatureError):
        verified(token)
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], options={"verify_exp": False})
    assert claims["device_id"] == "doll"
    assert claims["exp"] < NOW - 3600


def test_a_token_without_device_id_is_genuine_in_all_else() -> None:
    assert "device_id" not in verified(without_device_id(KEY, NOW))


@pytest.mark.parametrize("forged", [tampered(TOKEN), relabelled(TOKEN, "other")])
def test_a_forged_token_does_not_verify(forged: str) -> None:
    assert forged != TOKEN
    with pytest.raises(jwt.InvalidSignatureError):
        verified(forged)


def test_a_relabelled_token_speaks_of_another_device() -> None:
    assert from_token(relabelled(TOKEN, "other")).device_id == "other"


def test_an_unsigned_token_says_the_same_and_has_no_signature() -> None:
    token = unsigned(TOKEN)

    assert jwt.get_unverified_header(token)["alg"] == "none"
    assert token.endswith(".")
    assert from_token(token).device_id == "doll"


def test_a_given_token_names_its_device_and_owner() -> None:
    device = from_token(jwt.encode({"device_id": "doll", "user_id": "u1"}, SECRET))

    assert (device.device_id, device.user_id, device.given) == ("doll", "u1", True)
    assert device.token not in repr(device)


@pytest.mark.parametrize(
    "token", ["", "abc", "a.b", "a.b.c", "a.b.c\r\nX: y", jwt.encode({"device_id": 7}, SECRET), jwt.encode({}, SECRET)]
)
def test_what_is_no_token_of_a_device_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ProbeError) as caught:
        from_token(token)
    assert not token or token not in str(caught.value).split("'")


def test_a_key_knows_its_own_tokens() -> None:
    assert KEY.signs(TOKEN)
    assert not Key("x", "another secret, of another gateway").signs(TOKEN)
    assert not KEY.signs("garbage")
    assert SECRET not in repr(KEY)


def test_a_public_key_is_no_secret() -> None:
    with pytest.raises(ProbeError, match="--secret"):
        minted(Key("--secret", "-----BEGIN PUBLIC KEY-----"), "doll", NOW)


def test_the_development_key_is_the_one_of_this_machine(tmp_path: Path) -> None:
    assert development_key(tmp_path).secret == development_key(tmp_path).secret


def test_a_development_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    development_key(tmp_path)
    next(tmp_path.iterdir()).chmod(0o644)

    with pytest.raises(ProbeError, match="chmod 600"):
        development_key(tmp_path)


def test_random_devices_are_never_the_same() -> None:
    assert random_device_id() != random_device_id()
    assert random_device_id().startswith("probe-")
