"""The admin API's paths. Pure."""

from __future__ import annotations

from typing import Any, Final

from .parts import (
    Node,
    answer,
    array,
    body,
    in_path,
    in_query,
    json_in_query,
    mapping,
    record,
    ref,
    refusals,
    text,
    time,
    whole,
)

BASE: Final = "/api/v1/admin"
MAX_PAGE: Final = 1_000
RECORD: Final = {"to": {"group": "kitchen"}, "text": "dinner is ready", "priority": "high", "id": "dinner-1"}
_DEVICE: Final = in_path("id", ref("DeviceId"), "doll-1")
_USER: Final = in_path("id", text(minLength=1), "99", '99 is the integer, "99" with quotes the string')
_GROUP: Final = in_path("name", ref("Group"), "kitchen")
_ID: Final = in_query(
    "id", text(), "Where the id in the path is -: the id. URL clients remove the ids . and .. from paths"
)
_USER_FIELD: Final = in_query("user", text(), '99 is the integer, "99" with quotes the string')
_GROUP_FIELD: Final = in_query("group", ref("Group"))
_AFTER: Final = in_query("after", text(), "Only devices whose ids come after this one, by their bytes")
_LIMIT: Final = in_query("limit", whole(least=1, most=MAX_PAGE, default=100))
_RECONNECT: Final = in_query(
    "reconnect_after",
    whole(most=86_400),
    "Ask the devices to reconnect after this many seconds; without it they are not asked",
)
_CLOSED: Final = answer("How many connections were closed", record({"closed": whole(), "missing": ref("Missing")}))


def _operation(scope: str, operation: str, summary: str, ok: Node, *others: int, **parts: Any) -> Node:
    """One operation.

    :param ok: its responses with a 2xx status
    :param others: further statuses, beside those that every operation has
    """
    return {
        "summary": summary,
        "operationId": operation,
        "tags": ["operators"],
        "description": f"Scope admin:{scope}.",
        "security": [{"adminToken": []}],
        **parts,
        "responses": ok | refusals(*sorted({400, 401, 403, 404, 413, 421, 429, 503, *others})),
    }


def _close(operation: str, target: Node) -> Node:
    summary = "Close connections"
    return {
        "delete": _operation("write", operation, summary, {"200": _CLOSED}, parameters=[target, _ID, _RECONNECT]),
    }


def _members(operation: str, target: Node) -> Node:
    page = {"200": answer("A page of members; with a mailbox, also those that are not connected", ref("DevicePage"))}
    return {"get": _operation("read", operation, "List members", page, parameters=[target, _ID, _AFTER, _LIMIT])}


PATHS: Final[dict[str, Node]] = {
    f"{BASE}/devices": {
        "get": _operation(
            "read",
            "listDevices",
            "List connected devices",
            {"200": answer("A page", ref("DevicePage"))},
            parameters=[
                _USER_FIELD,
                _GROUP_FIELD,
                in_query("prefix", text(), "Only devices whose ids begin with this"),
                _AFTER,
                _LIMIT,
            ],
        )
    },
    f"{BASE}/devices/{{id}}": {
        "get": _operation(
            "read",
            "getDevice",
            "Get a device",
            {"200": answer("The device", ref("DeviceDetail"))},
            parameters=[_DEVICE, _ID],
        )
    },
    f"{BASE}/devices/{{id}}/connections": _close("closeDevice", _DEVICE),
    f"{BASE}/users/{{id}}/connections": _close("closeUser", _USER),
    f"{BASE}/groups/{{name}}/connections": _close("closeGroup", _GROUP),
    f"{BASE}/users/{{id}}/devices": _members("listUser", _USER),
    f"{BASE}/groups/{{name}}/devices": _members("listGroup", _GROUP),
    f"{BASE}/devices/{{id}}/box": {
        "delete": _operation(
            "write",
            "emptyBox",
            "Empty a device's box",
            {"200": answer("The number of deleted messages", record({"deleted": whole()}))},
            parameters=[_DEVICE, _ID],
        )
    },
    f"{BASE}/devices/{{id}}/block": {
        "put": _operation(
            "write",
            "block",
            "Disconnect a device and refuse it from now on",
            {
                "200": answer(
                    "The device is blocked",
                    record(
                        {
                            "blocked": {"const": True},
                            "until": {"type": ["string", "null"]},
                            "closed": whole(),
                            "missing": ref("Missing"),
                        }
                    ),
                )
            },
            409,
            parameters=[_DEVICE, _ID],
            requestBody=body(
                "The end of the block; without a body until the device is unblocked",
                {
                    "type": "object",
                    "properties": {"until": {"type": ["string", "null"], "format": "date-time"}},
                    "additionalProperties": True,
                },
                required=False,
            ),
        ),
        "delete": _operation(
            "write",
            "unblock",
            "Let a device connect again",
            {
                "200": answer(
                    "The device is not blocked", record({"blocked": {"const": False}, "missing": ref("Missing")})
                )
            },
            409,
            parameters=[_DEVICE, _ID],
        ),
    },
    f"{BASE}/messages": {
        "post": _operation(
            "write",
            "sendMessage",
            "Publish a record",
            {
                "202": answer(
                    "The broker has acknowledged the record",
                    record({"id": text("The message's id, for GET messages/{id}")}),
                )
            },
            requestBody=body("The value of a record, of at most 64 KiB", ref("Record"), RECORD),
        )
    },
    f"{BASE}/messages/{{id}}": {
        "get": _operation(
            "read",
            "traceMessage",
            "Trace a message",
            {"200": answer("The steps and outcomes that the servers know", ref("Trace"))},
            parameters=[
                in_path(
                    "id",
                    text(minLength=1, maxLength=512),
                    "lullaby-17",
                    "The message's id, or <topic>/<partition>/<offset>; slashes encoded or not",
                ),
                _ID,
            ],
        )
    },
    f"{BASE}/explain": {
        "post": _operation(
            "read",
            "explain",
            "Explain what would happen to a record; sends nothing",
            {"200": answer("The explanation, also of an invalid record", ref("Explanation"))},
            requestBody=body("The value of a record, valid or not", {}, RECORD, required=False),
            parameters=[
                json_in_query("headers", mapping(text()), "The record's headers"),
                in_query("timestamp", time("The record's timestamp, from which its ttl counts")),
            ],
        )
    },
    f"{BASE}/quarantine": {
        "get": _operation(
            "read",
            "listQuarantine",
            "List rejected records, newest first",
            {
                "200": answer(
                    "The newest rejected records",
                    record({"records": array(ref("Quarantined"), maxItems=MAX_PAGE), "missing": ref("Missing")}),
                )
            },
            parameters=[_LIMIT],
        )
    },
    f"{BASE}/quarantine/{{partition}}/{{offset}}": {
        "get": _operation(
            "read",
            "getQuarantined",
            "Get a rejected record",
            {"200": answer("The record, with up to 2 MiB of its value", ref("Quarantined"))},
            parameters=[in_path("partition", whole(), 0), in_path("offset", whole(), 0)],
        )
    },
    f"{BASE}/quarantine/{{partition}}/{{offset}}/requeue": {
        "post": _operation(
            "write",
            "requeue",
            "Put a rejected record back on the results topic, once",
            {"202": answer("The record was requeued", record({"id": text("The message's id, for GET messages/{id}")}))},
            409,
            parameters=[in_path("partition", whole(), 0), in_path("offset", whole(), 0)],
            requestBody=body(
                "The corrected value; without a body the record is requeued unchanged",
                ref("Record"),
                RECORD,
                required=False,
            ),
        )
    },
    f"{BASE}/events": {
        "get": _operation(
            "read",
            "watchEvents",
            "Stream events of devices",
            {
                "200": answer(
                    "Server-sent events until the token expires; the data of each is JSON of the schema Event",
                    text(),
                    "text/event-stream",
                )
            },
            parameters=[in_query("device", ref("DeviceId")), _USER_FIELD, _GROUP_FIELD],
        )
    },
    f"{BASE}/overview": {
        "get": _operation(
            "read",
            "overview",
            "Get the state of all servers",
            {"200": answer("A row for each server", ref("Overview"))},
        )
    },
    f"{BASE}/top": {
        "get": _operation(
            "read",
            "listTop",
            "List devices that need attention",
            {"200": answer("At most limit rows in each list", ref("Top"))},
            parameters=[in_query("limit", whole(least=1, most=100, default=10))],
        )
    },
    f"{BASE}/device-token": {
        "post": _operation(
            "write",
            "createDeviceToken",
            "Get a device token of ten minutes",
            {"200": answer("The token", ref("Token"))},
            requestBody=body(
                "The device of the token",
                {"allOf": [ref("DeviceClaims")], "required": ["device_id"]},
                {"device_id": "doll-1", "groups": ["kitchen"]},
            ),
        )
    },
}
