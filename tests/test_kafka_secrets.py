"""Kafka secrets that cannot be used: each is one BrokerError that does not show them."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from cocoa_tornado.brokers.kafka_oauth import ClientCredentials
from cocoa_tornado.brokers.kafka_options import KafkaOptions
from cocoa_tornado.errors import BrokerError
from testing.certificates import write_certificate

TOO_LONG = "hunter2" * 200  # OpenSSL's buffer holds 1024 bytes


@pytest.mark.parametrize("password", [TOO_LONG, "hunter2", None])
def test_a_key_password_that_does_not_fit_is_one_error_that_names_the_file(
    tmp_path: Path, password: str | None
) -> None:
    files = write_certificate(tmp_path, password=b"another")
    options = KafkaOptions(
        bootstrap=("127.0.0.1:9092",),
        security_protocol="SSL",
        ssl_cert=str(files.cert),
        ssl_key=str(files.key),
        ssl_key_password=password,
    )
    with pytest.raises(BrokerError, match="cannot use the certificate") as caught:
        options.tls_context()
    assert str(files.cert) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://u:hunter2@h/token", "http://u:hunter2@h:port/"])
def test_a_token_url_with_a_password_is_one_error_that_does_not_show_it(url: str) -> None:
    tokens = ClientCredentials(url, "cocoa", "secret", None)
    with pytest.raises(BrokerError, match="the token endpoint") as caught:
        tokens.token()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)) + repr(tokens)
