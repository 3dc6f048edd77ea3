"""The schemas that several operations use. Pure."""

from __future__ import annotations

from typing import Final

from ..rules.addressing import MAX_DEVICES, MAX_KEY_BYTES
from ..rules.device_events import PER_DEVICE
from ..rules.identity import MAX_GROUPS, MAX_NAME_BYTES
from ..rules.trace_memory import MESSAGES_PER_DEVICE
from .parts import NULL, Node, array, flag, mapping, nullable, number, one_of, record, ref, text, time, whole

NO_CONTROLS: Final = r"^[^\u0000-\u001f\u007f-\u009f]+$"
NAME: Final = text(
    f"At most {MAX_NAME_BYTES} bytes of UTF-8", minLength=1, maxLength=MAX_NAME_BYTES, pattern=NO_CONTROLS
)
GROUP: Final = text(f"1 to {MAX_NAME_BYTES} bytes of UTF-8", minLength=1, maxLength=MAX_NAME_BYTES, pattern=NO_CONTROLS)
USER_ID: Final[Node] = {"type": ["integer", "string"], "description": '99 and "99" are two users'}
MISSING: Final = array(text(), "Names of the servers that did not answer in time")
KEY: Final = text(f"1 to {MAX_KEY_BYTES} bytes of UTF-8", minLength=1, maxLength=MAX_KEY_BYTES)
DEVICES: Final = array(ref("DeviceId"), maxItems=MAX_DEVICES)

CONNECTION: Final[dict[str, Node]] = {
    "server": text("The name of the server that holds it"),
    "generation": text("<term>.<number>, as in the header cocoa.generation"),
    "connected_at": time(),
    "ip": text("The device's address, behind trusted proxies too"),
    "version": text("The device's firmware"),
    "rtt_ms": nullable(number("Round trip of the last ping; null before the first pong")),
    "queue": whole("Messages that the socket has not taken"),
    "last_activity": time(),
}
DEVICE: Final[dict[str, Node]] = {
    "device_id": ref("DeviceId"),
    "user_id": {"type": ["integer", "string", "null"], "description": "Null: the device is not connected"},
    "groups": array(ref("Group"), maxItems=MAX_GROUPS),
    "connections": array(ref("Connection")),
}
READER: Final[dict[str, Node]] = {
    "device_id": ref("DeviceId"),
    **{name: CONNECTION[name] for name in ("server", "generation", "queue", "rtt_ms")},
}
REPEAT: Final[dict[str, Node]] = {
    "device_id": ref("DeviceId"),
    "count": whole(least=1),
    "since": time("The first time"),
    "last": time("The last time"),
}
EVENT_KINDS: Final = ("connected", "refused", "challenged", "closed")
OUTCOMES: Final = (
    *("written", "acknowledged", "waiting", "not_connected", "expired", "overflow", "collapsed", "superseded"),
    *("slow_consumer", "quarantined", "fault"),
)
STEPS: Final = ("produced", "read", "addressed", "stored", "forwarded", "written", "acknowledged")

OPTIONS: Final[dict[str, Node]] = {
    "priority": {"enum": ["high", "normal", "low", None]},
    "ttl": {"type": ["integer", "null"], "minimum": 0, "description": "Seconds"},
    "collapse_key": nullable(KEY),
    "id": {"description": f"Names the message, if it is a string of 1 to {MAX_KEY_BYTES} bytes"},
}
EXCEPT: Final = record({"devices": DEVICES})


def _record(description: str, properties: dict[str, Node], *required: str) -> Node:
    """The value of a record. Other fields are passed on."""
    return {
        "type": "object",
        "description": description,
        "properties": properties | OPTIONS,
        "required": list(required),
        "additionalProperties": True,
    }


PARTS: Final = mapping(
    {
        "type": "object",
        "properties": {"ok": flag(), "state": text()},
        "required": ["ok", "state"],
        "additionalProperties": True,
    }
)

SCHEMAS: Final[dict[str, Node]] = {
    "Error": record({"message": text("For people")}),
    "DeviceId": NAME,
    "Group": GROUP,
    "UserId": USER_ID,
    "Missing": MISSING,
    "Connection": record(CONNECTION),
    "Device": record(DEVICE),
    "DevicePage": record(
        {
            "devices": array(ref("Device")),
            "next": nullable(text("The after of the next page; null: this is the last")),
            "connected": nullable(
                whole(
                    "How many connected devices fit, over all pages and the servers that have answered; one with"
                    " connections to several servers counts at each. Null: a server of an earlier release has answered"
                )
            ),
            "missing": ref("Missing"),
        }
    ),
    "Box": record(
        {
            "oldest": nullable(time("Timestamp of a waiting message")),
            "newest": nullable(time("Timestamp of a waiting message")),
            "acknowledged": nullable(
                mapping(whole(), "The highest acknowledged number in each lane; null: the device never acknowledged")
            ),
            "messages": whole("Number of waiting messages"),
            "bytes": whole("Bytes of the waiting messages"),
        }
    ),
    "DeviceEvent": record(
        {
            "at": time(),
            "server": text(),
            "event": one_of(*EVENT_KINDS),
            "code": nullable(whole("The HTTP status, or the close code")),
        }
    ),
    "DeviceMessage": record(
        {
            "id": text("The record's own, or <topic>/<partition>/<offset>: of GET /api/v1/admin/messages/{id}"),
            "at": time("When a server read it"),
            "outcome": {"enum": [*OUTCOMES, None], "description": "Null: not known yet, or no longer"},
            "note": text("An explanation of the outcome"),
        }
    ),
    "DeviceDetail": record(
        {
            **DEVICE,
            "box": nullable(ref("Box")) | {"description": "Null: there is no mailbox, or it is unavailable"},
            "events": array(ref("DeviceEvent"), "The last events", maxItems=PER_DEVICE),
            "messages": array(
                ref("DeviceMessage"), "The last messages, newest first, without interims", maxItems=MESSAGES_PER_DEVICE
            ),
            "blocked": flag(),
            "blocked_until": nullable(time("Null: until it is unblocked")),
            "missing": ref("Missing"),
        }
    ),
    "Event": record(
        {
            "event": one_of(*EVENT_KINDS, "message", "lost"),
            "at": time(),
            "server": text("Where it happened"),
            "device_id": ref("DeviceId"),
            "user_id": ref("UserId"),
            "code": nullable(whole("The HTTP status, or the close code")),
            "id": nullable(text("The record's own id")),
            "priority": one_of("high", "normal", "low"),
            "interim": flag("A later one of its session replaces it"),
            "length": whole("Length of the message in bytes"),
            "age_ms": nullable(whole("Age of the record's timestamp in milliseconds")),
            "text": text("The message; with the scope admin:text only"),
            "lost": nullable(whole("Number of missing events; null: unknown", least=1)),
        },
        optional=("device_id", "user_id", "code", "id", "priority", "interim", "length", "age_ms", "text", "lost"),
        description="The data of one server-sent event of GET /api/v1/admin/events",
    ),
    "Trace": record(
        {
            "id": text(),
            "summary": text("The outcomes in one line, for people"),
            "steps": array(
                record(
                    {
                        "at": nullable(time("Null: the time is unknown")),
                        "server": nullable(text("Null: the step was outside of the servers")),
                        "step": one_of(*STEPS),
                    }
                )
            ),
            "devices": array(
                record({"device_id": ref("DeviceId"), "outcome": {"enum": [*OUTCOMES, None]}}), maxItems=MAX_DEVICES
            ),
            "counts": mapping(whole(), "Devices, by outcome"),
            "missing": ref("Missing"),
            "notes": mapping(text(), "Explanations of outcomes, by device"),
            "length": whole("Length of the message in bytes; 0: unknown"),
            "text": text("The message; with the scope admin:text only"),
        },
        optional=("text",),
    ),
    "Explanation": record(
        {
            "valid": flag(),
            "reason": text("Why the record is invalid, in one word"),
            "message": text("The same for people"),
            "devices": array(
                record({"device_id": ref("DeviceId"), "would": one_of("send", "store", "drop"), "why": text()}),
                maxItems=MAX_DEVICES,
            ),
            "counts": mapping(whole(), "Number of devices by would"),
            "more": flag("There are more devices than are listed"),
            "missing": ref("Missing"),
        },
        optional=("reason", "message"),
    ),
    "Quarantined": record(
        {
            "partition": whole(),
            "offset": whole(),
            "timestamp": nullable(time()),
            "reason": nullable(text("Why it was rejected, in one word")),
            "topic": nullable(text("Where it was rejected")),
            "source_partition": nullable(whole()),
            "source_offset": nullable(whole()),
            "key": nullable(text()),
            "value_bytes": whole(),
            "value": nullable(text("Null without admin:text, or if the answer is full")),
            "is_cut": flag("The value is longer than shown"),
            "headers": array(record({"name": text(), "value": nullable(text())})),
            "dropped": mapping(
                whole(), "Parts that the copy lacks because of the topic's size limit, with their sizes"
            ),
            "requeued": nullable(flag("The record was requeued; null, for a single record only: unknown")),
        }
    ),
    "Reader": record(READER),
    "Repeat": record(REPEAT),
    "Top": record(
        {
            "queues": array(ref("Reader"), "The longest queues"),
            "round_trips": array(ref("Reader"), "The longest round trips"),
            "reconnects": array(ref("Repeat"), "Connections that were refused, or short"),
            "loops": array(ref("Repeat"), "The same message again, which the device never acknowledges"),
            "full_boxes": array(
                ref("Repeat"), "Messages that the device's full box has dropped before it received them"
            ),
            "read_again": array(
                record(
                    {
                        "id": text("Of the first of these records: <topic>/<partition>/<offset>"),
                        "records": whole("How many, one after the other", least=1),
                        "count": whole("How often each of them was read", least=2),
                        "servers": array(text(), "Those that have read them"),
                        "last": time("When the last time began"),
                    }
                ),
                "Records that were read more than once, as far as the servers remember",
            ),
            "missing": ref("Missing"),
        }
    ),
    "Record": {
        "description": "The value of a record of the topic transcription.results",
        "anyOf": [
            _record("For device_id", {"device_id": ref("DeviceId"), "to": NULL, "except": NULL}, "device_id"),
            _record(
                "For one device or several",
                {
                    "to": {
                        "oneOf": [
                            record({"device": ref("DeviceId")}),
                            record({"devices": DEVICES | {"minItems": 1}}),
                        ]
                    },
                    "except": NULL,
                },
                "to",
            ),
            _record(
                "For a user, a group, or all",
                {
                    "to": {
                        "oneOf": [
                            record({"user": USER_ID}),
                            record({"group": ref("Group")}),
                            record({"all": {"const": True}}),
                        ]
                    },
                    "except": nullable(EXCEPT),
                },
                "to",
            ),
        ],
    },
    "Token": record(
        {"token": text("A JWT"), "type": {"const": "Bearer"}, "expires_in": whole("Seconds")}, optional=("expires_in",)
    ),
    "DeviceClaims": {
        "type": "object",
        "properties": {
            "device_id": ref("DeviceId"),
            "user_id": ref("UserId"),
            "device_version": text(),
            "groups": array(ref("Group"), maxItems=MAX_GROUPS),
        },
        "additionalProperties": True,
    },
    "Readiness": record(
        {
            "message": text("The parts that are not ready"),
            "status": one_of("ready", "unavailable"),
            "parts": PARTS,
        },
        optional=("message",),
    ),
    "Server": record(
        {
            "server": text(),
            "version": text(),
            "started_at": time(),
            "connections": whole("Connections of devices now"),
            "devices": whole("Now"),
            "failing": array(text(), "The parts that keep it from being ready"),
            "parts": PARTS,
            "lag": nullable(whole("Records that it has not read; null: unknown")),
            "waiting": nullable(
                whole("Messages in the mailbox that the servers share, including those written and not acknowledged")
            ),
            "waiting_bytes": nullable(whole("Bytes of these messages")),
            "counters": mapping(whole(), "Counts since the start"),
            "latency": array(whole(), "Deliveries, by upper bound; those above all bounds are the last"),
            "device_port": nullable(whole("The port of /ws, if the admin API has its own port")),
            "refused": mapping(whole(), "Handshakes refused since the start, by reason"),
            "closed": mapping(whole(), "Connections ended since the start, by close code"),
            "recent": nullable(ref("Recent")) | {"description": "Null: the server is of an earlier release"},
        }
    ),
    "Recent": record(
        {
            "since": time("An hour ago, or at most a minute more; the start, if that is later"),
            "counters": mapping(whole(), "Counts since then, without those that are 0"),
            "refused": mapping(whole(), "Handshakes refused since then, by reason"),
            "closed": mapping(whole(), "Connections ended since then, by close code"),
        },
        description="A server's counts of the last hour",
    ),
    "Overview": record(
        {
            "servers": array(ref("Server")),
            "latency_bounds_ms": array(number()),
            "missing": ref("Missing"),
        }
    ),
}
