"""When the devices of a server that stops connect again."""

from __future__ import annotations

import random
from collections import Counter

from cocoa_tornado.rules.departure import ADMITTED_PER_S, reconnect_delays, reconnect_notice


def test_no_second_has_more_devices_than_the_others_have_room_for() -> None:
    delays = list(reconnect_delays(10_000, [300, 0, 200]))
    seconds = Counter(delay // 1000 for delay in delays)
    assert set(seconds.values()) == {500}
    assert max(delays) < 20_000


def test_a_server_without_a_limit_is_sent_the_usual_number() -> None:
    assert max(reconnect_delays(1_000, [None, ADMITTED_PER_S])) == 999


def test_without_other_servers_devices_come_at_the_rate_of_one() -> None:
    for rooms in ([], [0, 0]):
        delays = list(reconnect_delays(2 * ADMITTED_PER_S, rooms))
        assert 1_900 < max(delays) < 2_000


def test_a_single_device_need_not_wait() -> None:
    assert list(reconnect_delays(1, [500])) == [0]
    assert list(reconnect_delays(0, [500])) == []


def test_the_order_is_random() -> None:
    one, other = (list(reconnect_delays(100, [10], random.Random(seed))) for seed in (1, 2))
    assert one != other
    assert sorted(one) == sorted(other)


def test_a_server_that_is_nearly_full_is_sent_no_more_than_it_takes_in_a_second() -> None:
    assert max(reconnect_delays(1_000, [10, 90])) == 9_990


def test_the_notice_is_compact_json() -> None:
    assert reconnect_notice(1500) == b'{"type":"reconnect","after_ms":1500}'
