"""Valid and invalid WebSocket handshakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.handshake import accept_value, check_upgrade

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def test_the_example_of_the_rfc() -> None:
    assert accept_value(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("upgrade", "connection", "version", "key", "status"),
    [
        ("websocket", "Upgrade", "13", KEY, None),
        ("WebSocket", "keep-alive, Upgrade", "13", KEY, None),
        (None, None, None, None, 426),
        ("h2c", "Upgrade", "13", KEY, 426),
        ("websocket", "close", "13", KEY, 426),
        ("websocket", "Upgrade", "8", KEY, 426),
        ("websocket", "Upgrade", None, KEY, 426),
        ("websocket", "Upgrade", "13", None, 400),
        ("websocket", "Upgrade", "13", "c2hvcnQ=", 400),
        ("websocket", "Upgrade", "13", "not base64!", 400),
    ],
)
def test_only_a_request_in_due_form_is_upgraded(
    upgrade: str | None, connection: str | None, version: str | None, key: str | None, status: int | None
) -> None:
    refusal = check_upgrade(upgrade, connection, version, key)
    assert (refusal and refusal.status) == status


def test_a_wrong_version_is_told_the_right_one() -> None:
    refusal = check_upgrade("websocket", "Upgrade", "7", KEY)
    assert refusal is not None
    assert refusal.headers["Sec-WebSocket-Version"] == "13"


@given(st.text(), st.text(), st.text(), st.text())
def test_no_header_value_raises(upgrade: str, connection: str, version: str, key: str) -> None:
    check_upgrade(upgrade, connection, version, key)
    check_upgrade("websocket", "upgrade", "13", key)
