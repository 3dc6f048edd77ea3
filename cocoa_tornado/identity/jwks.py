"""Key sets that change while the gateway runs: JWKS documents, key files, key URLs, and the store of all keys.

The web layer uses :class:`KeyStore`, which maps a token to a device without I/O if the key is known.
:class:`JwksSource` keeps the keys of one URL fresh. All of this runs on the IOLoop thread.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from jwt import PyJWK
from jwt.exceptions import PyJWTError

from ..errors import IdentityError, KeyMaterialError
from ..plain_files import is_utf16
from ..rules.identity import MIN_SECRET_BYTES, DeviceIdentity, TokenPolicy, check_claims
from .http_fetch import HttpFetch, shown_url
from .keys import (
    DEFAULT_ALGORITHMS,
    SECRET_ALGORITHMS,
    UNKNOWN_KEY,
    KeyRing,
    Proof,
    Signer,
    VerificationKey,
    asymmetric_key,
    keys_from_pem,
    read_key_file,
    secret_key,
)

MAX_SET_KEYS: Final = 100
# PyJWK derives the algorithm from kind and curve, without Ed448. asymmetric_key decides what a key may verify.
_ALGORITHM_OF: Final[Mapping[str, str]] = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA", "oct": "HS256"}

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]
"""Returns the document at a URL, within a bounded time and size, or raises KeyMaterialError."""

_log = logging.getLogger("cocoa.identity")


@dataclass(frozen=True, slots=True)
class KeySources:
    """The secrets, and the locations of keys.

    :ivar secrets: HMAC secrets; the first one signs, all of them verify
    :ivar locations: paths of PEM or JWKS files, and http(s) URLs of JWKS documents
    """

    secrets: tuple[str, ...] = field(default=(), repr=False)
    locations: tuple[str, ...] = field(default=(), repr=False)  # a URL may hold a password

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs among the locations, without duplicates."""
        return tuple(dict.fromkeys(location for location in self.locations if _is_url(location)))

    @property
    def files(self) -> tuple[str, ...]:
        """The files among the locations, without duplicates."""
        return tuple(dict.fromkeys(location for location in self.locations if not _is_url(location)))


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """How keys are used and refreshed.

    :ivar algorithms: the accepted signature algorithms
    :ivar refresh_s: the interval between two reads of a URL, varied by 10 %
    :ivar min_interval_s: the minimum interval if an unknown key causes the read
    :ivar weak_secrets: accept HMAC secrets under 32 bytes, with a warning
    """

    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
    refresh_s: float = 300.0
    min_interval_s: float = 10.0
    weak_secrets: bool = True


# --- Documents -----------------------------------------------------------------------------------------------------


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


def default_signer(sources: KeySources, algorithms: Collection[str] = DEFAULT_ALGORITHMS) -> Signer | None:
    """Return the signer for new tokens: the first secret, else the first private key among the files, else None.

    :param algorithms: the allowed algorithms; a secret uses the first HMAC algorithm of them
    :raises KeyMaterialError: a file cannot be read, or its private key is unusable
    """
    for_secrets = [name for name in SECRET_ALGORITHMS if name in algorithms]
    if sources.secrets and for_secrets:
        return Signer.from_secret(sources.secrets[0], for_secrets[0])
    for path in sources.files:
        if b"PRIVATE KEY-----" in read_key_file(path):
            return Signer.from_file(path).preferring(algorithms)
    return None


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


def _is_url(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


# --- One URL -------------------------------------------------------------------------------------------------------


class JwksSource:
    """The keys of one URL, refreshed in the background. While the URL fails, the last valid keys stay in use.

    Changes of state (available, changed, unavailable) are logged once; attempts are not logged.

    A key that disappears from the URL verifies no more tokens. The connections that it authenticated stay open until
    another read, at least ``min_interval_s`` later, lacks it too: during a rotation, replicas of a CDN may serve the
    old set again.

    :param clock: monotonic seconds
    :ivar on_change: called on the IOLoop after ``keys`` or ``missing`` has changed
    :ivar keys: the last valid set; empty before the first
    :ivar loaded: whether any read has succeeded
    :ivar problem: why the last attempt failed; ``""`` if it succeeded
    """

    def __init__(
        self,
        url: str,
        fetch: Fetch,
        on_change: Callable[[], None],
        *,
        refresh_s: float = 300.0,
        min_interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.keys: tuple[VerificationKey, ...] = ()
        self.loaded = False
        self.problem = "not read yet"
        self.on_change = on_change
        self._fetch, self._clock = fetch, clock
        self._refresh_s, self._min_interval_s = refresh_s, min_interval_s
        self._document: bytes | None = None  # None, as b"" is a possible response
        self._missing: dict[Hashable, tuple[VerificationKey, float]] = {}  # with the time since when
        self._pause_changed = asyncio.Event()
        self._failures = 0
        self._closed = False
        self._begun_at: float | None = None
        self._reading: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<JwksSource {shown_url(self.url)} {len(self.keys)} keys>"

    @property
    def missing(self) -> tuple[VerificationKey, ...]:
        """The keys that the latest read lacks, not yet confirmed by a second read."""
        return tuple(key for key, _ in self._missing.values())

    def confirm_missing(self) -> None:
        """Take the missing keys as removed. Does not call ``on_change``."""
        self._missing.clear()

    def keep_fresh(self) -> None:
        """Refresh in the background until :meth:`close`; the first read comes after one pause."""
        if self._keeper is None and not self._closed:
            self._keeper = asyncio.create_task(self._keep_fresh(), name=f"jwks {shown_url(self.url)}")

    def may_refresh(self) -> bool:
        """Whether an unknown key justifies a :meth:`refresh` now: a read is in progress, or the last one was at least
        ``min_interval_s`` ago."""
        if self._closed:
            return False
        if self._reading is not None or self._begun_at is None:
            return True
        return self._clock() - self._begun_at >= self._min_interval_s

    async def refresh(self) -> None:
        """Read the URL, or wait for the read in progress. Never fails. Cancelling a caller does not cancel the read."""
        if self._closed:
            return
        if self._reading is None:
            self._begun_at = self._clock()
            self._reading = asyncio.create_task(self._read(), name=f"jwks read {shown_url(self.url)}")
            self._reading.add_done_callback(self._read_over)
        await asyncio.wait({self._reading})

    async def close(self) -> None:
        """Stop refreshing; the keys remain."""
        self._closed = True
        tasks = {task for task in (self._keeper, self._reading) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _keep_fresh(self) -> None:
        while True:
            self._pause_changed.clear()
            # Not shorter than the interval while keys are missing, or the next read would be too early to confirm them.
            pause_s = self.pause_s() * random.uniform(1.0 if self._missing else 0.9, 1.1)
            try:
                async with asyncio.timeout(pause_s):
                    await self._pause_changed.wait()
            except TimeoutError:
                await self.refresh()

    def pause_s(self) -> float:
        """The pause before the next read, at most ``refresh_s``: shorter while keys are missing, and after a failure,
        from where it grows exponentially."""
        if not self._failures:
            return min(self._refresh_s, self._min_interval_s) if self._missing else self._refresh_s
        return min(self._refresh_s, self._min_interval_s * 2.0 ** min(self._failures - 1, 20))

    def _read_over(self, _: asyncio.Task[None]) -> None:
        self._reading = None

    async def _read(self) -> None:
        try:
            document = await self._fetch(self.url)
            keys = self.keys
            if document != self._document:
                keys = parse_jwks(document, shown_url(self.url), remote=True)
        except KeyMaterialError as error:
            self._failed(str(error))
        except Exception as error:
            # A bug must not end the refreshing: the next attempt may read another document.
            _log.exception("jwks read failed", extra={"url": shown_url(self.url)})
            self._failed(f"{shown_url(self.url)}: {type(error).__name__}")
        else:
            self._succeeded(document, keys)

    def _failed(self, problem: str) -> None:
        if not self._failures:
            extra = {"url": shown_url(self.url), "problem": problem, "keys_kept": len(self.keys)}
            _log.warning("jwks unavailable", extra=extra)
        self._failures += 1
        self.problem = problem

    def _succeeded(self, document: bytes, keys: tuple[VerificationKey, ...]) -> None:
        changed = document != self._document
        if changed or self._failures:
            event = "jwks changed" if changed and self.loaded else "jwks available"
            _log.info(event, extra={"url": shown_url(self.url), "keys": len(keys)})
        self._failures, self.problem, self.loaded = 0, "", True
        before = self._missing
        self._missing = self._missing_from(keys)
        if self._missing and not before:
            # A token with an unknown key may have caused this read, in the middle of a long pause.
            self._pause_changed.set()
        self._document, self.keys = document, keys
        if changed or self._missing != before:
            self.on_change()

    def _missing_from(self, keys: tuple[VerificationKey, ...]) -> dict[Hashable, tuple[VerificationKey, float]]:
        now = self._clock()
        missing = {_name_of(key): (key, now) for key in self.keys} | self._missing
        listed = {_name_of(key) for key in keys}
        return {
            name: (key, since)
            for name, (key, since) in missing.items()
            if name not in listed and now - since < self._min_interval_s
        }


def _name_of(key: VerificationKey) -> Hashable:
    """The identity of a key, equal for two reads of it. The ``kid`` is not part of it."""
    return key.digest(), key.algorithms


# --- The store -----------------------------------------------------------------------------------------------------


class KeyStore:
    """All keys of the gateway. Identifies the device that a token stands for.

    IOLoop thread only. Nothing is read before :meth:`start`. The sources of a store never change: a reload creates a
    :meth:`successor`, which replaces the store in one step.

    :param fetch: reads a URL
    :param clock: monotonic seconds, for the intervals between reads
    :ivar on_distrust: called when keys were removed; connections for which :meth:`still_trusts` is now False must be
        closed
    """

    def __init__(
        self,
        sources: KeySources,
        policy: TokenPolicy,
        options: KeyOptions | None = None,
        *,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self._options = options or KeyOptions()
        self._fetch = fetch or HttpFetch()
        self._clock = clock
        self._sources = sources
        self._local: tuple[VerificationKey, ...] = ()
        self._remote: dict[str, JwksSource] = {}
        self._ring = self._ring_of(())
        self._trusted: frozenset[Proof] = frozenset()
        self._successor: KeyStore | None = None
        self.on_distrust: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Read all keys once. A URL that fails does not fail the start: :meth:`status` reports it, and it is retried.

        :raises KeyMaterialError: no key is configured, or a secret or a file is unusable
        """
        await self._read({})
        self._judge(self._trusted)
        self._follow()

    async def successor(self, sources: KeySources) -> KeyStore:
        """Return a new store that has read ``sources``. URLs that stay configured keep their keys. This store is
        unchanged until the new one calls :meth:`succeed`.

        :raises KeyMaterialError: as for :meth:`start`
        """
        store = KeyStore(sources, self.policy, self._options, fetch=self._fetch, clock=self._clock)
        await store._read(self._remote)
        store._judge(self._trusted)
        return store

    async def succeed(self, before: KeyStore) -> None:
        """Replace the store that created this one with :meth:`successor`. The replacement happens before the first
        suspension; only then are the sources of removed URLs closed."""
        self.on_distrust, before._successor = before.on_distrust, self
        for source in self._remote.values():
            source.confirm_missing()  # the operator asked for it: no second read is needed
        self._trusted = before._trusted
        self._rebuild()
        self._follow()
        dropped = [source for url, source in before._remote.items() if url not in self._remote]
        await asyncio.gather(*(source.close() for source in dropped))

    def identify_now(self, token: str, now: float) -> DeviceIdentity | None:
        """Return the device without I/O; None if :meth:`identify` might find a newer key.

        :param now: Unix seconds
        :raises IdentityError: the token is rejected
        """
        try:
            verified = self._ring.examine(token)
        except IdentityError as error:
            if error.reason == UNKNOWN_KEY and any(source.may_refresh() for source in self._remote.values()):
                return None
            raise
        return check_claims(verified.claims, self.policy, now, verified.proof)

    async def identify(self, token: str, now: float) -> DeviceIdentity:
        """Return the device that the token stands for. Suspends only to fetch an unknown key.

        :param now: Unix seconds
        :raises IdentityError: the token is rejected
        """
        identity = self.identify_now(token, now)
        if identity is not None:
            return identity
        await asyncio.gather(*(source.refresh() for source in self._remote.values() if source.may_refresh()))
        store = self
        while store._successor is not None:
            store = store._successor  # reloaded meanwhile: only the successor gets the new keys
        verified = store._ring.examine(token)
        return check_claims(verified.claims, self.policy, now, verified.proof)

    def still_trusts(self, identity: DeviceIdentity) -> bool:
        """Whether the key that verified a device's token is still trusted.

        Until every configured URL has been read once, removed public keys remain trusted: such a URL may serve the same
        keys. Removed secrets lose trust at once, as they never come from a URL.
        """
        return identity.proof in self._trusted

    def status(self) -> tuple[bool, str]:
        """Return whether every source has been read once, and one line for operators. A later failure of a URL does not
        make it False."""
        problems = [source.problem for source in self._remote.values() if source.problem]
        ready = bool(self._ring.keys) and all(source.loaded for source in self._remote.values())
        return ready, "; ".join([self._ring.describe(), *problems])

    async def close(self) -> None:
        """Stop refreshing URLs. The known keys remain usable."""
        await asyncio.gather(*(source.close() for source in self._remote.values()))

    async def _read(self, known: Mapping[str, JwksSource]) -> None:
        """Read all sources; a known URL uses its existing :class:`JwksSource`."""
        local = _local_keys(self._sources, weak_secrets=self._options.weak_secrets)
        if not self._sources.urls and not self._ring_of(local).keys:
            allowed = ", ".join(self._options.algorithms)
            raise KeyMaterialError(f"no configured key fits any of the allowed algorithms ({allowed})")
        remote = {url: known.get(url) or self._source_of(url) for url in self._sources.urls}
        await asyncio.gather(*(source.refresh() for source in remote.values()))
        self._local, self._remote = local, remote

    def _follow(self) -> None:
        """Subscribe to the changes of all URLs, and refresh them."""
        for source in self._remote.values():
            source.on_change = self._rebuild
            source.keep_fresh()

    def _source_of(self, url: str) -> JwksSource:
        return JwksSource(
            url,
            self._fetch,
            lambda: None,
            refresh_s=self._options.refresh_s,
            min_interval_s=self._options.min_interval_s,
            clock=self._clock,
        )

    def _rebuild(self) -> None:
        before = self._trusted
        self._judge(before)
        if before - self._trusted:
            self.on_distrust()

    def _judge(self, before: frozenset[Proof]) -> None:
        """Which keys verify, and which of those that were trusted before still are."""
        remote = (key for source in self._remote.values() for key in source.keys)
        self._ring = self._ring_of((*self._local, *remote))
        missing = (key for source in self._remote.values() for key in source.missing)
        self._trusted = self._ring.proofs | self._ring_of(missing).proofs
        if not all(source.loaded for source in self._remote.values()):
            self._trusted |= {proof for proof in before if proof[1] not in SECRET_ALGORITHMS}

    def _ring_of(self, keys: Iterable[VerificationKey]) -> KeyRing:
        return KeyRing(keys, self._options.algorithms, self.policy.max_token_bytes)


def _local_keys(sources: KeySources, *, weak_secrets: bool) -> tuple[VerificationKey, ...]:
    if not sources.secrets and not sources.locations:
        raise KeyMaterialError("no key is configured: set a JWT secret or a JWT key")
    keys = [("jwt secret", secret_key(secret, "jwt secret")) for secret in sources.secrets]
    keys += [(f"key file {path}", key) for path in sources.files for key in keys_from_file(path)]
    for origin, key in keys:
        if isinstance(key.material, bytes) and len(key.material) < MIN_SECRET_BYTES and not weak_secrets:
            problem = f"has an HMAC secret of {len(key.material)} bytes; off loopback it needs {MIN_SECRET_BYTES}"
            raise KeyMaterialError(f"{origin}: {problem} or more (RFC 7518, 3.2)")
    return tuple(key for _, key in keys)
