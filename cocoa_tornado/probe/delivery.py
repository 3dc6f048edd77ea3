"""Publishes records, over HTTP or directly to the Kafka topic."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from ..plain_text import quoted
from ..rules import addresses
from .between import is_blocked
from .credentials import Device
from .judge import described
from .target import Target
from .verdicts import ProbeError
from .wire import Response, exchange

PUBLISH_ROUTE = "/api/v1/transcriptions"
_PASS_BROKER = "pass --broker kafka://HOST:PORT"


class PublishUnavailableError(Exception):
    """Publishing is impossible here; ``str()`` gives the reason and a remedy."""


class RecordPublisher(Protocol):
    """Publishes records to the topic of transcriptions."""

    async def publish(self, device: Device, value: bytes) -> str | None:
        """Publish a record (JSON bytes) for a device. Return None, or why it was rejected.

        :raises PublishUnavailableError: publishing is impossible
        :raises OSError: the connection failed
        """

    async def close(self) -> None: ...


class BackendPublisher(Protocol):
    """Publishes records that address others than one device, which no device may do."""

    async def publish_to_others(self, key: str, value: bytes) -> str | None:
        """Publish a record (JSON bytes). Return None, or why it was rejected."""


class HttpPublisher:
    """Publishes with the device's own token, if the gateway allows it."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def publish(self, device: Device, value: bytes) -> str | None:
        try:
            response = await post_record(self._target, device, value)
        except PublishUnavailableError as error:
            raise PublishUnavailableError(f"{error}; {_PASS_BROKER}") from error
        if response.status == 404:
            raise PublishUnavailableError(f"the gateway takes no records over HTTP; {_PASS_BROKER}")
        return None if response.status == 202 else f"publishing over HTTP: answered {described(response)}, expected 202"

    async def close(self) -> None:
        pass  # nothing to close


class KafkaPublisher:
    """Publishes to the topic, like a backend. The client's blocking calls run in a thread.

    :param security: TLS and SASL, as keyword arguments of ``kafka.KafkaProducer``
    :param connect: replaces ``kafka.KafkaProducer``
    """

    def __init__(
        self,
        servers: list[str],
        topic: str,
        timeout_s: float,
        security: Mapping[str, object] | None = None,
        connect: Callable[..., Any] | None = None,
    ) -> None:
        self._servers, self._topic, self._timeout_s = servers, topic, timeout_s
        self._security = security or {}
        self._connect = connect
        self._producer: Any = None  # kafka-python ships no types
        self._problem: str | None = None

    async def publish(self, device: Device, value: bytes) -> str | None:
        return await self.publish_to_others(device.device_id, value)

    async def publish_to_others(self, key: str, value: bytes) -> str | None:
        return self._problem or await asyncio.to_thread(self._publish, key.encode(), value)

    async def close(self) -> None:
        if self._producer is not None:
            await asyncio.to_thread(self._producer.close, timeout=1)

    def _publish(self, key: bytes, value: bytes) -> str | None:
        from kafka.errors import KafkaError  # lazy: only --broker needs it

        try:
            if self._producer is None:
                self._producer = self._connected()
            self._producer.send(self._topic, key=key, value=value).get(timeout=self._timeout_s)
        except KafkaError as error:
            self._problem = f"publishing to the topic {self._topic} of {','.join(self._servers)}: {error}"
        return self._problem

    def _connected(self) -> Any:
        from kafka import KafkaProducer  # lazy: only --broker needs it

        limit_ms = int(self._timeout_s * 1000)
        return (self._connect or KafkaProducer)(
            bootstrap_servers=self._servers,
            client_id="cocoa-probe",
            acks="all",
            allow_auto_create_topics=False,
            bootstrap_timeout_ms=limit_ms,
            max_block_ms=limit_ms,
            request_timeout_ms=limit_ms,
            delivery_timeout_ms=2 * limit_ms,
            **self._security,
        )


async def post_record(target: Target, device: Device, value: bytes) -> Response:
    """Send a record with the device's own token. The gateway's response is 404 if it takes no records over HTTP.

    :raises PublishUnavailableError: a proxy blocks the route
    :raises OSError: the connection failed
    """
    headers = [("Authorization", f"Bearer {device.token}"), ("Content-Type", "application/json")]
    response = await exchange(target, "POST", PUBLISH_ROUTE, headers, value)
    if is_blocked(response):
        raise PublishUnavailableError("a proxy takes no records over HTTP")
    return response


def kafka_servers(url: str) -> list[str]:
    """``kafka://a:9092,b`` as ``["a:9092", "b:9092"]``.

    :raises ProbeError: it is not such a URL
    """
    try:
        return list(addresses.kafka_servers(url))
    except ValueError as error:
        shown = quoted(addresses.masked(url))
        raise ProbeError(f"{shown} is not kafka://HOST:PORT[,HOST:PORT...]") from error


def new_record(device: Device, text: str, extra: Mapping[str, object] | None = None) -> dict[str, object]:
    """A record for a device, with a new session id, and with ``extra`` fields in the middle."""
    return {
        "session_id": secrets.token_hex(16),
        "user_id": device.user_id,
        "device_id": device.device_id,
        **(extra or {}),
        "text": text,
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "success": True,
    }


def spacious_json(record: Mapping[str, object]) -> bytes:
    """A record as some producers write it: with whitespace, and with all non-ASCII characters escaped."""
    return json.dumps(record, indent=1, ensure_ascii=True).encode("ascii")
