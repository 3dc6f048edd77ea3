"""The page that is made of the counters."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import get_args

import tornado
from prometheus_client.parser import text_string_to_metric_families

from cocoa_tornado import __version__
from cocoa_tornado.brokers.port import BrokerCounters, BrokerState, BrokerStatus, QuarantineState
from cocoa_tornado.counters import Counters, count
from cocoa_tornado.hub import Hub
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.metrics import GatewayCollector, MetricsPage
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.local import LocalPresence
from cocoa_tornado.relay.memory import MemoryRelay
from cocoa_tornado.relay.messages import RelayMessage
from cocoa_tornado.relay.port import Fate, RelayCounters
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.labels import LABELS
from cocoa_tornado.speech.port import SpeechState, SpeechStatus


class Page:
    """A metrics page, and everything it reads."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.presence = LocalPresence(SlotLimits, MemoryRelay(), lambda: 0.0)
        self.counters = Counters()
        self.broker = BrokerCounters()
        self.relay = RelayCounters()
        self.status = BrokerStatus(BrokerState.READY, "", lag=3)
        collector = GatewayCollector(
            self.hub,
            self.presence,
            self.counters,
            lambda: self.broker,
            lambda: self.status,
            lambda: 7,
            lambda: SpeechStatus(SpeechState.READY, "", 1, 0, 0),
            mailbox=MemoryMailbox(BoxLimits()),
            topics=("transcription.results", "device.messages"),
            relay=self.relay,
            wall_clock=lambda: 100.0,
        )
        self.page = MetricsPage(collector)

    def values(self) -> dict[tuple[str, ...], float]:
        """By name and values of the labels."""
        families = text_string_to_metric_families(self.page.render().decode())
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_a_page_of_zeros_parses() -> None:
    values = Page().values()
    assert values[("cocoa_connections",)] == 0
    assert values[("cocoa_http_connections",)] == 7
    assert values[("cocoa_messages_routed_total",)] == 0
    assert values[("cocoa_delivery_latency_seconds_bucket", "+Inf")] == 0


def test_counters_appear_under_their_labels() -> None:
    page = Page()
    count(page.counters.handshakes, "accepted")
    count(page.counters.handshakes, "accepted")
    count(page.counters.dropped, "overflow", 7)
    count(page.counters.accept_pauses, "descriptors")
    page.broker.quarantined["not_json"] = 2
    page.broker.published["device.messages"] = 5
    page.presence.counters.challenges = 4
    page.presence.counters.evictions = 1
    values = page.values()
    assert values[("cocoa_handshakes_total", "accepted")] == 2
    assert values[("cocoa_accept_pauses_total", "descriptors")] == 1
    assert values[("cocoa_messages_dropped_total", "overflow")] == 7
    assert values[("cocoa_records_quarantined_total", "not_json")] == 2
    assert values[("cocoa_records_published_total", "device.messages")] == 5
    assert values[("cocoa_duplicate_challenges_total",)] == 4
    assert values[("cocoa_duplicate_evictions_total",)] == 1


def test_what_servers_send_each_other_is_counted_by_kind_and_by_fate() -> None:
    page = Page()
    page.relay.accepted["forward"] = 5
    page.relay.refused["overflow"] = 2
    page.relay.received["wake_up"] = 3
    page.relay.skipped, page.relay.losses = 4, 1
    values = page.values()
    assert values[("cocoa_relay_messages_sent_total", "forward")] == 5
    assert values[("cocoa_relay_messages_refused_total", "overflow")] == 2
    assert values[("cocoa_relay_messages_received_total", "wake_up")] == 3
    assert (values[("cocoa_relay_messages_skipped_total",)], values[("cocoa_relay_losses_total",)]) == (4, 1)
    kinds = {kind.kind for kind in get_args(RelayMessage)}
    assert set(LABELS["cocoa_relay_messages_sent"]) == kinds
    not_refused = {Fate.ACCEPTED, Fate.HERE, Fate.TERM_OVER}  # after the last two nothing was to be sent
    assert set(LABELS["cocoa_relay_messages_refused"]) == {fate.value for fate in set(Fate) - not_refused}


def test_every_counter_exists_from_the_start() -> None:
    families = text_string_to_metric_families(Page().page.render().decode())
    missing = [family.name for family in families if family.type == "counter" and not family.samples]
    assert missing == []
    values = Page().values()
    for family, labels in LABELS.items():
        assert {label: values.get((f"{family}_total", label)) for label in labels} == dict.fromkeys(labels, 0)
    for topic in ("transcription.results", "device.messages"):
        assert values[("cocoa_publish_errors_total", topic)] == 0


def test_the_page_names_the_versions() -> None:
    (build,) = [key[1:] for key in Page().values() if key[0] == "cocoa_build_info"]
    assert sorted(build) == sorted((__version__, platform.python_version(), tornado.version))


def test_a_label_of_any_text_parses() -> None:
    page = Page()
    page.broker.publish_errors['a "topic"\\\n'] = 1
    assert page.values()[("cocoa_publish_errors_total", 'a "topic"\\\n')] == 1


def test_the_state_of_the_broker_is_a_gauge_and_an_unknown_lag_is_absent() -> None:
    page = Page()
    assert page.values()[("cocoa_broker_ready",)] == 1
    assert page.values()[("cocoa_consumer_lag_records",)] == 3
    page.status = BrokerStatus(BrokerState.CONNECTING, "away")
    assert page.values()[("cocoa_broker_ready",)] == 0
    assert ("cocoa_consumer_lag_records",) not in page.values()


def test_a_quarantine_that_takes_no_copies_is_a_gauge_of_its_own() -> None:
    page = Page()
    assert page.values()[("cocoa_quarantine_ready",)] == 1
    page.status = BrokerStatus(BrokerState.READY, "", quarantine=QuarantineState.UNAVAILABLE)
    page.broker.quarantine_lost = {"refused": 2}
    assert page.values()[("cocoa_quarantine_ready",)] == 0
    assert page.values()[("cocoa_broker_ready",)] == 1
    assert page.values()[("cocoa_quarantine_lost_total", "refused")] == 2


def test_the_age_of_the_oldest_quarantined_record_is_a_gauge_and_absent_without_one() -> None:
    page = Page()
    assert ("cocoa_quarantine_oldest_age_seconds",) not in page.values()
    page.status = BrokerStatus(BrokerState.READY, "", oldest_quarantined_ms=40_000)
    assert page.values()[("cocoa_quarantine_oldest_age_seconds",)] == 60
    page.status = BrokerStatus(BrokerState.READY, "", oldest_quarantined_ms=200_000)
    assert page.values()[("cocoa_quarantine_oldest_age_seconds",)] == 0


def test_two_pages_share_nothing() -> None:
    one, two = Page(), Page()
    one.counters.routed = 5
    assert one.values()[("cocoa_messages_routed_total",)] == 5
    assert two.values()[("cocoa_messages_routed_total",)] == 0


def test_a_histogram_is_on_the_page_with_its_buckets_and_its_sum() -> None:
    page = Page()
    page.counters.latency.observe(0.004, times=3)
    page.counters.latency.observe(100.0)
    values = page.values()
    name = "cocoa_delivery_latency_seconds"
    assert [values[(f"{name}_bucket", bound)] for bound in ("0.002", "0.005", "60.0", "+Inf")] == [0, 3, 3, 4]
    assert (values[(f"{name}_count",)], values[(f"{name}_sum",)]) == (4, 100.012)


def test_every_metric_is_in_the_operators_guide() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "operations.rst").read_text(encoding="utf-8")
    families = text_string_to_metric_families(Page().page.render().decode())
    ours = {f"{f.name}_total" if f.type == "counter" else f.name for f in families if f.name.startswith("cocoa_")}
    assert {name for name in ours if f"``{name}" not in guide} == set()
