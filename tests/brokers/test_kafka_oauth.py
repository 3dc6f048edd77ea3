from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from cocoa_tornado.brokers.kafka_oauth import ClientCredentials
from cocoa_tornado.errors import BrokerError

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
def test_an_answer_without_a_token_is_an_error_that_tells_no_secret(endpoint: TokenEndpoint, answer: bytes) -> None:
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


def test_a_token_of_unknown_life_is_renewed_as_if_it_were_short(endpoint: TokenEndpoint) -> None:
    clock = Clock()
    endpoint.answer = json.dumps({"access_token": "t", "expires_in": "soon"}).encode()
    tokens = credentials(endpoint, clock)
    tokens.token()
    clock.now += 241
    tokens.token()
    assert len(endpoint.requests) == 2
