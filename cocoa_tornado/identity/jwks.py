"""Key documents: JWKS, single JWKs, and key files in either format."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Final

from jwt import PyJWK
from jwt.exceptions import PyJWTError

from ..errors import KeyMaterialError
from ..plain_files import is_utf16
from .keys import VerificationKey, asymmetric_key, keys_from_pem, read_key_file, secret_key

MAX_SET_KEYS: Final = 100
# PyJWK derives the algorithm from kind and curve, without Ed448. asymmetric_key decides what a key may verify.
_ALGORITHM_OF: Final[Mapping[str, str]] = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA", "oct": "HS256"}

_log = logging.getLogger("cocoa.identity")


def parse_jwks(data: bytes, origin: str, *, remote: bool) -> tuple[VerificationKey, ...]:
    """Return the verification keys of a JWKS document or a single JWK.

    Unusable keys (for encryption, of other types, too small, contradictory) and keys beyond the first 100 are skipped,
    with one log line for all of them. Private members are not read.

    :param remote: the document came over the network; HMAC secrets are then skipped too, as they must not be published
    :raises KeyMaterialError: it is not a JWKS, or has no usable key
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        problem = "is text in UTF-16; save it as UTF-8" if is_utf16(data) else "is neither a PEM nor a JWKS document"
        raise KeyMaterialError(f"{origin}: {problem}") from error
    entries = document.get("keys", [document] if "kty" in document else None) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise KeyMaterialError(f"{origin}: is not a JWKS document: it has no `keys` array")
    keys: list[VerificationKey] = []
    skipped: list[str] = []
    for position, entry in enumerate(entries[:MAX_SET_KEYS]):
        try:
            keys.append(_key_of(entry, f"key {position}", remote=remote))
        except KeyMaterialError as error:
            skipped.append(str(error))
    if len(entries) > MAX_SET_KEYS:
        skipped.append(f"all beyond the first {MAX_SET_KEYS}")
    if not keys:
        raise KeyMaterialError(f"{origin}: has no usable key ({'; '.join(skipped) or 'it is empty'})"[:500])
    if skipped:
        _log.warning("jwks keys skipped", extra={"origin": origin, "skipped": "; ".join(skipped)[:500]})
    return tuple(keys)


def keys_from_file(path: str) -> tuple[VerificationKey, ...]:
    """Return the keys of a PEM or JWKS file; the content decides the format.

    :raises KeyMaterialError: the file cannot be read, or has no usable key
    """
    data, origin = read_key_file(path), f"key file {path}"
    if b"-----BEGIN" in data and not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return keys_from_pem(data, origin)
    return parse_jwks(data, origin, remote=False)


def _key_of(entry: object, origin: str, *, remote: bool) -> VerificationKey:
    if not isinstance(entry, dict):
        raise KeyMaterialError(f"{origin}: is not an object")
    kid, operations, algorithm = entry.get("kid"), entry.get("key_ops"), entry.get("alg")
    if kid is not None and not isinstance(kid, str):
        raise KeyMaterialError(f"{origin}: kid is not a string")
    # A key whose operation is "sign" is private; its public half verifies its signatures.
    if entry.get("use", "sig") != "sig" or (
        isinstance(operations, list) and "verify" not in operations and "sign" not in operations
    ):
        raise KeyMaterialError(f"{origin}: is not for signatures")
    key = _material_of(entry, origin, kid, remote=remote)
    if algorithm is None:
        return key
    if algorithm not in key.algorithms:
        raise KeyMaterialError(f"{origin}: alg does not match its kty")
    # An algorithm on an Edwards curve has two names; a key with either name verifies both.
    return VerificationKey((algorithm,), key.material, kid) if key.is_secret else key


def _material_of(entry: Mapping[str, object], origin: str, kid: str | None, *, remote: bool) -> VerificationKey:
    # Only the public members: the private ones are neither needed nor kept.
    public = {name: entry[name] for name in ("kty", "crv", "n", "e", "x", "y", "k") if name in entry}
    kind = entry.get("kty")
    if not isinstance(kind, str) or kind not in _ALGORITHM_OF or (kind == "oct" and remote):
        raise KeyMaterialError(f"{origin}: its kty is not supported")
    try:
        material = PyJWK(public, _ALGORITHM_OF[kind]).key
    # The parsers raise these for members that are missing, mistyped or invalid.
    except (PyJWTError, ValueError, TypeError, KeyError) as error:
        raise KeyMaterialError(f"{origin}: cannot be parsed") from error
    return secret_key(material, origin, kid) if kind == "oct" else asymmetric_key(material, origin, kid)
