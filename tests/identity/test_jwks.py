"""Key documents: sets, single keys and files, and their errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cocoa_tornado.errors import KeyMaterialError
from cocoa_tornado.identity.jwks import MAX_SET_KEYS, keys_from_file, parse_jwks
from cocoa_tornado.identity.keys import KeyRing

from .material import (
    SECRET,
    events,
    jwk,
    jwks,
    part,
    private_key,
    public_pem,
    token,
)


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("RSA", "RS256"), ("EC", "ES256"), ("Ed25519", "EdDSA"), ("Ed448", "EdDSA")]
)
def test_a_key_of_a_set_verifies(kind: str, algorithm: str) -> None:
    for members in ({}, {"kid": "k", "alg": algorithm, "use": "sig", "key_ops": ["verify"]}):
        ring = KeyRing(parse_jwks(jwks(jwk(kind, **members)), "test", remote=True))
        assert ring.verify(token(private_key(kind), algorithm))


@pytest.mark.parametrize("curve", ["Ed25519", "Ed448"])
@pytest.mark.parametrize("in_set", ["EdDSA", "curve"])
@pytest.mark.parametrize("in_token", ["EdDSA", "curve"])
def test_an_edwards_key_of_a_set_goes_by_either_name_of_its_algorithm(curve: str, in_set: str, in_token: str) -> None:
    named = {"EdDSA": "EdDSA", "curve": curve}
    ring = KeyRing(parse_jwks(jwks(jwk(curve, alg=named[in_set])), "test", remote=True))
    header = json.dumps({"alg": named[in_token]}).encode()
    assert ring.verify(token(private_key(curve), "EdDSA", header=header))


def test_a_single_key_is_a_set_of_one() -> None:
    assert len(parse_jwks(json.dumps(jwk("EC")).encode(), "test", remote=True)) == 1


@pytest.mark.parametrize(
    "unusable",
    [
        5,
        {},
        {"kty": ["EC"]},
        {"kty": "EC"},
        {"kty": "RSA", "n": 5, "e": "AQAB"},
        {"kty": "RSA", "n": "AQAB", "e": "!"},
        {"kty": "EC", "crv": "P-256", "x": part(b"x" * 32), "y": part(b"y" * 32)},
        {"kty": "OKP", "crv": "X25519", "x": part(b"x" * 32)},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"},
        {"kty": "oct", "k": part(SECRET.encode())},
        jwk("RSA-1024"),
        jwk("EC-384"),
        jwk("Ed25519", alg="Ed448"),
        jwk("Ed448", alg="Ed25519"),
        jwk("RSA", use="enc"),
        jwk("RSA", use=5),
        jwk("RSA", key_ops=["encrypt", "wrapKey"]),
        jwk("RSA", alg="PS256"),
        jwk("RSA", alg="HS256"),
        jwk("EC", alg="RS256"),
        jwk("EC", alg=["ES256"]),
        jwk("EC", kid=5),
    ],
)
@pytest.mark.logs("cocoa.identity", "^jwks keys skipped$")
def test_a_key_that_cannot_be_used_is_skipped_with_a_log_line(
    unusable: object, caplog: pytest.LogCaptureFixture
) -> None:
    document = json.dumps({"keys": [unusable, jwk("Ed25519")]}).encode()
    assert [key.algorithms for key in parse_jwks(document, "test", remote=True)] == [("EdDSA", "Ed25519")]
    assert events(caplog) == ["jwks keys skipped"]
    with pytest.raises(KeyMaterialError, match="no usable key"):
        parse_jwks(json.dumps({"keys": [unusable]}).encode(), "test", remote=True)


@pytest.mark.parametrize(
    "document", [b"", b"<html>", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[]}', b"\xff\xfe\xff", b"[" * 100_000]
)
def test_what_is_no_key_set_is_refused_by_name(document: bytes) -> None:
    with pytest.raises(KeyMaterialError, match=r"^test: "):
        parse_jwks(document, "test", remote=True)


@pytest.mark.logs("cocoa.identity", "^jwks keys skipped$")
def test_only_the_first_hundred_keys_count(caplog: pytest.LogCaptureFixture) -> None:
    assert len(parse_jwks(jwks(*[jwk("EC")] * (MAX_SET_KEYS + 1)), "test", remote=True)) == MAX_SET_KEYS
    assert events(caplog) == ["jwks keys skipped"]


def test_a_secret_in_a_file_counts_and_its_alg_binds_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(jwks({"kty": "oct", "k": part(SECRET.encode()), "alg": "HS512"}))
    assert [key.algorithms for key in keys_from_file(str(path))] == [("HS512",)]


def test_the_content_decides_whether_a_file_is_a_pem_or_a_set(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    for data in (public_pem("EC"), b"\n" + jwks(jwk("EC", note="-----BEGIN"))):
        path.write_bytes(data)
        assert [key.algorithms for key in keys_from_file(str(path))] == [("ES256",)]
    path.write_bytes(b"neither")
    with pytest.raises(KeyMaterialError, match=f"key file {path}: is neither a PEM nor a JWKS"):
        keys_from_file(str(path))


def test_the_private_half_in_a_set_is_not_kept(tmp_path: Path) -> None:
    private = {**jwk("EC"), "d": part(b"d" * 32)}
    (key,) = parse_jwks(jwks(private), "test", remote=False)
    assert not hasattr(key.material, "private_numbers")
