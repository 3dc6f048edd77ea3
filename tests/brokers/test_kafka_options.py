from __future__ import annotations

from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"bootstrap": ()}, "bootstrap"),
        ({"low_water": 11, "high_water": 10}, "low_water"),
        ({"security_protocol": "TLS"}, "PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ({"security_protocol": "SASL_SSL"}, "SCRAM-SHA-512"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "u"}, "sasl_password"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}, "oauth_token_url"),
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        KafkaOptions(**({"bootstrap": BOOTSTRAP} | wrong))


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
