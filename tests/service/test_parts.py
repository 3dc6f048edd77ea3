"""Which parts the settings make."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from cocoa_tornado.rules.worker_count import Machine
from cocoa_tornado.service.parts import kafka_client, make_engine
from cocoa_tornado.settings import Settings

GIB = 1 << 30


@pytest.mark.parametrize(("installed", "client"), [(None, "kafka-python"), (object(), "confluent")])
def test_librdkafka_is_taken_where_it_is_installed(
    installed: object, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed)
    settings = Settings(broker="kafka://127.0.0.1:1")
    assert kafka_client(settings) == client
    assert kafka_client(dataclasses.replace(settings, kafka_client="kafka-python")) == "kafka-python"
    assert kafka_client(Settings()) is None


@pytest.mark.parametrize(
    ("setting", "machine", "workers", "line"),
    [
        (0, Machine(64, 4.0, 8 * GIB), 3, "speech workers counted"),
        (0, Machine(64, 4.0, GIB // 2), 1, "speech workers counted"),
        (9, Machine(64, 4.0, 8 * GIB), 9, "speech workers counted"),
        pytest.param(
            *(9, Machine(64, 4.0, GIB), 9, "speech workers exceed memory"),
            marks=pytest.mark.logs("cocoa.service", "speech workers exceed memory"),
        ),
    ],
)
def test_the_log_says_how_many_speech_workers_there_are_and_why(
    setting: int,
    machine: Machine,
    workers: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("cocoa_tornado.service.parts.this_machine", lambda: machine)
    caplog.set_level(logging.INFO, "cocoa.service")
    engine = make_engine(Settings(speech="pocketsphinx://", speech_workers=setting))
    assert engine is not None
    (record,) = [record for record in caplog.records if record.getMessage() == line]
    assert (vars(record)["workers"], vars(record)["processors"]) == (workers, 4)
    assert engine.options.workers == workers
