"""The limits of a connection, and the settings that they come from."""

from __future__ import annotations

from cocoa_tornado.connection.limits import DeviceLimits
from cocoa_tornado.connection.making_room import OutboxLimits
from cocoa_tornado.rules.rate import RateLimit
from cocoa_tornado.service.options import device_limits
from cocoa_tornado.settings import Settings


def test_they_are_those_of_the_contract_unless_set() -> None:
    assert device_limits(Settings()) == DeviceLimits()
    assert (DeviceLimits().max_message_bytes, DeviceLimits().write_wait_s) == (512 * 1024, 10.0)


def test_each_has_its_setting() -> None:
    settings = Settings(
        max_message_bytes=1,
        write_wait_s=2.0,
        outbox_max_messages=3,
        outbox_max_bytes=4,
        inbound_rate=5.0,
        inbound_burst=6,
    )
    assert device_limits(settings) == DeviceLimits(1, 2.0, OutboxLimits(3, 4), RateLimit(5.0, 6))
