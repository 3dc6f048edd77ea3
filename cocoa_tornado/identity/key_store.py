"""All keys of the gateway: which ones are configured, and which device a token identifies. IOLoop thread only.

The web layer uses :class:`KeyStore`, which maps a token to a device without I/O if the key is known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import IdentityError, KeyMaterialError
from ..rules.identity import MIN_SECRET_BYTES, DeviceIdentity, TokenPolicy, check_claims
from .http_fetch import HttpFetch
from .jwks import keys_from_file
from .jwks_source import Fetch, JwksSource
from .keys import (
    DEFAULT_ALGORITHMS,
    SECRET_ALGORITHMS,
    UNKNOWN_KEY,
    KeyRing,
    Proof,
    Signer,
    VerificationKey,
    Verified,
    read_key_file,
    secret_key,
)


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


def _is_url(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


class KeyStore:
    """All keys of the gateway. Identifies the device of a token.

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
        await self.read()
        self.follow()

    async def read(self) -> None:
        """Read all keys once, as :meth:`start`, and do not refresh them yet."""
        await self._read({})
        self._judge(self._trusted)

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
        self.follow()
        dropped = [source for url, source in before._remote.items() if url not in self._remote]
        await asyncio.gather(*(source.close() for source in dropped))

    def identify_now(self, token: str, now: float) -> DeviceIdentity | None:
        """Return the device without I/O; None if :meth:`identify` might find a newer key.

        :param now: Unix seconds
        :raises IdentityError: the token is rejected
        """
        verified = self._examine_now(token)
        return None if verified is None else check_claims(verified.claims, self.policy, now, verified.proof)

    async def identify(self, token: str, now: float) -> DeviceIdentity:
        """Return the device that the token identifies. Suspends only to fetch an unknown key.

        :param now: Unix seconds
        :raises IdentityError: the token is rejected
        """
        verified = await self.examine(token)
        return check_claims(verified.claims, self.policy, now, verified.proof)

    async def examine(self, token: str) -> Verified:
        """Verify the signature of a token and return its claims, unchecked. Suspends only to fetch an unknown key.

        :raises IdentityError: as :meth:`KeyRing.examine`
        """
        verified = self._examine_now(token)
        if verified is not None:
            return verified
        await asyncio.gather(*(source.refresh() for source in self._remote.values() if source.may_refresh()))
        store = self
        while store._successor is not None:
            store = store._successor  # reloaded meanwhile: only the successor gets the new keys
        return store._ring.examine(token)

    def _examine_now(self, token: str) -> Verified | None:
        """None if a newer key might verify the token."""
        try:
            return self._ring.examine(token)
        except IdentityError as error:
            if error.reason == UNKNOWN_KEY and any(source.may_refresh() for source in self._remote.values()):
                return None
            raise

    def shares_secret(self, other: KeyStore) -> bool:
        """Whether the two have an HMAC secret in common."""
        return not {key.digest() for key in self._local if key.is_secret}.isdisjoint(
            key.digest() for key in other._local if key.is_secret
        )

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

    def follow(self) -> None:
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
