"""Keys: verifying compact JWS (:class:`KeyRing`) and signing them (:class:`Signer`).

A key's type determines its algorithms when the key is loaded; the token's header never does. A secret verifies HMAC
only, an RSA key RS256, a P-256 key ES256, an Ed25519 or Ed448 key EdDSA, which RFC 9864 also names after the curve.
PyJWT and cryptography compute the signatures. The token is parsed here, more strictly than JOSE libraries do: each
signature has one valid encoding, and a JSON object must not repeat a name. The rules for claims are in
``cocoa_tornado.rules.identity``.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import itertools
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from jwt.algorithms import Algorithm, ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from ..errors import IdentityError, InvalidClaims, InvalidToken, KeyMaterialError
from ..plain_files import read_file
from ..rules.identity import MAX_TOKEN_BYTES, MIN_SECRET_BYTES

DEFAULT_ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")
ALGORITHMS: Final = ("HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA", "Ed25519", "Ed448")
SECRET_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
EDDSA: Final = "EdDSA"
EDWARDS_ALGORITHMS: Final = ("Ed25519", "Ed448")
"""RFC 9864 names each curve by itself. ``EdDSA`` is RFC 8037's name for both of them."""
UNKNOWN_KEY: Final = "unknown_key"
"""The reason for rejecting a token whose asymmetric key is unknown. A newer key set may have it."""

MAX_FILE_BYTES: Final = 1 << 20
_MAX_TRIED_KEYS: Final = 16
_MAX_KNOWN_HEADERS: Final = 16
_MIN_RSA_BITS: Final = 2048
# Base64 with the URL alphabet (RFC 4648, section 5). The base64 module does the same in four calls.
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")
_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_HASHES: Final = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey
PrivateKey: TypeAlias = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey
Proof: TypeAlias = tuple[bytes, str]
"""The digest of the key that verified a token, and the algorithm. Equal for two reads of one key."""
_UNSUPPORTED: Final = "unsupported key type; use RSA, EC P-256, Ed25519 or Ed448"

_log = logging.getLogger("cocoa.identity")
_IMPLEMENTATIONS: Final[Mapping[str, Algorithm]] = {
    "HS256": HMACAlgorithm(HMACAlgorithm.SHA256),
    "HS384": HMACAlgorithm(HMACAlgorithm.SHA384),
    "HS512": HMACAlgorithm(HMACAlgorithm.SHA512),
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256),
    "EdDSA": OKPAlgorithm(),
    "Ed25519": OKPAlgorithm(),
    "Ed448": OKPAlgorithm(),
}
_PEM_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A parsed verification key.

    :ivar algorithms: the only algorithms that it is used for
    :ivar kid: its id in a key set, or None
    """

    algorithms: tuple[str, ...]
    material: bytes | PublicKey = field(repr=False)
    kid: str | None = None

    @property
    def is_secret(self) -> bool:
        return isinstance(self.material, bytes)

    def digest(self) -> bytes:
        """A hash that identifies the key, without its ``kid``. It reveals nothing about a secret."""
        if isinstance(self.material, bytes):
            return hashlib.sha256(b"secret:" + self.material).digest()
        public = self.material.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(b"public:" + public).digest()


# --- Loading -------------------------------------------------------------------------------------------------------


def secret_key(secret: str | bytes, origin: str, kid: str | None = None) -> VerificationKey:
    """Return the key for an HMAC secret.

    Logs a warning if the secret is shorter than the hash (32 bytes). ``KeyStore`` decides whether it is accepted.

    :param origin: the setting or file that the secret came from, for errors and the log
    :raises KeyMaterialError: the secret is empty, or is a PEM, a JWK or another key, which may be public
    """
    checked = _checked_secret(secret, origin)
    if len(checked) < MIN_SECRET_BYTES:
        extra = {"origin": origin, "bytes": len(checked), "advised_bytes": MIN_SECRET_BYTES}
        _log.warning("weak jwt secret", extra=extra)
    return VerificationKey(SECRET_ALGORITHMS, checked, kid)


def keys_from_pem(data: bytes, origin: str) -> tuple[VerificationKey, ...]:
    """Return the public keys of all PEM blocks in ``data``, including private keys and certificates.

    The dates and the issuer of a certificate are not checked.

    :raises KeyMaterialError: a block is unusable, or there is none
    """
    keys = []
    for label, block in _pem_blocks(data):
        if label.endswith("PRIVATE KEY"):
            public: object = _private_key(block, origin).public_key()
        else:
            public = _public_key(label, block, origin)
        keys.append(asymmetric_key(public, origin))
    if not keys:
        raise KeyMaterialError(f"{origin}: has no PEM key")
    return tuple(keys)


def asymmetric_key(public: object, origin: str, kid: str | None = None) -> VerificationKey:
    """Return the key for a public key of the ``cryptography`` library.

    :raises KeyMaterialError: its type, curve or size is unsupported
    """
    if isinstance(public, RSAPublicKey):
        if public.key_size < _MIN_RSA_BITS:
            raise KeyMaterialError(f"{origin}: RSA key of {public.key_size} bits; at least {_MIN_RSA_BITS} are needed")
        return VerificationKey(("RS256",), public, kid)
    if isinstance(public, EllipticCurvePublicKey):
        if not isinstance(public.curve, SECP256R1):
            raise KeyMaterialError(f"{origin}: EC key on the curve {public.curve.name}; only P-256 is supported")
        return VerificationKey(("ES256",), public, kid)
    if isinstance(public, Ed25519PublicKey):
        return VerificationKey((EDDSA, "Ed25519"), public, kid)
    if isinstance(public, Ed448PublicKey):
        return VerificationKey((EDDSA, "Ed448"), public, kid)
    raise KeyMaterialError(f"{origin}: {_UNSUPPORTED}")


def read_key_file(path: Path | str) -> bytes:
    """Return the bytes of a key file.

    :raises KeyMaterialError: it cannot be read, is not a regular file, or is larger than 1 MiB
    """
    try:
        data = read_file(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        problem = error.strerror if isinstance(error, OSError) else str(error)
        raise KeyMaterialError(f"key file {path}: cannot be read: {problem}") from error
    if len(data) > MAX_FILE_BYTES:
        raise KeyMaterialError(f"key file {path}: larger than {MAX_FILE_BYTES} bytes")
    return data


def _checked_secret(secret: str | bytes, origin: str) -> bytes:
    if not secret:
        raise KeyMaterialError(f"{origin}: is empty")
    try:
        # A secret in the environment may be any bytes; os.environ represents bytes outside UTF-8 as surrogates.
        raw = secret.encode("utf-8", "surrogateescape") if isinstance(secret, str) else secret
        if b"-----BEGIN" in raw or _is_jwk(raw):
            raise InvalidKeyError("a PEM or a JWK is not a secret")
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(raw)
    except UnicodeEncodeError:
        raise KeyMaterialError(f"{origin}: the secret is not text") from None  # the cause would show the secret
    except InvalidKeyError as error:
        problem = "is a public or private key, which must not be used as an HMAC secret"
        raise KeyMaterialError(f"{origin}: {problem}") from error


def _is_jwk(data: bytes) -> bool:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and ("kty" in document or "keys" in document)


def _pem_blocks(data: bytes) -> Iterable[tuple[str, bytes]]:
    for match in _PEM_BLOCK.finditer(data):
        label = match.group(1).decode("ascii")
        if label != "EC PARAMETERS":  # openssl writes them before the key, which names its curve itself
            yield label, match.group(0)


def _private_key(block: bytes, origin: str) -> PrivateKey:
    try:
        key = load_pem_private_key(block, password=None)
    except TypeError as error:
        raise KeyMaterialError(
            f"{origin}: the private key is encrypted; decrypt it first: openssl pkey -in KEY -out PLAIN-KEY"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyMaterialError(f"{origin}: has a private key that cannot be parsed") from error
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey):
        raise KeyMaterialError(f"{origin}: {_UNSUPPORTED}")
    return key


def _public_key(label: str, block: bytes, origin: str) -> object:
    try:
        if label == "CERTIFICATE":
            return x509.load_pem_x509_certificate(block).public_key()
        if label.endswith("PUBLIC KEY"):
            return load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyMaterialError(f"{origin}: has a {label.lower()} that cannot be parsed") from error
    raise KeyMaterialError(f"{origin}: has a {label.lower()}, which is not a key; a PUBLIC KEY is required")


# --- Verifying -----------------------------------------------------------------------------------------------------


class Verified(NamedTuple):
    """The claims of a verified token, and the proof that verified it."""

    claims: Mapping[str, object]
    proof: Proof


class _Known(NamedTuple):
    """The secret that verified a token with a certain header."""

    secret: bytes
    hash_name: str
    proof: Proof


class KeyRing:
    """An immutable set of keys.

    All tokens of an issuer usually have the same header. Once a secret has verified a token with some header, the next
    token with that header is checked against that secret first, before anything is decoded. If the MAC does not match,
    the token is examined in full, so the result is the same.

    An Edwards key verifies both ``EdDSA`` and the name of its curve if either is allowed, as they are one algorithm.
    ``EdDSA`` allows both curves.

    :param algorithms: tokens with other algorithms are rejected, even if a key could verify them
    :ivar proofs: the proofs that this set can give
    """

    __slots__ = ("_by_algorithm", "_known", "_max_token_bytes", "keys", "proofs")

    def __init__(
        self,
        keys: Iterable[VerificationKey],
        algorithms: Collection[str] = DEFAULT_ALGORITHMS,
        max_token_bytes: int = MAX_TOKEN_BYTES,
    ) -> None:
        curves = {name for name in EDWARDS_ALGORITHMS if EDDSA in algorithms or name in algorithms}
        precise = {*algorithms, *curves} - {EDDSA}
        accepted = {*precise, EDDSA} if curves else precise
        self.keys = tuple(key for key in keys if not precise.isdisjoint(key.algorithms))
        self._max_token_bytes = max_token_bytes
        proven = [(key, key.digest()) for key in self.keys]
        self._by_algorithm: dict[str, tuple[tuple[VerificationKey, Proof], ...]] = {
            name: tuple((key, (digest, name)) for key, digest in proven if name in key.algorithms)
            for name in ALGORITHMS
            if name in accepted
        }
        self._known: dict[bytes, _Known] = {}
        self.proofs = frozenset(proof for keys in self._by_algorithm.values() for _, proof in keys)

    def __repr__(self) -> str:
        return f"<KeyRing {self.describe()}>"

    def describe(self) -> str:
        """Return one line for operators: the number of keys, and their algorithms."""
        names = [name for name, keys in self._by_algorithm.items() if keys]
        return f"{len(self.keys)} {'key' if len(self.keys) == 1 else 'keys'} ({', '.join(names) or 'none'})"

    def verify(self, token: str) -> Mapping[str, object]:
        """Return the claims of :meth:`examine`."""
        return self.examine(token).claims

    def examine(self, token: str) -> Verified:
        """Verify a token's signature and return its claims, unchecked.

        A ``kid`` selects the key with that id, else the keys without an id are tried; without a ``kid`` all keys are
        tried. At most 16 keys are tried per token.

        :raises InvalidToken: ``too_long``, ``malformed``, ``algorithm``, ``critical``, ``unknown_key``, ``signature``,
            or ``duplicate`` for a header that repeats a name
        :raises InvalidClaims: ``duplicate``: the signature is valid, but a claim is repeated
        """
        if len(token) > self._max_token_bytes:
            raise InvalidToken("too_long")
        return self._examine_known(token) or self._examine_in_full(token)

    def _examine_known(self, token: str) -> Verified | None:
        """Verify with the secret known for the token's header. None means undecided."""
        try:
            message, _, signature = token.encode("ascii").rpartition(b".")
            header, _, payload = message.partition(b".")
            known = self._known.get(header)
            if known is None:
                return None
            expected = _encode_part(hmac.digest(known.secret, message, known.hash_name))
            if not hmac.compare_digest(expected, signature):
                return None
            return Verified(_json_object(_decode_part(payload), InvalidClaims), known.proof)
        except ValueError:  # not ASCII, not three parts, not base64url
            return None

    def _examine_in_full(self, token: str) -> Verified:
        signed = _split(token)
        header = _json_object(signed.header, InvalidToken)
        if "crit" in header:
            raise InvalidToken("critical")
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or not (kid is None or isinstance(kid, str)):
            raise InvalidToken("malformed")
        key, proof = self._check_signature(signed, algorithm, kid)
        if isinstance(key.material, bytes) and len(self._known) < _MAX_KNOWN_HEADERS:
            # Only an owner of the secret can add an entry.
            header_part = signed.message.partition(b".")[0]
            self._known[header_part] = _Known(key.material, _HASHES[algorithm], proof)
        return Verified(_json_object(signed.payload, InvalidClaims), proof)

    def _check_signature(self, signed: _Signed, algorithm: str, kid: str | None) -> tuple[VerificationKey, Proof]:
        keys = self._by_algorithm.get(algorithm)
        asymmetric = algorithm not in SECRET_ALGORITHMS
        if keys is None or not (keys or asymmetric):
            raise InvalidToken("algorithm")
        named = [entry for entry in keys if entry[0].kid == kid]
        # Cases: the kid names a key; no kid in the token, so any key may fit; an unknown kid, so only keys that were
        # loaded without an id (a PEM or a secret) may fit.
        known = named and kid is not None
        candidates = named if known else [entry for entry in keys if kid is None or entry[0].kid is None]
        implementation = _IMPLEMENTATIONS[algorithm]
        for key, proof in itertools.islice(candidates, _MAX_TRIED_KEYS):
            if implementation.verify(signed.message, key.material, signed.signature):
                return key, proof
        unknown = asymmetric and (not keys or (kid is not None and not named))
        raise InvalidToken(UNKNOWN_KEY if unknown else "signature")


class _Signed(NamedTuple):
    message: bytes
    header: bytes
    payload: bytes
    signature: bytes


def _split(token: str) -> _Signed:
    try:
        message, _, signature = token.encode("ascii").rpartition(b".")
        header, payload = message.split(b".")
        return _Signed(message, _decode_part(header), _decode_part(payload), _decode_part(signature))
    except ValueError as error:  # not ASCII, not three parts, not base64url
        raise InvalidToken("malformed") from error


def _decode_part(part: bytes) -> bytes:
    raw = binascii.a2b_base64(part.translate(_FROM_URL) + b"=" * (-len(part) % 4))
    # The decoder ignores foreign characters and the unused bits of the last character. Accept one encoding only.
    if not raw or _encode_part(raw) != part:
        raise binascii.Error("not base64url")
    return raw


class _DuplicateNameError(ValueError):
    """A JSON object repeats a name; parsers disagree about which member counts."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _DuplicateNameError
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _json_object(data: bytes, on_duplicate: type[IdentityError]) -> dict[str, object]:
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except _DuplicateNameError as error:
        raise on_duplicate("duplicate") from error
    except (ValueError, RecursionError) as error:
        raise InvalidToken("malformed") from error
    if not isinstance(value, dict):
        raise InvalidToken("malformed")
    return value


# --- Signing -------------------------------------------------------------------------------------------------------


class Signer:
    """Signs claims with one key and one algorithm.

    :param others: further algorithms that the key supports
    :ivar algorithm: the ``alg`` in the header of its tokens
    """

    __slots__ = ("_header", "_key", "algorithm", "others")

    def __init__(self, key: bytes | PrivateKey, algorithm: str, others: Collection[str] = ()) -> None:
        self.algorithm, self.others = algorithm, tuple(others)
        self._key = key
        self._header = _encode_part(compact_json({"alg": algorithm, "typ": "JWT"}))

    def __repr__(self) -> str:
        return f"<Signer {self.algorithm}>"

    @classmethod
    def from_secret(cls, secret: str | bytes, algorithm: str = "HS256", origin: str = "jwt secret") -> Signer:
        """Return a signer with an HMAC secret.

        :raises KeyMaterialError: see :func:`secret_key`; or the algorithm is not one of HS256, HS384, HS512
        """
        if algorithm not in SECRET_ALGORITHMS:
            raise KeyMaterialError(f"{origin}: a secret supports {', '.join(SECRET_ALGORITHMS)}, not {algorithm}")
        return cls(_checked_secret(secret, origin), algorithm)

    @classmethod
    def from_pem(cls, data: bytes, origin: str) -> Signer:
        """Return a signer with the first private key in a PEM; the key's type determines the algorithm.

        :raises KeyMaterialError: there is no private key, or an unsupported one
        """
        for label, block in _pem_blocks(data):
            if label.endswith("PRIVATE KEY"):
                private = _private_key(block, origin)
                first, *others = asymmetric_key(private.public_key(), origin).algorithms
                return cls(private, first, others)
        raise KeyMaterialError(f"{origin}: has no PEM private key")

    @classmethod
    def from_file(cls, path: Path | str) -> Signer:
        """Return :meth:`from_pem` of a file."""
        return cls.from_pem(read_key_file(path), f"key file {path}")

    def preferring(self, algorithms: Collection[str]) -> Signer:
        """Return a signer with the same key and an algorithm among ``algorithms``; this one if none fits."""
        fitting = [name for name in (self.algorithm, *self.others) if name in algorithms]
        if not fitting or fitting[0] == self.algorithm:
            return self
        return Signer(self._key, fitting[0], {self.algorithm, *self.others} - {fitting[0]})

    def sign(self, claims: Mapping[str, object]) -> str:
        """Return the compact JWS of ``claims``, in their order."""
        message = self._header + b"." + _encode_part(compact_json(claims))
        signature = _IMPLEMENTATIONS[self.algorithm].sign(message, self._key)
        return (message + b"." + _encode_part(signature)).decode("ascii")


def compact_json(value: object) -> bytes:
    """Return JSON without whitespace and with only the required escapes; lone surrogates stay escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _encode_part(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=")
