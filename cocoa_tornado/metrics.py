"""Exports the counters (``counters.py``) as Prometheus text. prometheus-client reads them on each scrape."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import tornado
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cocoa_tornado import __version__

from .brokers.port import BrokerCounters, BrokerState, BrokerStatus, QuarantineState
from .counters import CanaryCounters, Counters, Histogram
from .hub import Hub
from .mailboxes.port import Mailbox, MailboxState
from .presence.port import Presence, PresenceState, PresenceStatus
from .relay.port import RelayCounters
from .rules.buffers import Use
from .rules.labels import LABELS
from .speech.port import SpeechStatus


class GatewayCollector(Collector):
    """Reads the counters of the hub, the broker and the web layer on each scrape."""

    def __init__(
        self,
        hub: Hub,
        presence: Presence,
        counters: Counters,
        broker_counters: Callable[[], BrokerCounters],
        broker_status: Callable[[], BrokerStatus],
        http_connections: Callable[[], int],
        speech_status: Callable[[], SpeechStatus | None] = lambda: None,
        workers_lost: Mapping[str, int] = MappingProxyType({}),
        mailbox: Mailbox | None = None,
        topics: Sequence[str] = (),
        log_lines_lost: Callable[[], int] = lambda: 0,
        buffers: Callable[[], Mapping[str, Use]] = dict,
        relay: RelayCounters | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._hub, self._presence = hub, presence
        self._counters, self._http_connections = counters, http_connections
        self._broker_counters, self._broker_status = broker_counters, broker_status
        self._speech_status, self._workers_lost = speech_status, workers_lost
        self._mailbox, self._topics = mailbox, topics
        self._log_lines_lost, self._buffers = log_lines_lost, buffers
        self._relay = relay
        self._wall_clock = wall_clock

    def collect(self) -> Iterator[Metric]:
        yield _build_info()
        yield from _buffers(self._buffers())
        yield from self._device_side()
        yield from self._broker_side()
        if self._mailbox is not None:
            yield from self._mailbox_side(self._mailbox)
        if self._relay is not None:
            yield from _relay(self._relay)
        status = self._speech_status()
        if status is not None:
            yield from self._speech_side(status)

    def _device_side(self) -> Iterator[Metric]:
        hub, presence, counters = self._hub, self._presence, self._counters
        yield GaugeMetricFamily("cocoa_connections", "Device connections now", value=len(hub))
        pending = self._http_connections()
        yield GaugeMetricFamily("cocoa_http_connections", "Connections that are not a device's", value=pending)
        yield _by("cocoa_accept_pauses", "Times that new connections had to wait", "reason", counters.accept_pauses)
        yield _by("cocoa_bodies_refused", "Request bodies refused", "reason", counters.bodies_refused)
        yield _total("cocoa_hosts_refused", "Requests by a host name that is not allowed (421)", counters.hosts_refused)
        shed = counters.http_connections_shed
        yield _by("cocoa_http_connections_shed", "Connections closed in favor of others", "reason", shed)
        yield GaugeMetricFamily("cocoa_slots_taken", "Slots held or reserved now", value=presence.slots_taken)
        yield _by("cocoa_handshakes", "WebSocket handshakes", "outcome", counters.handshakes)
        yield _by("cocoa_token_requests", "Requests to the token endpoint", "outcome", counters.token_requests)
        yield _by("cocoa_connections_closed", "Connections ended, by close code", "code", counters.closed)
        yield _total("cocoa_duplicate_challenges", "Connections challenged by a new one", presence.counters.challenges)
        yield _total(
            "cocoa_duplicate_evictions", "Unresponsive connections evicted (4409)", presence.counters.evictions
        )
        if presence.lease.is_shared:
            yield from _presence(presence.status())
        routed = counters.routed - counters.canary.routed
        yield _total("cocoa_messages_routed", "Messages queued for a connected device", routed)
        yield _total("cocoa_messages_unknown_device", "Messages for a device not connected", counters.unknown_device)
        over = "Records handed over to other workers of this machine, canary messages included"
        yield _total("cocoa_records_handed_over", over, counters.handed_over)
        back = "Records that other workers of this machine have returned, because their devices had left"
        yield _total("cocoa_records_handed_back", back, counters.handed_back)
        taken = "Records for devices of this server that other workers of this machine have handed over"
        yield _total("cocoa_records_taken_over", taken, counters.taken_over)
        yield _by("cocoa_messages_dropped", "Messages dropped before they were written", "reason", counters.dropped)
        yield _total(
            "cocoa_messages_collapsed", "Messages in no box replaced by newer ones while queued", counters.collapsed
        )
        yield _total("cocoa_outbox_overflows", "Connections closed as slow consumers (1013)", counters.outbox_overflows)
        yield _total("cocoa_device_messages", "Text messages from devices", counters.device_messages)
        dropped = counters.device_messages_dropped
        yield _total("cocoa_device_messages_dropped", "Text messages from devices, dropped unpublished", dropped)
        yield _total("cocoa_audio_messages_ignored", "Binary messages while speech is off", counters.audio_ignored)
        lost = "Events for operators who watch, dropped because they or the way to them were too slow"
        yield _total("cocoa_admin_events_lost", lost, counters.admin_events_lost)
        yield _histogram("cocoa_delivery_latency_seconds", "From record timestamp to socket write", counters.latency)
        yield from _canaries(counters.canary)
        yield _total("cocoa_log_lines_lost", "Log lines that could not be written", self._log_lines_lost())
        yield _histogram("cocoa_loop_lag_seconds", "How late the event loop runs its timers", counters.loop_lag)

    def _broker_side(self) -> Iterator[Metric]:
        broker, status = self._broker_counters(), self._broker_status()
        ready = 1.0 if status.state is BrokerState.READY else 0.0
        yield GaugeMetricFamily("cocoa_broker_ready", "1 while records reach this process", value=ready)
        if status.lag is not None:
            yield GaugeMetricFamily("cocoa_consumer_lag_records", "Records not yet handed over", value=status.lag)
        yield _total(
            "cocoa_records_consumed", "Records read from the results topic, canary messages included", broker.consumed
        )
        yield _total("cocoa_records_key_mismatch", "Records whose key and value disagree", broker.key_mismatch)
        yield _by("cocoa_records_quarantined", "Records quarantined", "reason", broker.quarantined)
        takes_copies = 0.0 if status.quarantine is QuarantineState.UNAVAILABLE else 1.0
        yield GaugeMetricFamily("cocoa_quarantine_ready", "0 while no record can be quarantined", value=takes_copies)
        if status.oldest_quarantined_ms is not None:
            oldest = max(0.0, self._wall_clock() - status.oldest_quarantined_ms / 1000)
            text = "Age of the oldest record that the quarantine topic still has"
            yield GaugeMetricFamily("cocoa_quarantine_oldest_age_seconds", text, value=oldest)
        lost = "Rejected records that could not be quarantined"
        yield _by("cocoa_quarantine_lost", lost, "cause", broker.quarantine_lost)
        published = "Records acknowledged by the broker, canary messages included"
        yield _by("cocoa_records_published", published, "topic", broker.published, self._topics)
        yield _by(
            "cocoa_publish_errors", "Records that could not be published", "topic", broker.publish_errors, self._topics
        )
        yield _total("cocoa_broker_reconnects", "Times that the broker became unavailable", broker.reconnects)
        yield _total("cocoa_consumer_pauses", "Times that the high water mark paused the partitions", broker.pauses)

    def _mailbox_side(self, mailbox: Mailbox) -> Iterator[Metric]:
        counters, status, box = self._counters, mailbox.status(), mailbox.counters
        ready = 1.0 if status.state is MailboxState.READY else 0.0
        yield GaugeMetricFamily("cocoa_mailbox_ready", "1 while messages can be stored", value=ready)
        if status.messages is not None:
            yield GaugeMetricFamily("cocoa_mailbox_messages", "Messages in the mailbox", value=status.messages)
        if status.size_bytes is not None:
            yield GaugeMetricFamily(
                "cocoa_mailbox_bytes", "Size of the payloads in the mailbox", value=status.size_bytes
            )
        yield _total("cocoa_mailbox_stored", "Messages stored", box.stored)
        yield _total("cocoa_mailbox_duplicates", "Messages not stored because they had been before", box.duplicates)
        collapsed = "Messages deleted because a newer one has their collapse_key"
        yield _total("cocoa_mailbox_collapsed", collapsed, box.collapsed)
        withdrawn = "Messages deleted because their device has left their user or group"
        yield _total("cocoa_mailbox_withdrawn", withdrawn, box.withdrawn)
        yield _total("cocoa_mailbox_acknowledged", "Messages deleted after an acknowledgement", box.acknowledged)
        lost = "Messages lost: expired or dropped before their device had them, emptied with Redis, or not stored"
        yield _by("cocoa_mailbox_lost", lost, "reason", box.lost)
        retired = "Messages deleted by age or from a full box after they were written to a device without cursors"
        yield _total("cocoa_mailbox_retired", retired, box.retired)
        if status.fan_outs is not None:
            yield GaugeMetricFamily("cocoa_mailbox_fan_outs", "Fan-outs that are not complete", value=status.fan_outs)
        waits = "Times that storing waited because many fan-outs were not complete"
        yield _total("cocoa_mailbox_fan_out_waits", waits, box.fan_out_waits)
        yield _total("cocoa_mailbox_failures", "Times that the mailbox became unavailable", box.failures)
        yield _total("cocoa_messages_kept", "Messages stored for a device that was not connected", counters.kept)
        yield _total("cocoa_messages_caught_up", "Messages sent from a box", counters.caught_up)
        left = "Messages queued for a connection that ended, which stay in the box"
        yield _total("cocoa_messages_left_in_box", left, counters.left_in_box)
        yield _total("cocoa_gaps_told", "Gap notices sent to devices", counters.gaps)
        yield _total("cocoa_unknown_acks", "Acknowledgements of a cursor that is not the device's", counters.bad_acks)
        dropped = "Acknowledgements of devices that left, dropped because too many waited for the mailbox"
        yield _total("cocoa_acks_dropped", dropped, counters.acks_dropped)

    def _speech_side(self, status: SpeechStatus) -> Iterator[Metric]:
        speech = self._counters.speech
        yield GaugeMetricFamily("cocoa_speech_workers", "Speech workers with their model loaded", value=status.workers)
        yield GaugeMetricFamily("cocoa_speech_workers_busy", "Speech workers with a stream", value=status.busy)
        yield GaugeMetricFamily("cocoa_speech_queued", "Audio streams that wait for a worker", value=status.queued)
        yield GaugeMetricFamily("cocoa_speech_parked", "Audio streams that are parked, without a worker", status.parked)
        kept = "Bytes of audio kept in case another worker must process it"
        yield GaugeMetricFamily("cocoa_speech_kept_bytes", kept, value=status.kept_bytes)
        yield _total("cocoa_speech_taken_back", "Times that a stream lost its worker to others", status.taken_back)
        yield _by("cocoa_speech_workers_lost", "Speech workers that had to be replaced", "reason", self._workers_lost)
        yield _by("cocoa_speech_streams", "Audio streams ended, by outcome", "outcome", speech.streams)
        yield _total("cocoa_speech_hypotheses", "Interim transcripts published", speech.interims)
        yield CounterMetricFamily("cocoa_speech_audio_seconds", "Audio recognized", value=speech.audio_s)
        factor = "CPU time of decoding and recognition divided by the duration of the audio"
        yield _histogram("cocoa_speech_real_time_factor", factor, speech.real_time_factor)
        yield _histogram("cocoa_speech_queue_seconds", "Time that an audio stream waited for a worker", speech.queue)
        delivery = "From the last byte of audio, through the broker, to the device's outbox, if that is in this process"
        yield _histogram("cocoa_speech_delivery_seconds", delivery, speech.delivery)


class MetricsPage:
    """The body of ``GET /metrics``. Each instance has its own registry, so two gateways in one process don't mix."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, collector: GatewayCollector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self) -> bytes:
        return generate_latest(self._registry)


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, text, buckets=histogram.cumulative(), sum_value=histogram.total)


def _canaries(canary: CanaryCounters) -> Iterator[Metric]:
    yield _total("cocoa_canary_sent", "Canary messages sent", canary.sent)
    yield _total("cocoa_canary_lost", "Canary messages that did not arrive in time", canary.lost)
    yield _total("cocoa_canary_late", "Canary messages that counted as lost and arrived later", canary.late)
    yield _total("cocoa_canary_leaked", "Messages that reached a canary that they were not for", canary.leaked)
    yield _histogram("cocoa_canary_seconds", "From sending a canary message to its arrival", canary.seconds)


def _presence(status: PresenceStatus) -> Iterator[Metric]:
    ready = 1.0 if status.state is PresenceState.READY else 0.0
    yield GaugeMetricFamily("cocoa_presence_ready", "1 while devices can be admitted", value=ready)
    age = "Since Redis has last confirmed that this server may act for its devices"
    if status.lease_age_s is not None:
        yield GaugeMetricFamily("cocoa_presence_lease_age_seconds", age, value=status.lease_age_s)


def _relay(relay: RelayCounters) -> Iterator[Metric]:
    yield _by("cocoa_relay_messages_sent", "Messages put into the inboxes of other servers", "kind", relay.accepted)
    refused = "Messages for other servers that were not put into an inbox, or possibly not"
    yield _by("cocoa_relay_messages_refused", refused, "fate", relay.refused)
    yield _by("cocoa_relay_messages_received", "Messages received from other servers", "kind", relay.received)
    skipped = "Messages from other servers that are unreadable, or of a later release"
    yield _total("cocoa_relay_messages_skipped", skipped, relay.skipped)
    yield _total("cocoa_relay_losses", "Times that messages for this server were lost", relay.losses)


def _total(name: str, text: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _build_info() -> GaugeMetricFamily:
    family = GaugeMetricFamily("cocoa_build_info", "What runs here; always 1", labels=["version", "python", "tornado"])
    family.add_metric([__version__, platform.python_version(), tornado.version], 1)
    return family


def _buffers(uses: Mapping[str, Use]) -> Iterator[Metric]:
    held = GaugeMetricFamily("cocoa_buffer_bytes", "Bytes of messages held now, by part", labels=["part"])
    limit = GaugeMetricFamily("cocoa_buffer_limit_bytes", "Bytes that each part may hold", labels=["part"])
    for part, use in uses.items():
        limit.add_metric([part], use.limit)
        if use.held is not None:
            held.add_metric([part], use.held)
    yield held
    yield limit


def _by(
    name: str, text: str, label: str, values: Mapping[str, int], known: Iterable[str] | None = None
) -> CounterMetricFamily:
    """A counter by one label. All known label values are exported from the start.

    :param known: label values that replace those in ``rules/labels.py``
    """
    family = CounterMetricFamily(name, text, labels=[label])
    # Copy ``values`` first: the broker's threads may add a label meanwhile.
    for key, value in sorted((dict.fromkeys(LABELS[name] if known is None else known, 0) | dict(values)).items()):
        family.add_metric([key], value)
    return family
