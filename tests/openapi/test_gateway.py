"""The OpenAPI document against a running gateway: what schemathesis asks is answered as documented."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Final

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from cocoa_tornado.admin.event_handlers import EventsHandler
from cocoa_tornado.openapi.document import DOCUMENT
from cocoa_tornado.rules.rate import RateLimit
from testing.waiting import eventually

from ..admin.conftest import StartAdmin, admin_token, start_admin
from ..harness import RESULTS, Harness
from ..scripted_engine import ScriptedEngine

__all__ = ["start_admin"]  # the fixture

API_KEY, API_SECRET = "backend", "the secret of a backend"
EXAMPLES: Final = 5
"""Random requests to each operation, valid and invalid ones, beside those that cover its schemas systematically."""
NOT_SAID_BY_A_SCHEMA: Final = {
    "GET /ws": "a plain request is a 426, and a cursor has to be the device's",
    "POST /api/v1/audio/stream": "the bytes have to be audio",
    "PUT /api/v1/admin/devices/{id}/block": "the time has to be in the future",
}
"""Operations that refuse what their schema permits, and why."""


def config(gateway: Harness) -> SchemathesisConfig:
    accepts_less = {"checks": {"positive_data_acceptance": {"enabled": False}}}
    return SchemathesisConfig.from_dict(
        {
            "base-url": f"http://127.0.0.1:{gateway.port}",
            "request-timeout": 30,
            "workers": 1,
            "seed": 1,
            "generation": {"deterministic": True, "database": "none", "max-examples": EXAMPLES, "mode": "all"},
            "phases": {"stateful": {"enabled": False}},
            "operations": [{"include-name": name, **accepts_less} for name in NOT_SAID_BY_A_SCHEMA],
            "auth": {
                "openapi": {
                    "deviceToken": {"bearer": gateway.token("doll-1")},
                    "deviceTokenInQuery": {"api_key": gateway.token("doll-1")},
                    "adminToken": {"bearer": admin_token()},
                    "apiKey": {"api_key": API_KEY},
                    "apiSecret": {"api_key": API_SECRET},
                }
            },
        }
    )


def has_a_whole_ttl(context: object, body: object) -> bool:
    """To JSON Schema 7.0 is an integer, and to the gateway it is none."""
    return not (isinstance(body, dict) and isinstance(body.get("ttl"), float))


class Probed:
    """:ivar statuses: of all answers, by method and path
    :ivar faults: what was wrong with an answer, and the request
    """

    def __init__(self) -> None:
        self.statuses: dict[str, list[int]] = defaultdict(list)
        self.faults: list[str] = []

    def ask(self, gateway: Harness) -> None:
        schema = schemathesis.openapi.from_dict(DOCUMENT, config=config(gateway))
        schema.hook("filter_body")(has_a_whole_ttl)
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                self._look_at(event)
            elif isinstance(event, events.NonFatalError | events.FatalError):
                self.faults.append(repr(event))

    def _look_at(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        for case_id, interaction in recorder.interactions.items():
            case, response = recorder.cases[case_id].value, interaction.response
            assert response is not None
            self.statuses[f"{case.method} {case.operation.path}"].append(response.status_code)
            for check in recorder.checks.get(case_id, ()):
                if check.failure_info is not None:
                    title, answer = (
                        check.failure_info.failure.title,
                        f"{response.status_code} {response.content[:200]!r}",
                    )
                    self.faults.append(f"{check.name}: {title}: {answer}\n{case.as_curl_command()}")


async def fill(gateway: Harness) -> None:
    """A gateway with everything that the document's examples name, and one further device."""
    for device_id, user_id, group in (("doll-1", 99, "kitchen"), ("doll-2", "ann", "hall")):
        await gateway.connect_with(gateway.token(device_id, user_id=user_id, groups=[group]))
    await gateway.publish("doll-1", "good night", id="lullaby-17")
    await gateway.broker.append(RESULTS, b"a key", b"no record", {"cocoa.id": b"m1"})
    await eventually(lambda: gateway.gateway.counters.routed == 1)
    await eventually(lambda: bool(gateway.gateway.broker.counters.quarantined))


@pytest.mark.gen_test(timeout=300)
async def test_schemathesis_finds_no_answer_that_is_not_as_documented(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = RateLimit(per_s=1e6, burst=1_000_000)
    for name in ("admin.handlers.REQUESTS", "admin.handlers.WRONG_TOKENS", "web.token_handler.WRONG_CREDENTIALS"):
        monkeypatch.setattr(f"cocoa_tornado.{name}", unlimited)
    monkeypatch.setattr(EventsHandler, "_left_s", 0.0)  # or a stream would not end
    gateway = await start_admin(
        engine=ScriptedEngine(), mailbox="memory://", api_credentials=((API_KEY, API_SECRET),), inbound_burst=1_000_000
    )
    await fill(gateway)
    probed = Probed()
    await asyncio.to_thread(probed.ask, gateway)
    assert not probed.faults, "\n".join(probed.faults)
    assert sum(map(len, probed.statuses.values())) > 1_000
    answered = {name for name, statuses in probed.statuses.items() if min(statuses) < 300}
    answered -= {name for name in answered if name.startswith("OPTIONS ")}
    operations = {f"{method.upper()} {path}" for path, item in DOCUMENT["paths"].items() for method in item}
    assert operations - answered == {"GET /ws"}  # it does not ask for an upgrade
