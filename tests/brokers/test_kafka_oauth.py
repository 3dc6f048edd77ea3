from __future__ import annotations

import base64
import contextlib
import importlib
import json
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.brokers.kafka_oauth import MAX_LIFE_S, ClientCredentials, parse_grant
from cocoa_tornado.errors import BrokerError

from ..hostile_answers import HOSTILE, answering
from .token_endpoint import TokenEndpoint, serving


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    with serving() as server:
        yield server


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def credentials(endpoint: TokenEndpoint, clock: Clock) -> ClientCredentials:
    return ClientCredentials(endpoint.url, "cocoa", "hunter:2", "kafka", clock)


def test_the_client_identifies_itself_and_asks_for_its_scope(endpoint: TokenEndpoint) -> None:
    assert credentials(endpoint, Clock()).token() == "token-1"
    [(authorization, form)] = endpoint.requests
    assert base64.b64decode(authorization.removeprefix("Basic ")) == b"cocoa:hunter%3A2"
    assert form == {"grant_type": ["client_credentials"], "scope": ["kafka"]}


def test_a_token_is_kept_until_shortly_before_it_expires(endpoint: TokenEndpoint) -> None:
    clock = Clock()
    tokens = credentials(endpoint, clock)
    tokens.token()
    endpoint.answer = b'{"access_token":"token-2","expires_in":"100"}'
    clock.now += 79
    assert tokens.token() == "token-1"
    clock.now += 2
    tokens.refresh_if_due()
    assert len(endpoint.requests) == 2
    assert tokens.token() == "token-2"
    assert len(endpoint.requests) == 2


def test_a_failing_endpoint_is_no_trouble_while_the_token_is_good(endpoint: TokenEndpoint) -> None:
    clock = Clock()
    tokens = credentials(endpoint, clock)
    tokens.token()
    endpoint.status = 500
    clock.now += 90
    assert tokens.token() == "token-1"
    assert tokens.token() == "token-1"
    assert len(endpoint.requests) == 2  # and it is not asked all the time
    clock.now += 11
    tokens.refresh_if_due()
    with pytest.raises(BrokerError, match="answered 500"):
        tokens.token()


@pytest.mark.parametrize("answer", [b"no JSON", b"[]", b'{"token":"x"}', b'{"access_token":7}', b""])
def test_an_answer_without_a_token_is_an_error_without_secrets(endpoint: TokenEndpoint, answer: bytes) -> None:
    endpoint.answer = answer
    tokens = credentials(endpoint, Clock())
    with pytest.raises(BrokerError) as caught:
        tokens.token()
    assert endpoint.url in str(caught.value)
    assert "hunter" not in str(caught.value) + repr(tokens)


def test_an_endpoint_that_is_away_is_an_error(endpoint: TokenEndpoint) -> None:
    tokens = ClientCredentials("http://127.0.0.1:1/token", "cocoa", "hunter2", None)
    with pytest.raises(BrokerError, match="cannot be used"):
        tokens.token()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_secret_stays_here(endpoint: TokenEndpoint, status: int) -> None:
    with serving() as elsewhere:
        endpoint.status, endpoint.location = status, elsewhere.url
        with pytest.raises(BrokerError, match=f"answered {status}; redirects are not followed"):
            credentials(endpoint, Clock()).token()
        assert elsewhere.requests == []
        assert len(endpoint.requests) == 1


@pytest.mark.parametrize("library", ["kafka_clients", "confluent_clients"])
def test_both_kafka_clients_get_their_tokens_here(library: str) -> None:
    module = importlib.import_module(f"cocoa_tornado.brokers.{library}")
    assert issubclass(module.ClientCredentials, ClientCredentials)


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_token_endpoint_answers_is_one_short_line(name: str) -> None:
    with answering(lambda write: write(HOSTILE[name])) as url:
        tokens = ClientCredentials(url, "cocoa", "hunter2", None, timeout_s=2.0)
        with pytest.raises(BrokerError) as caught:
            tokens.token()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 400
    assert url in text
    assert "hunter2" not in text


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"])
def test_an_endpoint_that_drips_is_given_up_in_time(start: bytes) -> None:
    given_up = threading.Event()

    def drip(write: Callable[[bytes], None]) -> None:
        write(start)
        while not given_up.wait(0.02):
            write(b"x")

    with answering(drip) as url:
        tokens = ClientCredentials(url, "cocoa", "hunter2", None, timeout_s=0.3)
        with pytest.raises(BrokerError, match=r"no whole answer within 0\.3 s"):
            tokens.token()
        given_up.set()


@pytest.mark.parametrize(
    "life", [float("nan"), float("inf"), -1, 0, 1e400, "nan", "x", None, [], True, 10**400, "1e999"]
)
def test_a_token_lives_for_a_time_that_a_clock_can_tell(life: object) -> None:
    token, life_s = parse_grant(json.dumps({"access_token": "t", "expires_in": life}).encode(), "test")
    assert token == "t"
    assert 0 < life_s <= MAX_LIFE_S


@pytest.mark.parametrize("token", ["", "a b", "a\n", "a\x01", "ü", "\ud800", 5, None, ["t"]])
def test_a_token_that_a_sasl_message_cannot_hold_is_refused(token: object) -> None:
    with pytest.raises(BrokerError, match="without an access_token that can be used"):
        parse_grant(json.dumps({"access_token": token}).encode(), "test")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.binary()
    | _json.map(json.dumps).map(str.encode)
    | st.fixed_dictionaries({"access_token": _json, "expires_in": _json}).map(json.dumps).map(str.encode)
)
def test_any_answer_is_a_token_or_an_error_of_ours(answer: bytes) -> None:
    with contextlib.suppress(BrokerError):
        token, life_s = parse_grant(answer, "test")
        assert token.isascii()
        assert 0 < life_s <= MAX_LIFE_S


def test_a_token_of_unknown_life_is_renewed_as_if_it_were_short(endpoint: TokenEndpoint) -> None:
    clock = Clock()
    endpoint.answer = json.dumps({"access_token": "t", "expires_in": "soon"}).encode()
    tokens = credentials(endpoint, clock)
    tokens.token()
    clock.now += 241
    tokens.token()
    assert len(endpoint.requests) == 2
