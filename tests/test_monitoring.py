"""The alerts and the dashboard in conf/: what they ask for exists, and alerts fire when they should and only then."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.rules.supervision import RestartReason
from cocoa_tornado.workers.own_metrics import parents_metrics
from testing.redis_server import RedisServer
from testing.waiting import eventually

from .harness import RESULTS, Harness
from .scripted_engine import ScriptedEngine

CONF: Final = Path(__file__).parent.parent / "conf"
DOCS: Final = CONF.parent / "docs"
ALERTS: Final = CONF / "prometheus" / "cocoa-alerts.yml"
DASHBOARD: Final = CONF / "grafana" / "cocoa-gateway.json"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on the PATH: apt-get install prometheus"
)

OF_PROMETHEUS: Final = {"job", "instance", "alertname", "alertstate"}
"""Labels that Prometheus adds."""
WORDS: Final = {"sum", "min", "max", "count", "rate", "increase", "deriv", "by", "on", "and", "or", "absent", "le"} | {
    "histogram_quantile",
    "max_over_time",
    "avg_over_time",
    "label_values",
}


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def rules() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@cache
def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return board


def plain(expression: str) -> str:
    """An expression of the dashboard without Grafana's variables."""
    return expression.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*")


def targets() -> Iterator[dict[str, Any]]:
    for panel in dashboard()["panels"]:
        yield from panel.get("targets", ())


def panel_expressions() -> list[str]:
    annotations = [each["expr"] for each in dashboard()["annotations"]["list"] if "expr" in each]
    return [*(target["expr"] for target in targets()), *annotations]


def variable_queries() -> list[str]:
    return [each["definition"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]


# -- what they ask for exists


class Selector(NamedTuple):
    """A metric with the labels that an expression asks for.

    :ivar values: of each label, those that are named
    """

    metric: str
    values: dict[str, list[str]]


def selectors(expression: str) -> list[Selector]:
    found = []
    without_strings = re.sub(r'"[^"]*"', lambda text: "~" * len(text[0]), expression)
    for match in re.finditer(r"[a-zA-Z_:][a-zA-Z0-9_:]*", without_strings):
        name, rest = match[0], expression[match.end() :]
        if name in WORDS or without_strings[: match.start()].count("{") > without_strings[: match.start()].count("}"):
            continue
        if re.search(r"\b(?:by|on) \([^)]*$", without_strings[: match.start()]):
            continue  # a label
        if re.search(r"[0-9.]$", without_strings[: match.start()]):
            continue  # a unit
        braces = re.match(r"\{(.*?)\}", rest)
        labels = re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', braces[1]) if braces else []
        found.append(Selector(name, {label: re.split(r"\|", value) for label, _, value in labels}))
    return found


def grouping(expression: str) -> set[str]:
    """The labels of all ``by`` and ``on``."""
    return {
        label.strip() for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in labels.split(",")
    }


@pytest.fixture
def exported(redis_server: RedisServer, io_loop: IOLoop) -> Iterator[dict[str, dict[str, set[str]]]]:
    """All that a gateway with everything exports: by name of the sample, its labels with their values."""

    async def start() -> tuple[Harness, str]:
        broker = MemoryBroker()
        settings: dict[str, Any] = {"presence": redis_server.url, "mailbox": redis_server.url, "canary_interval_s": 0.1}
        gateway = await Harness.start(broker, ScriptedEngine(), **settings)
        await broker.publish(RESULTS, "x", b"poison")
        await eventually(lambda: bool(broker.counters.quarantined))
        await eventually(lambda: gateway.gateway.presence.status().lease_age_s is not None)
        mailbox = gateway.gateway.mailbox
        assert mailbox is not None
        await eventually(lambda: mailbox.status().fan_outs is not None)
        return gateway, (await gateway.http("GET", "/metrics")).body.decode()

    redis_server.command("FLUSHALL")
    gateway, page = io_loop.run_sync(start)
    io_loop.run_sync(gateway.stop)
    page += parents_metrics(2, 0, dict.fromkeys(get_args(RestartReason), 0))
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    yield found
    redis_server.command("FLUSHALL")


@pytest.mark.redis
@pytest.mark.gen_test(timeout=60)
def test_every_metric_label_and_value_that_they_name_is_on_a_real_page(
    exported: dict[str, dict[str, set[str]]],
) -> None:
    expressions = [rule["expr"] for rule in rules()] + [*map(plain, panel_expressions()), *variable_queries()]
    faults = []
    for expression in expressions:
        found = selectors(expression)
        metrics = [each.metric for each in found if each.metric not in ("up", "ALERTS", "job", "instance")]
        faults += [f"{metric} in {expression}" for metric in metrics if metric not in exported]
        known = OF_PROMETHEUS.union(*(exported.get(metric, {}) for metric in metrics))
        faults += [f"label {label} in {expression}" for label in grouping(expression) - known]
        for metric, values in found:
            for label, named in values.items():
                has = exported.get(metric, {}).get(label)
                if has is None and label not in OF_PROMETHEUS:
                    faults.append(f"label {label} of {metric} in {expression}")
                elif has is not None:
                    faults += [f"{label}={value} of {metric}" for value in named if value not in {*has, ".*"}]
    assert faults == []
    assert {"cocoa_canary_leaked_total", "process_open_fds", "cocoa_worker_restarts_total"} <= exported.keys()


def test_the_dashboard_shows_each_subject() -> None:
    asked = {selector.metric for expression in panel_expressions() for selector in selectors(plain(expression))}
    for metric in (
        *("cocoa_connections", "cocoa_handshakes_total", "cocoa_messages_routed_total", "cocoa_outbox_overflows_total"),
        *("cocoa_delivery_latency_seconds_bucket", "cocoa_mailbox_messages", "cocoa_mailbox_fan_outs"),
        *("cocoa_consumer_lag_records", "cocoa_presence_lease_age_seconds", "cocoa_relay_messages_sent_total"),
        *("cocoa_speech_workers", "cocoa_canary_leaked_total", "cocoa_canary_seconds_bucket"),
        *("cocoa_quarantine_oldest_age_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"),
    ):
        assert metric in asked


# -- alerts


def test_each_alert_has_a_summary_a_severity_and_a_section_of_the_documentation() -> None:
    anchors: dict[str, set[str]] = {}
    for name in ("operations.rst", "night.rst"):
        text = (DOCS / name).read_text(encoding="utf-8")
        titles = re.findall(r"^(.+)\n(?:=+|-+|~+)$", text, re.MULTILINE)
        anchors[f"docs/{name}"] = {re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles}
    assert len({rule["alert"] for rule in rules()}) == len(rules()) > 30
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert anchor in anchors[page], rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert len(rule["annotations"]["summary"]) < 100
        assert rule["annotations"]["description"]


def test_every_log_line_that_an_alert_names_is_in_the_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (CONF.parent / "cocoa_tornado").rglob("*.py"))
    lines = [line for rule in rules() for line in re.findall(r'"([^"]+)"', rule["annotations"]["description"])]
    assert len(lines) > 5
    assert [line for line in lines if f'"{line}"' not in code] == []


@needs_promtool
def test_promtool_accepts_the_rules_and_the_example_that_loads_them() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("check", "config", str(CONF / "prometheus" / "prometheus.yml"))


@needs_promtool
def test_every_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{number}", "expr": plain(expression)}
        for number, expression in enumerate([*panel_expressions()])
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}), encoding="utf-8")
    promtool("check", "rules", str(file))


HERE: Final = '{job="cocoa-gateway",instance="a"}'
HEALTHY: Final = {
    f"up{HERE}": "1+0x120",
    'cocoa_build_info{job="cocoa-gateway",instance="a",version="1",python="3",tornado="6"}': "1+0x120",
    f"cocoa_connections{HERE}": "100+0x120",
    f"process_open_fds{HERE}": "100+0x120",
    f"process_max_fds{HERE}": "1000+0x120",
    **{f"cocoa_{part}_ready{HERE}": "1+0x120" for part in ("broker", "mailbox", "presence", "quarantine")},
    f"cocoa_presence_lease_age_seconds{HERE}": "0.4+0x120",
    f"cocoa_consumer_lag_records{HERE}": "0 5 3 0+0x117",
    f"cocoa_canary_sent_total{HERE}": "0+12x120",
    f"cocoa_canary_lost_total{HERE}": "0+0x120",
    f"cocoa_canary_leaked_total{HERE}": "0+0x120",
    'cocoa_canary_seconds_bucket{job="cocoa-gateway",instance="a",le="0.1"}': "0+12x120",
    'cocoa_canary_seconds_bucket{job="cocoa-gateway",instance="a",le="5.0"}': "0+12x120",
    'cocoa_canary_seconds_bucket{job="cocoa-gateway",instance="a",le="+Inf"}': "0+12x120",
    'cocoa_loop_lag_seconds_bucket{job="cocoa-gateway",instance="a",le="0.1"}': "0+120x120",
    'cocoa_loop_lag_seconds_bucket{job="cocoa-gateway",instance="a",le="1.0"}': "0+120x120",
    'cocoa_loop_lag_seconds_bucket{job="cocoa-gateway",instance="a",le="+Inf"}': "0+120x120",
    'cocoa_handshakes_total{job="cocoa-gateway",instance="a",outcome="accepted"}': "0+60x120",
    'cocoa_handshakes_total{job="cocoa-gateway",instance="a",outcome="expired"}': "0+1x120",
    'cocoa_buffer_bytes{job="cocoa-gateway",instance="a",part="handoff"}': "10+0x120",
    'cocoa_buffer_limit_bytes{job="cocoa-gateway",instance="a",part="handoff"}': "100+0x120",
    f"cocoa_workers_missing{HERE}": "0+0x120",
    'cocoa_worker_restarts_total{job="cocoa-gateway",instance="a",reason="drained"}': "0+1x120",
    'cocoa_mailbox_lost_total{job="cocoa-gateway",instance="a",reason="expired"}': "0+9x120",
    f"cocoa_outbox_overflows_total{HERE}": "0+0x120",
    f"cocoa_mailbox_fan_outs{HERE}": "1+0x120",
    f"cocoa_mailbox_fan_out_waits_total{HERE}": "0+0x120",
    f"cocoa_broker_reconnects_total{HERE}": "1+0x120",
    f"cocoa_quarantine_oldest_age_seconds{HERE}": "60+60x120",
}
"""Samples by the minute, for two hours."""


def one_more(name: str, **labels: str) -> dict[str, str]:
    """A counter that has counted once, 36 minutes after the beginning."""
    pairs = ",".join([*(f'{label}="{value}"' for label, value in labels.items()), 'job="cocoa-gateway",instance="a"'])
    return {f"{name}{{{pairs}}}": "0+0x35 1+0x65"}


FIRING: Final[dict[str, dict[str, str]]] = {
    "CocoaServerDown": {f"up{HERE}": "1+0x35 0+0x65"},
    "CocoaNoServer": {next(name for name in HEALTHY if "build_info" in name): "1+0x30 stale"},
    "CocoaNotReading": {f"cocoa_broker_ready{HERE}": "1+0x35 0+0x65"},
    "CocoaMailboxUnavailable": {f"cocoa_mailbox_ready{HERE}": "1+0x35 0+0x65"},
    "CocoaPresenceUnavailable": {f"cocoa_presence_ready{HERE}": "1+0x35 0+0x65"},
    "CocoaLeaseAgeHigh": {f"cocoa_presence_lease_age_seconds{HERE}": "0.4+0x35 4+0x65"},
    "CocoaWorkersMissing": {f"cocoa_workers_missing{HERE}": "0+0x35 1+0x65"},
    "CocoaWorkersRestarted": {**one_more("cocoa_worker_restarts_total", reason="died")},
    "CocoaCanaryLeaked": {f"cocoa_canary_leaked_total{HERE}": "0+0x35 1+0x65"},
    "CocoaCanaryLost": {f"cocoa_canary_lost_total{HERE}": "0+0x37 2+0x65"},
    "CocoaCanaryStopped": {f"cocoa_canary_sent_total{HERE}": "0+12x20 240+0x90"},
    "CocoaCanarySlow": {'cocoa_canary_seconds_bucket{job="cocoa-gateway",instance="a",le="0.1"}': "0+1x120"},
    "CocoaLagHigh": {f"cocoa_consumer_lag_records{HERE}": "0+0x30 20000+0x70"},
    "CocoaLagGrows": {f"cocoa_consumer_lag_records{HERE}": "0+0x10 1500+150x50"},
    "CocoaPublishErrors": {**one_more("cocoa_publish_errors_total", topic="device.messages")},
    "CocoaMailboxLoses": {**one_more("cocoa_mailbox_lost_total", reason="overflow")},
    "CocoaRelayLoses": {**one_more("cocoa_relay_messages_refused_total", fate="overflow")},
    "CocoaFanOutsWait": {
        f"cocoa_mailbox_fan_outs{HERE}": "32+0x120",
        f"cocoa_mailbox_fan_out_waits_total{HERE}": "0+1x120",
    },
    "CocoaQuarantineGrows": {**one_more("cocoa_records_quarantined_total", reason="not_json")},
    "CocoaQuarantineUnavailable": {f"cocoa_quarantine_ready{HERE}": "1+0x20 0+0x80"},
    "CocoaQuarantineLost": {**one_more("cocoa_quarantine_lost_total", cause="refused")},
    "CocoaQuarantineOld": {f"cocoa_quarantine_oldest_age_seconds{HERE}": "300000+60x120"},
    "CocoaConnectionsFell": {f"cocoa_connections{HERE}": "100+0x35 30+0x65"},
    "CocoaHandshakesRefused": {
        'cocoa_handshakes_total{job="cocoa-gateway",instance="a",outcome="expired"}': "0+100x120"
    },
    "CocoaSlowConsumers": {f"cocoa_outbox_overflows_total{HERE}": "0+0x30 0+5x70"},
    "CocoaAcceptPauses": {**one_more("cocoa_accept_pauses_total", reason="descriptors")},
    "CocoaFileDescriptors": {f"process_open_fds{HERE}": "100+0x30 900+0x70"},
    "CocoaLoopLag": {'cocoa_loop_lag_seconds_bucket{job="cocoa-gateway",instance="a",le="0.1"}': "0+60x120"},
    "CocoaBuffersFull": {'cocoa_buffer_bytes{job="cocoa-gateway",instance="a",part="handoff"}': "95+0x120"},
    "CocoaLogLinesLost": {**one_more("cocoa_log_lines_lost_total")},
    "CocoaSpeechWorkersLost": {
        'cocoa_speech_workers_lost_total{reason="crashed",job="cocoa-gateway",instance="a"}': "0+1x120"
    },
    "CocoaKafkaFlaps": {f"cocoa_broker_reconnects_total{HERE}": "0+0x20 0+1x80"},
}
"""The samples that make each alert fire, beside the healthy ones, 40 minutes after the beginning."""
ALONG: Final = {
    "CocoaLagHigh": {"CocoaLagGrows"},
}
"""Alerts that may fire with another one."""


@needs_promtool
def test_each_alert_fires_when_it_should_and_no_other_does(tmp_path: Path) -> None:
    assert FIRING.keys() == {rule["alert"] for rule in rules()}
    tests = []
    for alert, planted in {"": dict[str, str](), **FIRING}.items():
        samples, along = HEALTHY | planted, "|".join(ALONG.get(alert, ()))
        tests.append(
            {
                "name": alert or "healthy",
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in samples.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count by (alertname) (ALERTS{{alertstate="firing",alertname!~"{along}"}})',
                        "eval_time": "40m",
                        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else [],
                    }
                ],
            }
        )
    file = tmp_path / "test.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}), encoding="utf-8"
    )
    promtool("test", "rules", str(file))


# -- the dashboard


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    assert board["id"] is None, "Grafana gives the number"
    assert board["uid"] == "cocoa-gateway"
    assert board["schemaVersion"] >= 39
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names == ["datasource", "job", "instance"]
    source = board["templating"]["list"][0]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert [target["refId"] for target in panel["targets"]] == [*map(chr, range(65, 65 + len(panel["targets"])))]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert "$job" in target["expr"]


def test_no_panels_of_the_dashboard_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) is panel["title"]
