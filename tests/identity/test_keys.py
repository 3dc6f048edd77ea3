"""Which keys verify which tokens, and which tokens are malformed."""

from __future__ import annotations

import datetime
import json
import logging
import warnings
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.errors import IdentityError, InvalidClaims, InvalidToken, KeyMaterialError
from cocoa_tornado.identity.keys import (
    ALGORITHMS,
    KeyRing,
    Signer,
    VerificationKey,
    asymmetric_key,
    keys_from_pem,
    read_key_file,
    secret_key,
)
from cocoa_tornado.rules.identity import MAX_TOKEN_BYTES

from ..profiles import examples
from .material import ENCRYPTED, SECRET, part, private_key, private_pem, public_pem, token

PAYLOAD = b'{"device_id":"d"}'
KIND_KEYS = {
    "secret": SECRET.encode(),
    "RSA": private_key("RSA"),
    "EC": private_key("EC"),
    "Ed25519": private_key("Ed25519"),
    "Ed448": private_key("Ed448"),
}
KIND_ALGORITHMS = {
    "secret": ("HS256", "HS384", "HS512"),
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256",),
    "Ed25519": ("EdDSA", "Ed25519"),
    "Ed448": ("EdDSA", "Ed448"),
}
OURS = {
    "secret": ("HS256", "HS384", "HS512"),
    "RSA": ("RS256",),
    "EC": ("ES256",),
    "Ed25519": ("EdDSA", "Ed25519"),
    "Ed448": ("EdDSA", "Ed448"),
}


def verification_key(kind: str, kid: str | None = None) -> VerificationKey:
    if kind == "secret":
        return secret_key(SECRET, "test", kid)
    return asymmetric_key(private_key(kind).public_key(), "test", kid)


def ring(*kinds: str) -> KeyRing:
    return KeyRing([verification_key(kind) for kind in kinds], ALGORITHMS)


def refusal(keys: KeyRing, text: str) -> str:
    with pytest.raises(IdentityError) as caught:
        keys.verify(text)
    return caught.value.reason


# --- Kinds and algorithms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verifier", KIND_KEYS)
@pytest.mark.parametrize(
    ("signer", "algorithm"), [(kind, name) for kind, names in KIND_ALGORITHMS.items() for name in names]
)
def test_a_key_verifies_its_own_kinds_algorithm_and_nothing_else(verifier: str, signer: str, algorithm: str) -> None:
    text = token(KIND_KEYS[signer], algorithm, PAYLOAD)
    if verifier == signer and algorithm in OURS[verifier]:
        assert ring(verifier).verify(text) == {"device_id": "d"}
    else:
        # EdDSA does not say which curve: to know that it is not the key's takes a look at the signature.
        assert refusal(ring(verifier), text) in ("algorithm", "unknown_key", *(["signature"] * (algorithm == "EdDSA")))


@pytest.mark.parametrize("kind", ["RSA", "EC", "Ed25519", "Ed448"])
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_never_an_hmac_secret(kind: str, algorithm: str) -> None:
    text = token(public_pem(kind), algorithm, PAYLOAD)
    assert refusal(ring(kind), text) == "algorithm"
    assert refusal(ring("secret", "RSA", "EC", "Ed25519"), text) == "signature"


@pytest.mark.parametrize("claimed", [*ALGORITHMS, "none", "None", "", "hs256", "RS384", "PS256", "ES256K"])
@pytest.mark.parametrize("kind", KIND_KEYS)
def test_a_header_that_claims_another_algorithm_than_signed_never_verifies(kind: str, claimed: str) -> None:
    actual = OURS[kind][0]
    if claimed == actual or (claimed in OURS[kind][1:] and actual == "EdDSA"):
        return
    text = token(KIND_KEYS[kind], actual, PAYLOAD, header=json.dumps({"alg": claimed}).encode())
    assert refusal(ring(*KIND_KEYS), text) in ("algorithm", "signature")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE"])
@pytest.mark.parametrize("signature", ["", "AAAA", part(b"x" * 32)])
def test_alg_none_never_verifies(algorithm: str, signature: str) -> None:
    header = part(json.dumps({"alg": algorithm}).encode())
    assert refusal(ring(*KIND_KEYS), f"{header}.{part(PAYLOAD)}.{signature}") in ("algorithm", "malformed")


def test_only_configured_algorithms_verify() -> None:
    only_eddsa = KeyRing([verification_key(kind) for kind in KIND_KEYS], ("EdDSA",))
    assert only_eddsa.verify(token(private_key("Ed25519"), "EdDSA"))
    assert refusal(only_eddsa, token(SECRET.encode(), "HS256")) == "algorithm"
    by_default = KeyRing([verification_key("secret")])
    assert refusal(by_default, token(SECRET.encode(), "HS512")) == "algorithm"


@pytest.mark.parametrize(
    ("allowed", "verifies"),
    [
        (("EdDSA",), {"Ed25519", "Ed448"}),
        (("Ed25519",), {"Ed25519"}),
        (("Ed448",), {"Ed448"}),
        (("EdDSA", "Ed448"), {"Ed25519", "Ed448"}),
        (("ES256",), set()),
    ],
)
def test_a_curve_is_allowed_by_its_name_or_by_that_of_both_and_a_token_may_use_either(
    allowed: tuple[str, ...], verifies: set[str]
) -> None:
    keys = KeyRing([verification_key(kind) for kind in KIND_KEYS], allowed)
    for curve in ("Ed25519", "Ed448"):
        for name in ("EdDSA", curve):
            text = token(private_key(curve), "EdDSA", header=json.dumps({"alg": name}).encode())
            if curve in verifies:
                assert keys.verify(text)
            else:
                assert refusal(keys, text) in ("algorithm", "signature")


def test_another_key_of_the_same_kind_does_not_verify() -> None:
    assert refusal(ring("secret"), token(b"another secret, thirty-two bytes long", "HS256")) == "signature"
    for kind, algorithm in (("RSA", "RS256"), ("EC", "ES256"), ("Ed25519", "EdDSA")):
        assert refusal(ring(kind), token(private_key(f"{kind}'"), algorithm)) == "signature"


# --- Several keys --------------------------------------------------------------------------------------------------


def test_during_a_rotation_old_and_new_keys_both_verify() -> None:
    rotating = KeyRing([secret_key(SECRET, "new"), secret_key("o" * 32, "old"), verification_key("EC")])
    for key, algorithm in ((SECRET.encode(), "HS256"), (b"o" * 32, "HS256"), (private_key("EC"), "ES256")):
        assert rotating.verify(token(key, algorithm))


def test_the_kid_selects_the_key_and_without_one_all_are_tried() -> None:
    keys = KeyRing([verification_key("EC", "a"), verification_key("EC'", "b")])
    assert keys.verify(token(private_key("EC'"), "ES256", kid="b"))
    assert keys.verify(token(private_key("EC'"), "ES256"))
    assert refusal(keys, token(private_key("EC'"), "ES256", kid="a")) == "signature"


def test_a_kid_that_no_key_has_is_unknown_unless_a_key_without_one_verifies() -> None:
    named, unnamed = verification_key("EC", "a"), verification_key("EC'")
    text = token(private_key("EC'"), "ES256", kid="new")
    assert refusal(KeyRing([named]), text) == "unknown_key"
    assert refusal(KeyRing([]), text) == "unknown_key"
    assert KeyRing([named, unnamed]).verify(text)
    assert KeyRing([secret_key(SECRET, "test")]).verify(token(SECRET.encode(), "HS256", kid="whatever"))
    assert refusal(KeyRing([secret_key(SECRET, "test")]), token(b"x" * 32, "HS256", kid="new")) == "signature"


def test_a_token_costs_a_bounded_number_of_signatures() -> None:
    others = [verification_key("EC'")] * 16
    assert refusal(KeyRing([*others, verification_key("EC")]), token(private_key("EC"), "ES256")) == "signature"
    assert KeyRing([*others[1:], verification_key("EC")]).verify(token(private_key("EC"), "ES256"))


# --- The shape of a token ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d", " ", "é.é.é", "\ud800", "eyJhbGciOiJIUzI1NiJ9..", "\0.\0.\0"],
)
def test_what_is_not_three_parts_of_base64url_is_malformed(text: str) -> None:
    assert refusal(ring("secret"), text) == "malformed"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "malformed"),
        (b"[]", "malformed"),
        (b'"HS256"', "malformed"),
        (b"{}", "malformed"),
        (b'{"alg":null}', "malformed"),
        (b'{"alg":["HS256"]}', "malformed"),
        (b'{"alg":"HS256","kid":5}', "malformed"),
        (b'{"alg":"HS256","x":NaN}', "malformed"),
        (b'{"alg":"HS256"} x', "malformed"),
        (b'\xef\xbb\xbf{"alg":"HS256"}', "malformed"),
        ('{"alg":"HS256"}'.encode("utf-16"), "malformed"),
        (b'{"alg":"HS256","x":"\xff"}', "malformed"),
        (b'{"alg":"HS256","x":' + b"[" * 3000 + b"]" * 3000 + b"}", "malformed"),
        (b'{"alg":"none","alg":"HS256"}', "duplicate"),
        (b'{"alg":"HS256","\\u0061lg":"HS256"}', "duplicate"),
        (b'{"alg":"HS256","crit":["exp"]}', "critical"),
        (b'{"alg":"HS256","crit":[]}', "critical"),
        (b'{"alg":"HS256","b64":false,"crit":["b64"]}', "critical"),
    ],
)
def test_an_odd_header_is_refused_with_any_signature(header: bytes, reason: str) -> None:
    long_enough = KeyRing([verification_key("secret")], max_token_bytes=100_000)
    assert refusal(long_enough, token(SECRET.encode(), "HS256", header=header)) == reason


@pytest.mark.parametrize(
    ("payload", "error", "reason"),
    [
        (b"[]", InvalidToken, "malformed"),
        (b"null", InvalidToken, "malformed"),
        (b"not json", InvalidToken, "malformed"),
        (b'{"exp":NaN}', InvalidToken, "malformed"),
        (b'{"exp":-Infinity}', InvalidToken, "malformed"),
        (b'{"a":"\xc3"}', InvalidToken, "malformed"),
        (b'{"a":' + b"9" * 5000 + b"}", InvalidToken, "malformed"),
        (b"[" * 50_000, InvalidToken, "malformed"),
        (b'{"device_id":"a","device_id":"b"}', InvalidClaims, "duplicate"),
        (b'{"device_id":"a","device\\u005fid":"a"}', InvalidClaims, "duplicate"),
    ],
)
def test_an_odd_payload_is_refused_though_the_signature_is_right(
    payload: bytes, error: type[IdentityError], reason: str
) -> None:
    long_enough = KeyRing([verification_key("secret")], max_token_bytes=100_000)
    with pytest.raises(error) as caught:
        long_enough.verify(token(SECRET.encode(), "HS256", payload))
    assert caught.value.reason == reason


def test_the_payload_of_a_forged_token_is_not_even_parsed() -> None:
    assert refusal(ring("secret"), token(b"x" * 32, "HS256", b"not json")) == "signature"


def test_a_token_that_is_too_long_is_refused_before_any_work() -> None:
    text = token(SECRET.encode(), "HS256", json.dumps({"a": "x" * 10_000}).encode())
    assert refusal(ring("secret"), text) == "too_long"
    assert refusal(ring("secret"), "." * (MAX_TOKEN_BYTES + 1)) == "too_long"


@pytest.mark.parametrize("kind", KIND_KEYS)
def test_a_token_cut_short_never_verifies(kind: str) -> None:
    text = token(KIND_KEYS[kind], OURS[kind][0])
    keys = ring(kind)
    for length in range(len(text)):
        assert refusal(keys, text[:length])


@pytest.mark.parametrize("kind", KIND_KEYS)
def test_a_token_with_one_bit_flipped_never_verifies(kind: str) -> None:
    text = token(KIND_KEYS[kind], OURS[kind][0]).encode()
    keys = ring(kind)
    for position in range(len(text)):
        for bit in range(8):
            flipped = bytearray(text)
            flipped[position] ^= 1 << bit
            assert refusal(keys, flipped.decode("latin-1"))


def test_a_signature_has_one_spelling() -> None:
    text = token(SECRET.encode(), "HS256")
    for other in (f"{text}=", f"{text}\n", f" {text}", f"{text}!", text.replace("-", "+").replace("_", "/") + "!"):
        assert refusal(ring("secret"), other) == "malformed"


@given(st.text())
def test_no_text_raises_anything_but_an_identity_error(text: str) -> None:
    with pytest.raises(IdentityError):
        ring("secret", "EC").verify(text)


@examples(60)
@given(st.binary(), st.binary(), st.sampled_from([*ALGORITHMS, "none"]), st.binary(max_size=80))
def test_no_header_payload_or_signature_raises_anything_but_an_identity_error(
    header: bytes, payload: bytes, algorithm: str, signature: bytes
) -> None:
    keys = ring(*KIND_KEYS)
    for head in (header, json.dumps({"alg": algorithm}).encode()):
        with pytest.raises(IdentityError):
            keys.verify(f"{part(head)}.{part(payload)}.{part(signature)}")
    assert isinstance(_verdict(keys, token(SECRET.encode(), "HS256", payload)), dict | IdentityError)


HEADERS = [
    b'{"alg":"HS256","typ":"JWT"}',
    b'{"alg": "HS256"}',
    b'{"alg":"HS384"}',
    b'{"alg":"HS512","kid":"one"}',
    b'{"alg":"HS256","kid":"unknown"}',
    b'{"alg":"HS256","alg":"HS256"}',
    b'{"alg":"HS256","crit":["exp"]}',
    b'{"alg":"none"}',
]
PAYLOADS = [PAYLOAD, b"{}", b'{"a":1,"a":2}', b"[]", b"\xff", b"", b'{"n":NaN}']
SECRETS = [letter * 64 for letter in (b"a", b"b", b"c")]  # now, before, and another's


@st.composite
def hmac_tokens(draw: st.DrawFn) -> str:
    """A token with a valid or invalid MAC, possibly damaged."""
    header, payload = draw(st.sampled_from(HEADERS)), draw(st.sampled_from(PAYLOADS))
    algorithm = draw(st.sampled_from(["HS256", "HS384", "HS512"]))
    text = token(draw(st.sampled_from(SECRETS)), algorithm, payload, header=header)
    at = draw(st.integers(0, len(text)))
    letter = draw(st.sampled_from([*"AZaz09-_.=+/ \n\0", "\u00e9", "\u212a", "."]))
    damages = [text, text[:at], text[:at] + letter + text[at:], text[:at] + letter + text[at + 1 :], text + text[at:]]
    damaged: str = draw(st.sampled_from([text, text, text, *damages]))
    return damaged


@examples(80)
@given(st.lists(hmac_tokens(), min_size=1, max_size=6))
def test_what_was_verified_before_changes_no_verdict_and_every_mac_is_judged_as_pyjwt_does(texts: list[str]) -> None:
    def fresh() -> KeyRing:
        return KeyRing([secret_key(SECRETS[0], "now", "one"), secret_key(SECRETS[1], "before")], ALGORITHMS)

    keys = fresh()
    for header in HEADERS:
        for algorithm in ("HS256", "HS384", "HS512"):
            _verdict(keys, token(SECRETS[0], algorithm, PAYLOAD, header=header))
    for text in texts:
        verdict, again, first = _verdict(keys, text), _verdict(keys, text), _verdict(fresh(), text)
        assert repr(verdict) == repr(again) == repr(first)
        if not isinstance(verdict, IdentityError):
            assert any(_pyjwt_claims(text, secret) == verdict for secret in SECRETS[:2])


def _pyjwt_claims(text: str, secret: bytes) -> object:
    try:
        return jwt.decode(text, secret, ["HS256", "HS384", "HS512"], options={"verify_aud": False, "verify_exp": False})
    except jwt.PyJWTError:
        return None


def _verdict(keys: KeyRing, text: str) -> object:
    try:
        return keys.verify(text)
    except IdentityError as error:
        return error


# --- Loading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RSA", "EC", "Ed25519", "Ed448"])
def test_a_pem_verifies_whether_it_is_public_or_private(kind: str) -> None:
    text = token(KIND_KEYS[kind], OURS[kind][0])
    for pem in (public_pem(kind), private_pem(kind)):
        assert KeyRing(keys_from_pem(pem, "test")).verify(text)


def test_a_traditional_pem_with_curve_parameters_and_one_with_several_keys_are_read() -> None:
    traditional = private_key("EC").private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    keys = keys_from_pem(parameters + traditional + public_pem("RSA"), "test")
    assert [key.algorithms for key in keys] == [("ES256",), ("RS256",)]


def test_the_key_of_a_certificate_is_read() -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    day = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, private_key("EC").public_key(), 1, day, day)
    certificate = builder.sign(private_key("EC"), hashes.SHA256()).public_bytes(Encoding.PEM)
    assert KeyRing(keys_from_pem(certificate, "test")).verify(token(private_key("EC"), "ES256"))


@pytest.mark.parametrize(
    ("pem", "problem"),
    [
        (b"", "has no PEM key"),
        (b"-----BEGIN PUBLIC KEY-----\nabc\n", "has no PEM key"),
        (b"-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----\n", "cannot be parsed"),
        (b"-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n", "cannot be parsed"),
        (b"-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n", "cannot be parsed"),
        (b"-----BEGIN DH PARAMETERS-----\nabc\n-----END DH PARAMETERS-----\n", "is not a key"),
        (private_pem("RSA", ENCRYPTED), "encrypted"),
        (public_pem("RSA-1024"), "2048"),
        (private_pem("EC-384"), "P-256"),
        (public_pem("X25519"), "Ed25519"),
        (private_pem("X25519"), "Ed25519"),
    ],
)
def test_a_pem_that_cannot_be_used_is_named_and_never_shown(pem: bytes, problem: str) -> None:
    with pytest.raises(KeyMaterialError, match=problem) as caught:
        keys_from_pem(pem, "key file some.pem")
    assert str(caught.value).startswith("key file some.pem: ")
    assert not any(line in str(caught.value) for line in pem.decode().splitlines()[1:-1] if len(line) > 10)


@pytest.mark.parametrize(
    "secret",
    [
        public_pem("RSA").decode(),
        private_pem("EC"),
        b"x" + public_pem("EC"),
        b"-----BEGIN PUBLIC KEY----- and so on",
        '{"kty":"oct","k":"AAAA"}',
        '{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}',
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB",
    ],
)
def test_a_key_given_as_a_secret_is_refused_when_it_is_loaded(secret: str | bytes) -> None:
    with pytest.raises(KeyMaterialError, match="must not be used as an HMAC secret") as caught:
        secret_key(secret, "jwt secret")
    assert "AQAB" not in str(caught.value)


def test_an_empty_secret_and_one_that_is_not_text_are_refused() -> None:
    for secret in ("", b"", "\ud800"):
        with pytest.raises(KeyMaterialError, match="jwt secret: "):
            secret_key(secret, "jwt secret")


def test_a_secret_of_any_bytes_may_come_from_the_environment() -> None:
    raw = b"\xff\xfe" * 16
    assert KeyRing([secret_key(raw.decode("utf-8", "surrogateescape"), "test")]).verify(token(raw, "HS256"))


@pytest.mark.logs("cocoa.identity", "^weak jwt secret$")
def test_a_short_secret_warns_once_when_loaded_and_never_for_a_token(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        keys = KeyRing([secret_key("short", "jwt secret")])
        text = Signer.from_secret("short").sign({"device_id": "d"})
        for _ in range(3):
            keys.verify(text)
    assert [record.getMessage() for record in caplog.records] == ["weak jwt secret"]
    assert "short" not in str(caplog.records[0].__dict__["origin"])


def test_keys_do_not_show_in_a_repr() -> None:
    for thing in (secret_key(SECRET, "test"), ring("secret"), Signer.from_secret(SECRET)):
        assert SECRET not in repr(thing)
    assert repr(ring("secret", "EC")) == "<KeyRing 2 keys (HS256, HS384, HS512, ES256)>"


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "large.pem").write_bytes(b"x" * ((1 << 20) + 1))
    for path, problem in (
        (tmp_path / "none.pem", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "large.pem", "larger"),
    ):
        with pytest.raises(KeyMaterialError, match=problem) as caught:
            read_key_file(path)
        assert str(path) in str(caught.value)
    with pytest.raises(KeyMaterialError, match="null"):
        read_key_file("a\0b")


# --- Signing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RSA", "EC", "Ed25519", "Ed448"])
def test_a_private_key_signs_with_its_kinds_algorithm(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(kind))
    signer = Signer.from_file(path)
    assert signer.algorithm == OURS[kind][0]
    claims = {"device_id": "ü", "user_id": 99}
    text = signer.sign(claims)
    assert ring(kind).verify(text) == claims
    assert jwt.decode(text, private_key(kind).public_key(), algorithms=[signer.algorithm]) == claims


@pytest.mark.parametrize("curve", ["Ed25519", "Ed448"])
def test_an_edwards_key_signs_under_the_name_that_is_preferred(curve: str) -> None:
    signer = Signer.from_pem(private_pem(curve), "test")
    assert signer.algorithm == "EdDSA"
    assert signer.preferring(("HS256", "EdDSA", curve)).algorithm == "EdDSA"
    assert signer.preferring(("RS256",)).algorithm == "EdDSA"
    named = signer.preferring((curve,))
    assert named.algorithm == curve
    assert ring(curve).verify(named.sign({"device_id": "d"})) == {"device_id": "d"}
    assert named.preferring(("EdDSA",)).algorithm == "EdDSA"


def test_a_proof_names_the_key_and_the_algorithm_and_shows_no_secret() -> None:
    keys = ring(*KIND_KEYS)
    again = KeyRing([verification_key(kind, "other kid") for kind in KIND_KEYS], ALGORITHMS)
    assert keys.proofs == again.proofs
    for kind, names in OURS.items():
        proofs = {keys.examine(token(KIND_KEYS[kind], KIND_ALGORITHMS[kind][0])).proof for _ in range(2)}
        ((digest, algorithm),) = proofs
        assert (digest, algorithm) in keys.proofs
        assert algorithm == names[0]
        assert SECRET.encode() not in digest


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_secret_signs_hmac(algorithm: str) -> None:
    text = Signer.from_secret("s" * 64, algorithm).sign({"a": 1})
    assert jwt.decode(text, "s" * 64, algorithms=[algorithm]) == {"a": 1}


def test_what_other_libraries_sign_verifies() -> None:
    text = jwt.encode({"device_id": "d"}, private_key("EC"), "ES256", headers={"kid": "k"})
    assert KeyRing([verification_key("EC", "k")]).verify(text) == {"device_id": "d"}


def test_a_signed_token_is_compact_and_keeps_the_order_of_its_claims() -> None:
    header, payload, _ = Signer.from_secret(SECRET).sign({"b": "é/", "a": [1, {}]}).split(".")
    assert header == part(b'{"alg":"HS256","typ":"JWT"}')
    assert payload == part('{"b":"é/","a":[1,{}]}'.encode())


def test_claims_that_utf_8_cannot_spell_are_signed_as_escapes() -> None:
    assert ring("secret").verify(Signer.from_secret(SECRET).sign({"a": "\ud800"})) == {"a": "\ud800"}


def test_a_key_that_cannot_sign_says_so() -> None:
    with pytest.raises(KeyMaterialError, match="no PEM private key"):
        Signer.from_pem(public_pem("RSA"), "test")
    with pytest.raises(KeyMaterialError, match="encrypted"):
        Signer.from_pem(private_pem("EC", ENCRYPTED), "test")
    with pytest.raises(KeyMaterialError, match="not RS256"):
        Signer.from_secret(SECRET, "RS256")
