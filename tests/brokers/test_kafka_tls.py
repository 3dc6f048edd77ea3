"""Kafka by TLS, with certificates on both sides."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from testing.certificates import write_certificate
from testing.kafka_server import KEY_PASSWORD, KafkaServer
from testing.waiting import eventually

from .bench import AWAY, KafkaStand, Receiver, consuming, decode

pytestmark = [pytest.mark.gen_test(timeout=90), pytest.mark.kafka]


@pytest.mark.apache
@pytest.mark.parametrize("files", ["two", "one"])
async def test_it_comes_by_tls_and_shows_its_own_certificate(
    stand: KafkaStand, kafka: KafkaServer, files: str, tmp_path: Path
) -> None:
    own, key = kafka.client_certificate.cert, kafka.client_certificate.key
    if files == "one":
        both = tmp_path / "both.pem"
        both.write_bytes(own.read_bytes() + key.read_bytes())
        own = both
    options = replace(
        stand.options,
        bootstrap=(kafka.tls_bootstrap,),
        security_protocol="SSL",
        ssl_ca=str(kafka.certificate.cert),
        ssl_cert=str(own),
        ssl_key=str(key) if files == "two" else None,
        ssl_key_password=KEY_PASSWORD,
    )
    receiver = Receiver()
    async with consuming(stand.make(options), receiver) as broker:
        await broker.publish(stand.results, "doll", b"doll|0")
        await receiver.has(1)


@pytest.mark.apache
@AWAY
async def test_a_broker_with_an_untrusted_certificate_is_refused_in_one_line(
    stand: KafkaStand, kafka: KafkaServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_certificate(tmp_path, "other")
    options = replace(
        stand.options,
        bootstrap=(kafka.tls_bootstrap,),
        security_protocol="SSL",
        ssl_ca=str(other.cert),
    )
    broker = stand.make(options)
    broker.start(Receiver(), decode)
    try:
        await eventually(lambda: "certificate" in broker.status().detail.lower())
        await asyncio.sleep(1.0)  # time for a second attempt, which is to be silent
    finally:
        await broker.close(0.2)
    causes = [line.__dict__["cause"] for line in caplog.records if line.name == "cocoa.broker"]
    # A refusal may first look like a broken connection: one line for each cause, however often it is tried.
    assert len(causes) == len(set(causes)) <= 2
