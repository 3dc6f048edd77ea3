"""The store of all keys: local ones, a URL that changes, fails and recovers, and the trust in each key."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cocoa_tornado.errors import InvalidClaims, InvalidToken, KeyMaterialError
from cocoa_tornado.identity.jwks_source import JwksSource
from cocoa_tornado.identity.key_store import KeyOptions, KeySources, KeyStore, default_signer
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.rules.identity import TokenPolicy
from testing.waiting import eventually

from .material import (
    CLAIMS,
    NOW,
    SECRET,
    device_token,
    events,
    jwk,
    jwks,
    part,
    private_pem,
    public_pem,
    run,
)

URL = "https://issuer.example/jwks"


class Issuer:
    """A JWKS endpoint that returns a document or fails, counts requests, and can delay responses."""

    def __init__(self, document: bytes | Exception) -> None:
        self.document = document
        self.reads = 0
        self.read = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, url: str) -> bytes:
        self.reads += 1
        self.read.set()
        await self.gate.wait()
        if isinstance(self.document, Exception):
            raise self.document
        return self.document

    async def next_read(self) -> None:
        self.read.clear()
        await self.read.wait()


class Clock:
    """A manual monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def store_of(
    issuer: Callable[[str], Awaitable[bytes]],
    sources: KeySources | None = None,
    options: KeyOptions | None = None,
    clock: Clock | None = None,
    policy: TokenPolicy | None = None,
) -> AsyncIterator[KeyStore]:
    sources = sources or KeySources(locations=(URL,))
    store = KeyStore(sources, policy or TokenPolicy(), options, fetch=issuer, clock=clock or Clock())
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def reloaded(store: KeyStore, sources: KeySources) -> KeyStore:
    """The store after a reload."""
    new = await store.successor(sources)
    await new.succeed(store)
    return new


# --- The store, local keys -----------------------------------------------------------------------------------------


def test_secrets_and_files_identify_devices_at_once(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(public_pem("EC"))

    async def test() -> None:
        sources = KeySources((SECRET, "o" * 32), (str(path),))
        async with store_of(Issuer(b""), sources) as store:
            for text in (device_token("secret", "HS256"), device_token("EC", "ES256")):
                identity = store.identify_now(text, NOW)
                assert identity is not None
                assert identity.device_id == "d"
                assert await store.identify(text, NOW) == identity
            assert store.status() == (True, "3 keys (HS256, ES256)")

    run(test())


def test_the_store_judges_the_claims_too() -> None:
    async def test() -> None:
        async with store_of(Issuer(b""), KeySources((SECRET,)), policy=TokenPolicy(audience="us")) as store:
            with pytest.raises(InvalidToken, match="expired"):
                store.identify_now(device_token("secret", "HS256"), NOW + 71)
            with pytest.raises(InvalidClaims, match="audience"):
                await store.identify(device_token("secret", "HS256"), NOW)

    run(test())


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        (KeySources(), "no key is configured"),
        (KeySources(("",)), "is empty"),
        (KeySources((), ("no/such/file.pem",)), "no/such/file.pem"),
    ],
)
def test_a_start_without_usable_keys_fails(sources: KeySources, problem: str) -> None:
    with pytest.raises(KeyMaterialError, match=problem):
        run(KeyStore(sources, TokenPolicy()).start())


def test_a_start_whose_keys_serve_no_allowed_algorithm_fails() -> None:
    with pytest.raises(KeyMaterialError, match="RS256"):
        run(KeyStore(KeySources((SECRET,)), TokenPolicy(), KeyOptions(algorithms=("RS256",))).start())


def test_a_reload_swaps_the_keys(tmp_path: Path) -> None:
    async def test() -> None:
        async with store_of(Issuer(b""), KeySources((SECRET,))) as store:
            store = await reloaded(store, KeySources(("n" * 32,)))
            with pytest.raises(InvalidToken):
                store.identify_now(device_token("secret", "HS256"), NOW)
            assert store.identify_now(Signer.from_secret("n" * 32).sign(json.loads(CLAIMS)), NOW)

    run(test())


def test_a_reload_that_fails_changes_nothing() -> None:
    async def test() -> None:
        async with store_of(Issuer(b""), KeySources((SECRET,))) as store:
            with pytest.raises(KeyMaterialError):
                await store.successor(KeySources(("n" * 32,), ("no/such/file",)))
            assert store.identify_now(device_token("secret", "HS256"), NOW)

    run(test())


def test_a_successor_changes_nothing_until_it_takes_over() -> None:
    async def test() -> None:
        issuer = Issuer(jwks(jwk("EC", kid="a")))
        async with store_of(issuer, KeySources((SECRET,))) as store:
            distrust = Distrust(store)
            device = await store.identify(device_token("secret", "HS256"), NOW)
            new = await store.successor(KeySources((), (URL,)))
            assert store.still_trusts(device)
            with pytest.raises(InvalidToken):
                store.identify_now(device_token("EC", "ES256", kid="a"), NOW)
            assert new.identify_now(device_token("EC", "ES256", kid="a"), NOW)
            assert distrust.times == 0
            await new.succeed(store)
            assert (new.still_trusts(device), distrust.times) == (False, 1)
            await new.close()

    run(test())


def test_a_token_that_waits_for_a_url_during_a_reload_is_judged_by_the_new_keys() -> None:
    async def test() -> None:
        issuer, clock = Issuer(jwks(jwk("EC", kid="a"))), Clock()
        async with store_of(issuer, clock=clock) as store:
            new = await store.successor(KeySources((SECRET,), (URL,)))
            issuer.document = jwks(jwk("EC", kid="a"), jwk("EC'", kid="b"))
            clock.now_s += 10
            waiting = asyncio.ensure_future(store.identify(device_token("EC'", "ES256", kid="b"), NOW))
            await asyncio.sleep(0)
            await new.succeed(store)
            assert await waiting

    run(test())


# --- Trust that ends -----------------------------------------------------------------------------------------------


class Distrust:
    """Counts how often a store reports removed keys."""

    def __init__(self, store: KeyStore) -> None:
        self.times = 0
        store.on_distrust = self._count

    def _count(self) -> None:
        self.times += 1


def test_a_device_is_trusted_for_as_long_as_the_key_that_vouched_for_it(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(public_pem("EC"))

    async def test() -> None:
        async with store_of(Issuer(b""), KeySources((SECRET,), (str(path),))) as store:
            distrust = Distrust(store)
            by_secret = await store.identify(device_token("secret", "HS256"), NOW)
            by_file = await store.identify(device_token("EC", "ES256"), NOW)
            for sources in (KeySources(("n" * 32, SECRET), (str(path),)), KeySources((SECRET,), (str(path),))):
                store = await reloaded(store, sources)
                assert store.still_trusts(by_secret)
            assert distrust.times == 1, "the secret that came and went again"
            store = await reloaded(store, KeySources(("n" * 32,), (str(path),)))
            assert (store.still_trusts(by_secret), store.still_trusts(by_file)) == (False, True)
            path.write_bytes(public_pem("EC'"))
            store = await reloaded(store, KeySources(("n" * 32,), (str(path),)))
            assert not store.still_trusts(by_file)
            assert distrust.times == 3

    run(test())


def test_a_key_that_a_url_no_longer_has_loses_its_trust() -> None:
    async def test() -> None:
        issuer, clock = Issuer(jwks(jwk("EC", kid="a"), jwk("EC'", kid="b"))), Clock()
        async with store_of(issuer, options=KeyOptions(refresh_s=0.001), clock=clock) as store:
            distrust = Distrust(store)
            gone = await store.identify(device_token("EC", "ES256", kid="a"), NOW)
            stays = await store.identify(device_token("EC'", "ES256", kid="b"), NOW)
            issuer.document = jwks(jwk("EC'", kid="renamed"))
            while not distrust.times:
                await issuer.next_read()
                clock.now_s += 5
            assert (store.still_trusts(gone), store.still_trusts(stays)) == (False, True)

    run(test())


def test_an_answer_of_a_replica_that_is_behind_closes_nothing_and_refuses_new_tokens_of_the_missing_key() -> None:
    both, one = jwks(jwk("EC", kid="a"), jwk("EC'", kid="b")), jwks(jwk("EC", kid="a"))

    async def test() -> None:
        issuer, clock = Issuer(both), Clock()
        async with store_of(issuer, options=KeyOptions(refresh_s=0.001), clock=clock) as store:
            distrust = Distrust(store)
            text = device_token("EC'", "ES256", kid="b")
            device = await store.identify(text, NOW)
            for document in (one, both, one, both):
                issuer.document = document
                for _ in range(3):
                    await issuer.next_read()  # as often as it likes within the interval
                if document is one:
                    with pytest.raises(InvalidToken, match="unknown_key"):
                        await store.identify(text, NOW)
                clock.now_s += 9.9
            assert store.still_trusts(device)
            assert distrust.times == 0
            assert await store.identify(text, NOW)

    run(test())


def test_a_key_that_is_missing_after_a_reload_loses_its_trust_at_once() -> None:
    async def test() -> None:
        issuer = Issuer(jwks(jwk("EC", kid="a"), jwk("EC'", kid="b")))
        async with store_of(issuer) as store:
            distrust = Distrust(store)
            device = await store.identify(device_token("EC", "ES256", kid="a"), NOW)
            issuer.document = jwks(jwk("EC'", kid="b"))
            store = await reloaded(store, KeySources(locations=(URL,)))
            assert not store.still_trusts(device)
            assert distrust.times == 1

    run(test())


def test_while_a_key_is_missing_the_url_is_read_again_after_the_shortest_interval() -> None:
    async def test() -> None:
        issuer = Issuer(jwks(jwk("EC", kid="a"), jwk("EC'", kid="b")))
        source = JwksSource(URL, issuer, lambda: None, clock=Clock())
        await source.refresh()
        assert source.pause_s() == 300.0
        issuer.document = jwks(jwk("EC", kid="a"))
        await source.refresh()
        assert source.pause_s() == 10.0
        await source.close()

    run(test())


def test_a_key_that_a_token_has_found_missing_is_confirmed_after_the_shortest_interval() -> None:
    """Even if the source was about to pause for days: this is how a rotation is usually noticed."""

    async def test() -> None:
        issuer, clock = Issuer(jwks(jwk("EC", kid="a"))), Clock()
        options = KeyOptions(refresh_s=600_000.0, min_interval_s=0.001)
        async with store_of(issuer, options=options, clock=clock) as store:
            distrust = Distrust(store)
            old = await store.identify(device_token("EC", "ES256", kid="a"), NOW)
            await asyncio.sleep(0)  # the pause has begun
            clock.now_s += 1.0
            issuer.document = jwks(jwk("EC'", kid="b"))
            assert await store.identify(device_token("EC'", "ES256", kid="b"), NOW)
            assert store.still_trusts(old)
            clock.now_s += 1.0
            await eventually(lambda: not store.still_trusts(old))
            assert distrust.times == 1

    run(test())


@pytest.mark.logs("cocoa.identity", "^jwks unavailable$")
def test_no_key_loses_its_trust_when_a_url_fails() -> None:
    async def test() -> None:
        issuer = Issuer(jwks(jwk("EC")))
        async with store_of(issuer, options=KeyOptions(refresh_s=0.001, min_interval_s=0.001)) as store:
            distrust = Distrust(store)
            device = await store.identify(device_token("EC", "ES256"), NOW)
            for failure in (KeyMaterialError("it is away"), b"<html>", jwks()):
                issuer.document = failure
                await issuer.next_read()
                await issuer.next_read()
            assert store.still_trusts(device)
            assert distrust.times == 0

    run(test())


@pytest.mark.logs("cocoa.identity", "^jwks unavailable$")
def test_while_the_new_url_of_the_keys_is_unreachable_only_secrets_lose_their_trust() -> None:
    documents: dict[str, bytes | Exception] = {URL: jwks(jwk("EC")), f"{URL}/new": KeyMaterialError("it is away")}

    async def fetch(url: str) -> bytes:
        document = documents[url]
        if isinstance(document, Exception):
            raise document
        return document

    async def test() -> None:
        options = KeyOptions(refresh_s=0.001, min_interval_s=0.001)
        async with store_of(fetch, KeySources((SECRET,), (URL,)), options) as store:
            by_url = await store.identify(device_token("EC", "ES256"), NOW)
            by_secret = await store.identify(device_token("secret", "HS256"), NOW)
            store = await reloaded(store, KeySources((), (f"{URL}/new",)))
            assert (store.still_trusts(by_url), store.still_trusts(by_secret)) == (True, False)
            distrust = Distrust(store)
            documents[f"{URL}/new"] = jwks(jwk("EC'"))
            while not distrust.times:
                await asyncio.sleep(0)
            assert not store.still_trusts(by_url)
            await store.close()

    run(test())


def test_a_key_bound_to_another_algorithm_no_longer_vouches(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"

    async def test() -> None:
        path.write_bytes(jwks({"kty": "oct", "k": part(SECRET.encode())}))
        async with store_of(Issuer(b""), KeySources((), (str(path),))) as store:
            device = await store.identify(device_token("secret", "HS256"), NOW)
            path.write_bytes(jwks({"kty": "oct", "k": part(SECRET.encode()), "alg": "HS512"}, jwk("EC")))
            store = await reloaded(store, KeySources((), (str(path),)))
            assert not store.still_trusts(device)

    run(test())


# --- Weak secrets --------------------------------------------------------------------------------------------------


@pytest.mark.logs("cocoa.identity", "^weak jwt secret$")
def test_a_short_secret_is_refused_wherever_it_stands_unless_the_options_allow_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(jwks({"kty": "oct", "k": part(b"s" * 31)}))

    async def test() -> None:
        for sources in (KeySources(("s" * 31,)), KeySources((SECRET, "s" * 31)), KeySources((SECRET,), (str(path),))):
            strict = KeyStore(sources, TokenPolicy(), KeyOptions(weak_secrets=False))
            with pytest.raises(KeyMaterialError, match="HMAC secret of 31 bytes; off loopback it needs 32"):
                await strict.start()
            await KeyStore(sources, TokenPolicy()).start()
        strict = KeyStore(KeySources((SECRET,)), TokenPolicy(), KeyOptions(weak_secrets=False))
        await strict.start()
        with pytest.raises(KeyMaterialError):
            await strict.successor(KeySources(("s" * 31,)))
        assert strict.identify_now(device_token("secret", "HS256"), NOW)

    run(test())


def test_sources_do_not_show_in_a_repr() -> None:
    shown = repr(KeySources((SECRET,), ("https://user:pass@issuer.example/",)))
    assert SECRET not in shown
    assert "pass" not in shown


def test_the_signer_is_the_first_secret_or_else_a_private_key(tmp_path: Path) -> None:
    public, private = tmp_path / "public.pem", tmp_path / "private.pem"
    public.write_bytes(public_pem("RSA"))
    private.write_bytes(private_pem("EC"))
    files = (URL, str(public), str(private))

    def algorithm(sources: KeySources, *allowed: str) -> str | None:
        signer = default_signer(sources, allowed) if allowed else default_signer(sources)
        return signer.algorithm if signer else None

    assert algorithm(KeySources((SECRET,), files)) == "HS256"
    assert algorithm(KeySources((SECRET,), files), "HS512") == "HS512"
    assert algorithm(KeySources((), files)) == "ES256"
    assert algorithm(KeySources((), (URL, str(public)))) is None


# --- The store, a URL ----------------------------------------------------------------------------------------------


def test_a_url_is_read_at_the_start_and_then_answers_at_once() -> None:
    async def test() -> None:
        issuer = Issuer(jwks(jwk("EC", kid="a")))
        async with store_of(issuer) as store:
            assert store.identify_now(device_token("EC", "ES256", kid="a"), NOW)
            assert store.status() == (True, "1 key (ES256)")
            assert issuer.reads == 1

    run(test())


def test_a_new_key_is_found_when_its_first_token_comes() -> None:
    async def test() -> None:
        issuer, clock = Issuer(jwks(jwk("EC", kid="a"))), Clock()
        async with store_of(issuer, clock=clock) as store:
            issuer.document = jwks(jwk("EC", kid="a"), jwk("EC'", kid="b"))
            clock.now_s += 10
            text = device_token("EC'", "ES256", kid="b")
            assert store.identify_now(text, NOW) is None
            assert (await store.identify(text, NOW)).device_id == "d"
            assert store.identify_now(text, NOW)
            assert issuer.reads == 2

    run(test())


def test_unknown_keys_cannot_make_the_gateway_hammer_the_issuer() -> None:
    async def test() -> None:
        issuer, clock = Issuer(jwks(jwk("EC", kid="a"))), Clock()
        async with store_of(issuer, clock=clock) as store:
            clock.now_s += 10
            forged = [device_token("EC'", "ES256", kid=f"forged-{n}") for n in range(20)]
            for text in forged:
                with pytest.raises(InvalidToken, match="unknown_key"):
                    await store.identify(text, NOW)
            with pytest.raises(InvalidToken, match="unknown_key"):
                store.identify_now(forged[0], NOW)
            assert issuer.reads == 2

    run(test())


def test_a_bad_signature_of_a_known_key_reads_nothing() -> None:
    async def test() -> None:
        issuer, clock = Issuer(jwks(jwk("EC", kid="a"))), Clock()
        async with store_of(issuer, clock=clock) as store:
            clock.now_s += 1000
            for text in (device_token("EC'", "ES256", kid="a"), device_token("secret", "HS256", kid="b"), "rubbish"):
                with pytest.raises(InvalidToken):
                    await store.identify(text, NOW)
            assert issuer.reads == 1

    run(test())


def test_many_devices_with_a_new_key_share_one_reading_and_may_leave_it() -> None:
    async def test() -> None:
        issuer, clock = Issuer(jwks(jwk("EC", kid="a"))), Clock()
        async with store_of(issuer, clock=clock) as store:
            issuer.document = jwks(jwk("EC'", kid="b"))
            issuer.gate.clear()
            clock.now_s += 10
            text = device_token("EC'", "ES256", kid="b")
            waiting = [asyncio.create_task(store.identify(text, NOW)) for _ in range(5)]
            await issuer.next_read()
            waiting[0].cancel()
            await asyncio.wait({waiting[0]})
            issuer.gate.set()
            assert [(await task).device_id for task in waiting[1:]] == ["d"] * 4
            assert waiting[0].cancelled()
            assert issuer.reads == 2

    run(test())


@pytest.mark.logs("cocoa.identity", "^jwks unavailable$")
def test_a_url_that_fails_at_the_start_is_not_ready_and_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        issuer = Issuer(KeyMaterialError("https://issuer.example/jwks: HTTP 503"))
        options = KeyOptions(refresh_s=0.001, min_interval_s=0.001)
        async with store_of(issuer, options=options) as store:
            assert store.status() == (False, "0 keys (none); https://issuer.example/jwks: HTTP 503")
            await issuer.next_read()
            await issuer.next_read()
            issuer.document = jwks(jwk("EC"))
            while not store.status()[0]:
                await issuer.next_read()
            assert store.identify_now(device_token("EC", "ES256"), NOW)

    run(test())
    assert events(caplog) == ["jwks unavailable", "jwks available"]


@pytest.mark.logs("cocoa.identity", "^jwks unavailable$")
def test_a_url_that_fails_later_keeps_the_last_good_keys_and_logs_each_change_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        issuer = Issuer(jwks(jwk("EC")))
        options = KeyOptions(refresh_s=0.001, min_interval_s=0.001)
        async with store_of(issuer, options=options) as store:
            for failure in (KeyMaterialError("it is away"), b"<html>", jwks(), KeyMaterialError("it is away")):
                issuer.document = failure
                await issuer.next_read()
                await issuer.next_read()
            ready, detail = store.status()
            assert ready
            assert detail.startswith("1 key (ES256); ")
            assert store.identify_now(device_token("EC", "ES256"), NOW)
            issuer.document = jwks(jwk("EC'"))
            while store.status()[1] != "1 key (ES256)":
                await issuer.next_read()
            assert store.identify_now(device_token("EC'", "ES256"), NOW)

    run(test())
    assert events(caplog) == ["jwks available", "jwks unavailable", "jwks changed"]


@pytest.mark.logs("cocoa.identity", "^jwks read failed$")
@pytest.mark.logs("cocoa.identity", "^jwks unavailable$")
def test_a_fault_in_the_reading_is_logged_and_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        issuer = Issuer(RuntimeError("a fault"))
        async with store_of(issuer, options=KeyOptions(refresh_s=0.001, min_interval_s=0.001)) as store:
            issuer.document = jwks(jwk("EC"))
            while not store.status()[0]:
                await issuer.next_read()

    run(test())
    assert "jwks read failed" in events(caplog)


def test_a_reload_reads_urls_at_once_and_drops_those_that_are_gone() -> None:
    async def test() -> None:
        issuer = Issuer(jwks(jwk("EC")))
        async with store_of(issuer, KeySources((SECRET,), (URL,))) as store:
            issuer.document = jwks(jwk("EC'"))
            store = await reloaded(store, KeySources((SECRET,), (URL,)))
            assert store.identify_now(device_token("EC'", "ES256"), NOW)
            store = await reloaded(store, KeySources((SECRET,)))
            with pytest.raises(InvalidToken):
                store.identify_now(device_token("EC'", "ES256"), NOW)
            assert issuer.reads == 2

    run(test())


def test_after_close_the_keys_still_verify_and_nothing_is_read() -> None:
    async def test() -> None:
        issuer, clock = Issuer(jwks(jwk("EC", kid="a"))), Clock()
        async with store_of(issuer, clock=clock) as store:
            pass
        clock.now_s += 1000
        assert store.identify_now(device_token("EC", "ES256", kid="a"), NOW)
        with pytest.raises(InvalidToken):
            await store.identify(device_token("EC'", "ES256", kid="b"), NOW)
        assert issuer.reads == 1
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("jwks")]

    run(test())


def test_close_ends_a_reading_under_way_and_those_who_wait_for_it_are_refused() -> None:
    async def test() -> None:
        issuer, clock = Issuer(jwks(jwk("EC", kid="a"))), Clock()
        async with store_of(issuer, clock=clock) as store:
            issuer.gate.clear()
            clock.now_s += 10
            waiting = asyncio.create_task(store.identify(device_token("EC'", "ES256", kid="b"), NOW))
            await issuer.next_read()
        with pytest.raises(InvalidToken, match="unknown_key"):
            await waiting

    run(test())


@pytest.mark.logs("cocoa.identity", "^jwks unavailable$")
def test_after_failures_the_pause_grows_from_the_interval_to_the_refresh() -> None:
    async def test() -> None:
        issuer = Issuer(KeyMaterialError("it is away"))
        source = JwksSource(URL, issuer, lambda: None, refresh_s=300, min_interval_s=10)
        pauses = [source.pause_s()]
        for _ in range(7):
            await source.refresh()
            pauses.append(source.pause_s())
        assert pauses == [300, 10, 20, 40, 80, 160, 300, 300]

    run(test())


def test_two_stores_share_a_secret_wherever_it_is_configured(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "keys.json"
        encoded = base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()
        path.write_text(json.dumps({"keys": [{"kty": "oct", "k": encoded}]}))
        stores = []
        for sources in (KeySources((SECRET,)), KeySources((), (str(path),)), KeySources(("n" * 32,))):
            stores.append(KeyStore(sources, TokenPolicy()))
            await stores[-1].start()
        one, in_a_file, other = stores
        assert one.shares_secret(in_a_file)
        assert in_a_file.shares_secret(one)
        assert not one.shares_secret(other)

    run(test())


def test_two_stores_may_share_a_public_key(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "key.pem"
        path.write_bytes(public_pem("EC"))
        stores = [KeyStore(KeySources((), (str(path),)), TokenPolicy()) for _ in range(2)]
        for store in stores:
            await store.start()
        assert not stores[0].shares_secret(stores[1])

    run(test())
