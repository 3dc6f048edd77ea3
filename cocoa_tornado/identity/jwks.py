"""Sets of keys that change while the gateway runs: JWKS documents, files and URLs, and the store over all of them.

:class:`KeyStore` is what the web layer holds: it turns a token into a device, and never makes the IOLoop wait where
the key is already known. :class:`JwksSource` keeps the keys of one URL fresh. Everything here runs on the IOLoop.
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
# PyJWK guesses the algorithm by kind and curve, and then knows no Ed448. asymmetric_key judges what a key may verify.
_ALGORITHM_OF: Final[Mapping[str, str]] = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA", "oct": "HS256"}

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]
"""Returns the document at a URL; raises KeyMaterialError where it can't, within a bounded time and size."""

_log = logging.getLogger("cocoa.identity")


@dataclass(frozen=True, slots=True)
class KeySources:
    """Where the keys are.

    :ivar secrets: HMAC secrets; the first one signs, all of them verify
    :ivar locations: paths of PEM or JWKS files, and http(s) URLs of JWKS documents
    """

    secrets: tuple[str, ...] = field(default=(), repr=False)
    locations: tuple[str, ...] = field(default=(), repr=False)  # a URL may hold a password

    @property
    def urls(self) -> tuple[str, ...]:
        """The locations that are URLs, each once."""
        return tuple(dict.fromkeys(location for location in self.locations if _is_url(location)))

    @property
    def files(self) -> tuple[str, ...]:
        """The locations that are files, each once."""
        return tuple(dict.fromkeys(location for location in self.locations if not _is_url(location)))


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """How keys are used and kept fresh.

    :ivar algorithms: what tokens may be signed with
    :ivar refresh_s: how often a URL is read again, within 10 %
    :ivar min_interval_s: how long after one reading an unknown key may cause the next
    :ivar weak_secrets: HMAC secrets under 32 bytes are accepted, with a warning
    """

    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
    refresh_s: float = 300.0
    min_interval_s: float = 10.0
    weak_secrets: bool = True


# --- Documents -----------------------------------------------------------------------------------------------------


def parse_jwks(data: bytes, origin: str, *, remote: bool) -> tuple[VerificationKey, ...]:
    """Return the keys of a JWKS document, or of a single JWK, that can verify.

    Keys that cannot (for encryption, of other kinds, too small, contradictory) are skipped, with one log line for all
    of them; so are those beyond the first 100. Private halves are not read.

    :param remote: the document came over the network, where an HMAC secret has no business: it is skipped too
    :raises KeyMaterialError: it is not a JWKS, or nothing in it can be used
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        problem = "is text in UTF-16; save it as UTF-8" if is_utf16(data) else "is neither a PEM nor a JWKS document"
        raise KeyMaterialError(f"{origin}: {problem}") from error
    entries = document.get("keys", [document] if "kty" in document else None) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise KeyMaterialError(f"{origin}: is not a JWKS document: it has no array `keys`")
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
        raise KeyMaterialError(f"{origin}: holds no key that can be used ({'; '.join(skipped) or 'it is empty'})"[:500])
    if skipped:
        _log.warning("jwks keys skipped", extra={"origin": origin, "skipped": "; ".join(skipped)[:500]})
    return tuple(keys)


def keys_from_file(path: str) -> tuple[VerificationKey, ...]:
    """Return the keys of a PEM or JWKS file; its content decides which it is.

    :raises KeyMaterialError: it cannot be read, or holds no key that can be used
    """
    data, origin = read_key_file(path), f"key file {path}"
    if b"-----BEGIN" in data and not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return keys_from_pem(data, origin)
    return parse_jwks(data, origin, remote=False)


def default_signer(sources: KeySources, algorithms: Collection[str] = DEFAULT_ALGORITHMS) -> Signer | None:
    """Return the signer for new tokens: the first secret, else the first private PEM among the files, else None.

    :param algorithms: what may be signed with; a secret takes the first HMAC algorithm among them
    :raises KeyMaterialError: a file cannot be read, or a private key in it cannot be used
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
    # "sign" is the private half's operation; the public half of such a key verifies what it signs.
    if entry.get("use", "sig") != "sig" or (
        isinstance(operations, list) and "verify" not in operations and "sign" not in operations
    ):
        raise KeyMaterialError(f"{origin}: is not for signatures")
    key = _material_of(entry, origin, kid, remote=remote)
    if algorithm is None:
        return key
    if algorithm not in key.algorithms:
        raise KeyMaterialError(f"{origin}: alg is not one for its kind")
    # Of the Edwards curves one algorithm has two names, and either stands for both.
    return VerificationKey((algorithm,), key.material, kid) if key.is_secret else key


def _material_of(entry: Mapping[str, object], origin: str, kid: str | None, *, remote: bool) -> VerificationKey:
    # Only what makes the public key is handed on: a private half is neither needed nor kept.
    public = {name: entry[name] for name in ("kty", "crv", "n", "e", "x", "y", "k") if name in entry}
    kind = entry.get("kty")
    if not isinstance(kind, str) or kind not in _ALGORITHM_OF or (kind == "oct" and remote):
        raise KeyMaterialError(f"{origin}: its kind is not used here")
    try:
        material = PyJWK(public, _ALGORITHM_OF[kind]).key
    # What the parsers raise for members that are missing, mistyped or no key of that kind.
    except (PyJWTError, ValueError, TypeError, KeyError) as error:
        raise KeyMaterialError(f"{origin}: cannot be parsed") from error
    return secret_key(material, origin, kid) if kind == "oct" else asymmetric_key(material, origin, kid)


def _is_url(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


# --- One URL -------------------------------------------------------------------------------------------------------


class JwksSource:
    """The keys of one URL, kept fresh; what was read last stays good while the URL fails.

    The log has one line for each change of state (read, changed, failing, back), none for each attempt.

    A key that one reading lacks verifies no more tokens, but keeps its trust until another reading, ``min_interval_s``
    later or more, lacks it too: during a rotation the replicas of a CDN may answer with the old set once more.

    :param clock: monotonic seconds
    :ivar on_change: called on the IOLoop after ``keys`` or ``missing`` has changed
    :ivar keys: the last good set; empty before the first
    :ivar loaded: there has been a good set
    :ivar problem: why the last attempt failed; ``""`` where it did not
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
        self._document: bytes | None = None  # not b"", which a server may send
        self._missing: dict[Hashable, tuple[VerificationKey, float]] = {}  # and since when, by the monotonic clock
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
        """Keys that the latest reading lacks and that no other one has confirmed to be gone."""
        return tuple(key for key, _ in self._missing.values())

    def confirm_missing(self) -> None:
        """The latest reading is final: what it lacks is gone. Calls nothing."""
        self._missing.clear()

    def keep_fresh(self) -> None:
        """Go on reading in the background until :meth:`close`; the first time after one pause."""
        if self._keeper is None and not self._closed:
            self._keeper = asyncio.create_task(self._keep_fresh(), name=f"jwks {shown_url(self.url)}")

    def may_refresh(self) -> bool:
        """Say whether an unknown key is worth a :meth:`refresh` now: one is under way, or the last one is long ago."""
        if self._closed:
            return False
        if self._reading is not None or self._begun_at is None:
            return True
        return self._clock() - self._begun_at >= self._min_interval_s

    async def refresh(self) -> None:
        """Read the URL, or wait for the reading under way; never fails. Callers may be cancelled freely."""
        if self._closed:
            return
        if self._reading is None:
            self._begun_at = self._clock()
            self._reading = asyncio.create_task(self._read(), name=f"jwks read {shown_url(self.url)}")
            self._reading.add_done_callback(self._read_over)
        await asyncio.wait({self._reading})

    async def close(self) -> None:
        """Stop for good; the keys stay as they are."""
        self._closed = True
        tasks = {task for task in (self._keeper, self._reading) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _keep_fresh(self) -> None:
        while True:
            self._pause_changed.clear()
            # Never less than the whole interval: the reading that confirms a missing key would come too early for it.
            pause_s = self.pause_s() * random.uniform(1.0 if self._missing else 0.9, 1.1)
            try:
                async with asyncio.timeout(pause_s):
                    await self._pause_changed.wait()
            except TimeoutError:
                await self.refresh()

    def pause_s(self) -> float:
        """The pause before the next reading: shorter while keys are missing and at first after a failure, never longer
        than ``refresh_s``."""
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
            # A fault of ours must not end the refreshing: the next attempt may meet another document.
            _log.exception("jwks reading broke", extra={"url": shown_url(self.url)})
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
            # A token with an unknown key may have caused this reading, in the middle of a long pause.
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
    """The same for two readings of one key; its ``kid`` is no part of it."""
    return key.digest(), key.algorithms


# --- The store -----------------------------------------------------------------------------------------------------


class KeyStore:
    """All keys of the gateway, and the question that they answer: which device does this token stand for?

    Lives on the IOLoop. Nothing is read before :meth:`start`. Where the keys are never changes: a reload makes a
    :meth:`successor`, which takes over at once or not at all.

    :param fetch: how to read a URL
    :param clock: monotonic seconds, for the pace of reading URLs
    :ivar on_distrust: called when keys are gone: devices of which :meth:`still_trusts` now says False must be closed
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
        """Read all keys once. A URL that fails does not fail the start: :meth:`status` says so, and it is retried.

        :raises KeyMaterialError: there is no key at all to read, or a secret or a file cannot be used
        """
        await self._read({})
        self._judge(self._trusted)
        self._follow()

    async def successor(self, sources: KeySources) -> KeyStore:
        """Return a store of other sources that has read them all; URLs that stay keep their keys. It is to
        :meth:`succeed` this one, which knows nothing of it until then.

        :raises KeyMaterialError: as for :meth:`start`
        """
        store = KeyStore(sources, self.policy, self._options, fetch=self._fetch, clock=self._clock)
        await store._read(self._remote)
        store._judge(self._trusted)
        return store

    async def succeed(self, before: KeyStore) -> None:
        """Take over from the store whose :meth:`successor` this is. All but the end of the URLs that are gone happens
        before the first suspension."""
        self.on_distrust, before._successor = before.on_distrust, self
        for source in self._remote.values():
            source.confirm_missing()  # a reload is the operator's word: what is gone is gone at once
        self._trusted = before._trusted
        self._rebuild()
        self._follow()
        dropped = [source for url, source in before._remote.items() if url not in self._remote]
        await asyncio.gather(*(source.close() for source in dropped))

    def identify_now(self, token: str, now: float) -> DeviceIdentity | None:
        """Return the device where that can be said at once; None where :meth:`identify` might find a newer key.

        :param now: Unix seconds
        :raises IdentityError: the token is refused
        """
        try:
            verified = self._ring.examine(token)
        except IdentityError as error:
            if error.reason == UNKNOWN_KEY and any(source.may_refresh() for source in self._remote.values()):
                return None
            raise
        return check_claims(verified.claims, self.policy, now, verified.proof)

    async def identify(self, token: str, now: float) -> DeviceIdentity:
        """Return the device that the token stands for; suspends only to look for a key that is not known yet.

        :param now: Unix seconds
        :raises IdentityError: the token is refused
        """
        identity = self.identify_now(token, now)
        if identity is not None:
            return identity
        await asyncio.gather(*(source.refresh() for source in self._remote.values() if source.may_refresh()))
        store = self
        while store._successor is not None:
            store = store._successor  # reloaded meanwhile: only that one hears what has been read
        verified = store._ring.examine(token)
        return check_claims(verified.claims, self.policy, now, verified.proof)

    def still_trusts(self, identity: DeviceIdentity) -> bool:
        """Whether the key that vouched for a device may still do so.

        While a URL that is configured has never been read, public keys that are gone keep their trust: that URL may be
        the new place of the very same keys. Secrets never come from a URL, and lose it at once.
        """
        return identity.proof in self._trusted

    def status(self) -> tuple[bool, str]:
        """Return whether every source has been read, and one line for people. A URL failing later is still True."""
        problems = [source.problem for source in self._remote.values() if source.problem]
        ready = bool(self._ring.keys) and all(source.loaded for source in self._remote.values())
        return ready, "; ".join([self._ring.describe(), *problems])

    async def close(self) -> None:
        """Stop reading URLs. The keys that are known go on verifying."""
        await asyncio.gather(*(source.close() for source in self._remote.values()))

    async def _read(self, known: Mapping[str, JwksSource]) -> None:
        """Read everything, URLs that are known already through their own sources."""
        local = _local_keys(self._sources, weak_secrets=self._options.weak_secrets)
        if not self._sources.urls and not self._ring_of(local).keys:
            allowed = ", ".join(self._options.algorithms)
            raise KeyMaterialError(f"no key that is configured serves any of the algorithms allowed ({allowed})")
        remote = {url: known.get(url) or self._source_of(url) for url in self._sources.urls}
        await asyncio.gather(*(source.refresh() for source in remote.values()))
        self._local, self._remote = local, remote

    def _follow(self) -> None:
        """From now on, hear of every change of a URL."""
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
            problem = f"holds an HMAC secret of {len(key.material)} bytes; off loopback it needs {MIN_SECRET_BYTES}"
            raise KeyMaterialError(f"{origin}: {problem} or more (RFC 7518, 3.2)")
    return tuple(key for _, key in keys)
