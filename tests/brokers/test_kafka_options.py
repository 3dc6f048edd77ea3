from __future__ import annotations

from pathlib import Path

import pytest

from cocoa_tornado.brokers.kafka import KafkaBroker
from cocoa_tornado.brokers.kafka_options import KafkaOptions
from cocoa_tornado.errors import BrokerError

BOOTSTRAP = ("127.0.0.1:9092",)


def test_no_secret_shows_in_the_repr() -> None:
    options = KafkaOptions(
        bootstrap=BOOTSTRAP,
        sasl_password="hunter2-a",
        ssl_key_password="hunter2-b",
        oauth_client_secret="hunter2-c",
    )
    assert "hunter2" not in repr(options)


def test_a_record_of_a_device_fits_in_a_request_whatever_its_size() -> None:
    small = KafkaOptions(bootstrap=BOOTSTRAP, max_record_bytes=100)
    large = KafkaOptions(bootstrap=BOOTSTRAP, max_record_bytes=small.max_request_bytes + 1)
    assert small.largest_request_bytes == small.max_request_bytes
    assert large.largest_request_bytes == large.max_record_bytes


def test_a_ca_file_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    with pytest.raises(BrokerError, match=str(missing)):
        KafkaBroker(KafkaOptions(bootstrap=BOOTSTRAP, security_protocol="SSL", ssl_ca=str(missing)))


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "client.pem"
    broken.write_text("not a certificate")
    with pytest.raises(BrokerError, match=str(broken)):
        KafkaOptions(bootstrap=BOOTSTRAP, security_protocol="SSL", ssl_cert=str(broken)).tls_context()


def test_tls_checks_the_host_name_unless_configured_otherwise() -> None:
    checked = KafkaOptions(bootstrap=BOOTSTRAP, security_protocol="SSL").tls_context()
    unchecked = KafkaOptions(bootstrap=BOOTSTRAP, security_protocol="SSL", check_hostname=False).tls_context()
    assert checked is not None
    assert unchecked is not None
    assert (checked.check_hostname, unchecked.check_hostname) == (True, False)
    assert KafkaOptions(bootstrap=BOOTSTRAP).tls_context() is None
