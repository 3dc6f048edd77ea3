"""The paths of devices, of backends and of monitoring. Pure."""

from __future__ import annotations

from typing import Final

from .parts import (
    CHALLENGE,
    RETRY_AFTER,
    Node,
    answer,
    body,
    flag,
    in_query,
    record,
    ref,
    refusals,
    text,
    time,
)

DEVICE_TOKEN: Final[list[Node]] = [{"deviceToken": []}]
SOCKET_TOKEN: Final[list[Node]] = [{"deviceToken": []}, {"deviceTokenInQuery": []}, {"deviceTokenInSubprotocol": []}]
RECORD: Final = {"device_id": "doll-1", "text": "good night"}
_TRUTH: Final[Node] = {"type": "string", "enum": ["true", "false", "1", "0"]}
_TRACK: Final = {"schema": {"type": "string", "format": "binary"}}


def _monitoring(summary: str, operation: str, responses: Node) -> Node:
    """GET, and HEAD with the same answer without its body."""
    responses = responses | refusals(421)
    bare = {status: {name: each[name] for name in each if name != "content"} for status, each in responses.items()}
    shared: Node = {"tags": ["monitoring"], "security": []}
    return {
        "get": {"summary": summary, "operationId": operation, **shared, "responses": responses},
        "head": {"summary": summary, "operationId": f"{operation}Head", **shared, "responses": bare},
    }


PATHS: Final[dict[str, Node]] = {
    "/ws": {
        "get": {
            "summary": "Connect a device over WebSocket",
            "description": "docs/asyncapi.yaml has the messages. A plain GET says why an upgrade would be refused.",
            "operationId": "connect",
            "tags": ["devices"],
            "security": SOCKET_TOKEN,
            "parameters": [
                in_query("after", text(), "A cursor: send the messages after it"),
                in_query("cursors", _TRUTH, "The device uses cursors, and may have none yet"),
                in_query("interim", _TRUTH, "Send partial results, too"),
            ],
            "responses": {
                "101": {"description": "The device is connected"},
                **refusals(400, 401, 403),
                "409": {"$ref": "#/components/responses/busy"},
                **refusals(426, 503),
            },
        }
    },
    "/api/v1/auth/token": {
        "post": {
            "summary": "Get a device token for an API key and its secret",
            "operationId": "createToken",
            "tags": ["backends"],
            "security": [{"apiKey": [], "apiSecret": []}],
            "requestBody": body(
                "The device of the token; without a body, a device named after the API key",
                ref("DeviceClaims"),
                required=False,
            ),
            "responses": {"200": answer("The token", ref("Token")), **refusals(400, 401, 404, 413, 429, 503)},
        }
    },
    "/api/v1/audio/stream": {
        "post": {
            "summary": "Recognize audio",
            "operationId": "sendAudio",
            "tags": ["devices"],
            "security": DEVICE_TOKEN,
            "parameters": [in_query("interim", _TRUTH, "Send partial results to the device's connection")],
            "requestBody": {
                "description": "Audio, sized or chunked",
                "required": True,
                "content": {"audio/*": _TRACK, "application/octet-stream": _TRACK},
            },
            "responses": {
                "200": answer(
                    "The recognized text",
                    record(
                        {
                            "success": {"const": True},
                            "message": text(),
                            "session_id": text(pattern="^[0-9a-f]{32}$"),
                            "text": text(),
                        }
                    ),
                ),
                **refusals(400, 401, 403, 408, 413, 429, 501, 502, 503),
            },
        }
    },
    "/api/v1/transcriptions": {
        "post": {
            "summary": "Publish a record to the device of the token",
            "description": "For trials; 404 unless http_publish is on.",
            "operationId": "publish",
            "tags": ["devices"],
            "security": DEVICE_TOKEN,
            "requestBody": body("The value of a record, without to and except", ref("Record"), RECORD),
            "responses": {
                "202": answer("The broker has acknowledged the record", record({"success": flag()})),
                **refusals(400, 401, 403, 404, 413, 429, 503),
            },
        }
    },
    "/api/v1/health": _monitoring(
        "Check that the process is alive",
        "health",
        {
            "200": answer(
                "The process is alive",
                record({"status": {"const": "healthy"}, "timestamp": time(), "service": {"const": "audio-streaming"}}),
            )
        },
    ),
    "/api/v1/ready": _monitoring(
        "Check that a record produced from now on will be delivered",
        "ready",
        {
            "200": answer("The gateway is ready", ref("Readiness")),
            "503": answer("The gateway is not ready", ref("Readiness")) | {"headers": RETRY_AFTER},
        },
    ),
    "/metrics": _monitoring(
        "Metrics, for Prometheus",
        "metrics",
        {"200": answer("All metrics", text(), "text/plain; version=0.0.4; charset=utf-8")},
    ),
    "/api/v1/openapi.json": _monitoring(
        "This document", "openapi", {"200": answer("OpenAPI 3.1", {"type": "object", "additionalProperties": True})}
    ),
}

SECURITY_SCHEMES: Final[dict[str, Node]] = {
    "deviceToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "deviceTokenInQuery": {"type": "apiKey", "in": "query", "name": "token"},
    "deviceTokenInSubprotocol": {
        "type": "apiKey",
        "in": "header",
        "name": "Sec-WebSocket-Protocol",
        "description": "bearer, <JWT>: for browsers, which cannot set other headers",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "apiSecret": {"type": "apiKey", "in": "header", "name": "X-API-Secret"},
    "adminToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A JWT with the audience cocoa-admin and the scopes admin:read, admin:write or admin:text",
    },
}

_REFUSALS: Final = {
    400: "A part of the request is invalid",
    401: "The token is missing or invalid",
    403: "The token or its device is not permitted to do this",
    404: "It does not exist, or the endpoint is disabled",
    408: "The client was too slow",
    409: "A conflict with the current state",
    413: "The body is too large",
    421: "The host name of the request is not in allowed_hosts",
    426: "Upgrade to WebSocket",
    429: "Too many requests",
    501: "Speech recognition is off",
    502: "Speech recognition has failed",
    503: "Temporarily unavailable",
}
_HEADERS: Final = {401: CHALLENGE, 429: RETRY_AFTER, 503: RETRY_AFTER}
RESPONSES: Final[dict[str, Node]] = {
    **{
        str(status): answer(description, ref("Error")) | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
        for status, description in _REFUSALS.items()
    },
    "busy": answer("The device is connected already", ref("Error")) | {"headers": RETRY_AFTER},
}
