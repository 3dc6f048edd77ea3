"""A small gateway that keeps the contract, and can be configured to break it in one way.

It shares no code with the package: what the probe says of it must not hang on a misunderstanding that both share.
Everything is in memory; records come in over ``POST /api/v1/transcriptions``. One event loop.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import enum
import hashlib
import json
import ssl
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from jwt.types import Options

from .broken_speech import BrokenSpeech, SpeechFault

SECRET = "the secret of the gateways that break"
MAX_MESSAGE_BYTES = 512 * 1024
IDLE_CUT_S = 0.4
LARGEST_THAT_IS_READ = 16 * 1024  # of anything larger only the size is of interest
PING_S = 0.1
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Fault(enum.Enum):
    """One way to break the contract."""

    HEALTH_HAS_BLANKS = enum.auto()
    NOT_READY = enum.auto()
    READY_SAYS_NOTHING = enum.auto()
    HTML_ERRORS = enum.auto()
    PLAIN_GET_IS_400 = enum.auto()
    NO_TOKEN_LET_IN = enum.auto()
    OTHER_401_BODY = enum.auto()
    NO_WWW_AUTHENTICATE = enum.auto()
    BAD_TOKEN_IS_400 = enum.auto()
    SIGNATURE_IGNORED = enum.auto()
    ALG_NONE_ACCEPTED = enum.auto()
    EXPIRED_ACCEPTED = enum.auto()
    NO_DEVICE_ID_ACCEPTED = enum.auto()
    WRONG_ACCEPT_KEY = enum.auto()
    UNASKED_EXTENSION = enum.auto()
    QUERY_TOKEN_IGNORED = enum.auto()
    BEARER_NOT_SELECTED = enum.auto()
    OTHER_SUBPROTOCOL_SELECTED = enum.auto()
    ANY_ORIGIN = enum.auto()
    NO_ORIGIN_AT_ALL = enum.auto()
    NO_PONG = enum.auto()
    OTHER_PONG = enum.auto()
    NO_409 = enum.auto()
    ACCEPT_THEN_CLOSE = enum.auto()
    INCUMBENT_EVICTED = enum.auto()
    NO_RETRY_AFTER = enum.auto()
    NOTHING_DELIVERED = enum.auto()
    MESSAGE_HAS_BLANKS = enum.auto()
    TYPE_LAST = enum.auto()
    MESSAGE_ESCAPED = enum.auto()
    UNKNOWN_FIELDS_LOST = enum.auto()
    OUT_OF_ORDER = enum.auto()
    DELIVERED_TWICE = enum.auto()
    BROADCAST = enum.auto()
    PRIORITY_SWAPPED = enum.auto()
    HIGH_OVERTAKEN = enum.auto()
    HIGH_LOST = enum.auto()
    PRIORITY_PASSED_ON = enum.auto()
    ADDRESS_ACCEPTED = enum.auto()
    EXCEPT_ACCEPTED = enum.auto()
    GROUP_NOT_REACHED = enum.auto()
    GROUP_DOUBLED = enum.auto()
    GROUP_LEAKED = enum.auto()
    EXCEPT_IGNORED = enum.auto()
    TO_PASSED_ON = enum.auto()
    CLOSE_NOT_ANSWERED = enum.auto()
    SLOT_KEPT_AFTER_CLOSE = enum.auto()
    SLOT_KEPT_AFTER_RESET = enum.auto()
    SLOT_FREED_LATE = enum.auto()
    OVERSIZE_ACCEPTED = enum.auto()
    OVERSIZE_CUT = enum.auto()
    INVALID_FRAME_IGNORED = enum.auto()
    IDLE_CUT = enum.auto()
    NO_SERVER_PING = enum.auto()
    NO_HTTP_PUBLISH = enum.auto()
    TOKEN_ECHOED = enum.auto()
    SLOTS_OF_ITS_OWN = enum.auto()  # of one of several servers, as those that follow
    NOT_FORWARDED = enum.auto()
    FORWARDED_TWICE = enum.auto()
    FORWARDED_TO_ALL = enum.auto()
    FREED_LATE_ELSEWHERE = enum.auto()
    UPLOAD_HELD_BACK = enum.auto()
    CURSORS = enum.auto()  # no fault: a gateway with a mailbox
    PLAIN_GET_NOT_JUDGED = enum.auto()  # no fault: 426 for any token, like gateways of 0.1.0
    UPGRADE_TAKEN_OUT = enum.auto()  # no fault: a proxy has to


class BrokenGateway:
    """One gateway on a free port of loopback.

    :param speech: what is wrong with its speech; None: it has none
    :param beside: another server of the same deployment
    """

    def __init__(
        self, *faults: Fault, speech: Sequence[SpeechFault] | None = None, beside: BrokenGateway | None = None
    ) -> None:
        self.faults = frozenset(faults)
        self.speech = None if speech is None else BrokenSpeech(speech, self.send_text, self._connected)
        self.port = 0
        self.opened: list[str] = []
        is_alone = beside is None or self.has(Fault.SLOTS_OF_ITS_OWN)
        self._slots: dict[str, list[Connection]] = {} if is_alone or beside is None else beside._slots
        # The server at which each device was last closed.
        self.left: dict[str, BrokenGateway] = {} if beside is None else beside.left
        self._held_back: list[tuple[str, dict[str, object]]] = []
        self._waiting: list[dict[str, object]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self, device_id: str) -> None:
        """Connect another client as this device."""
        self._slots[device_id] = [Connection(self, device_id, None)]

    def deliver_soon(self, device_id: str, record: dict[str, object]) -> None:
        """Deliver a record; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._deliver, device_id, record)

    def send_text(self, device_id: str, message: str) -> None:
        """Send a device a message, if it is connected."""
        for connection in self._slots.get(device_id, []):
            connection.send(TEXT, message.encode())

    def _connected(self) -> list[str]:
        return [device_id for device_id, connections in self._slots.items() if connections]

    def has(self, fault: Fault) -> bool:
        return fault in self.faults

    # --- HTTP ------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._respond(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went, or the gateway stops
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(RuntimeError):  # the loop may be closing
                writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, url, _ = lines[0].split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = urlsplit(url).path
        if path == "/ws":
            await self._websocket(url, headers, reader, writer)
        elif path == "/api/v1/health":
            text = '{"status":"healthy","timestamp":"2026-01-02T03:04:05Z","service":"audio-streaming"}'
            answer(writer, 200, text.replace(",", ", ") if self.has(Fault.HEALTH_HAS_BLANKS) else text)
        elif path == "/api/v1/ready":
            self._ready(writer)
        elif path == "/api/v1/transcriptions" and method == "POST" and not self.has(Fault.NO_HTTP_PUBLISH):
            self._publish(headers, body, writer)
        elif path == "/api/v1/audio/stream":
            await self._audio(headers, reader, writer)
        elif self.has(Fault.HTML_ERRORS):
            answer(writer, 404, "<html><title>404</title></html>")
        else:
            refuse(writer, 404, "Not Found")

    def _ready(self, writer: asyncio.StreamWriter) -> None:
        parts = {name: {"ok": True} for name in ("broker", "mailbox", "presence", "speech")}
        if self.has(Fault.READY_SAYS_NOTHING):
            parts = {}
        answer(writer, 503 if self.has(Fault.NOT_READY) else 200, json.dumps({"status": "?", "parts": parts}))

    def _publish(self, headers: Mapping[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        claims = self._claims(headers.get("authorization", "").removeprefix("Bearer "))
        record = json.loads(body)
        if isinstance(claims, str) or claims["device_id"] != record["device_id"]:
            refuse(writer, 403, "The token is for another device")
            return
        is_refused = "to" in record and not self.has(Fault.ADDRESS_ACCEPTED)
        if is_refused or ("except" in record and not self.has(Fault.EXCEPT_ACCEPTED)):
            refuse(writer, 403, "Devices can't address others")
            return
        answer(writer, 202, '{"success":true}')
        for ready in self._reordered(record):
            self._publish_one(ready)

    def _publish_one(self, record: dict[str, Any]) -> None:
        if self.has(Fault.OUT_OF_ORDER) and not self._held_back and "priority" not in record:
            self._held_back.append((record["device_id"], record))
            asyncio.get_running_loop().call_later(0.05, self._deliver_held_back)
            return
        self._deliver(record["device_id"], record)

    async def _audio(
        self, headers: Mapping[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # The first chunk is read: a connection that is closed with something unread would be reset.
        first = await reader.readuntil(b"\r\n") if self.speech is None or "not-a-token" in str(headers) else b""
        if first:
            await reader.readexactly(int(first, 16) + 2)
            if self.has(Fault.UPLOAD_HELD_BACK):
                await reader.readuntil(b"0\r\n\r\n")
        if self.speech is None:
            refuse(writer, 501, "Speech recognition is not available")
            return
        claims = self._claims(headers.get("authorization", "").removeprefix("Bearer "))
        if isinstance(claims, str):
            self._unauthorized(writer, "", claims)
            return
        await self.speech.post(
            claims, reader, lambda status, body: answer(writer, status, body), writer.transport.abort
        )

    def _reordered(self, record: dict[str, object]) -> list[dict[str, object]]:
        """What to deliver now: a record may wait for the next one."""
        priority = record.get("priority")
        swaps = self.has(Fault.PRIORITY_SWAPPED)
        if priority == "high" and self.has(Fault.HIGH_LOST):
            return []
        if (priority == "high" and self.has(Fault.HIGH_OVERTAKEN)) or (
            priority == "low" and swaps and not self._waiting
        ):
            self._waiting.append(record)
            return []
        if swaps and priority != "low":
            return [record]
        ready, self._waiting = [record, *self._waiting], []
        return ready

    def produce(self, record: dict[str, Any]) -> None:
        """A backend's record for a group."""
        if self.has(Fault.GROUP_NOT_REACHED):
            return
        excepted = [] if self.has(Fault.EXCEPT_IGNORED) else record.get("except", {"devices": []})["devices"]
        for device_id, connections in list(self._slots.items()):
            is_member = any(connection.is_in(record["to"]["group"]) for connection in connections)
            if (is_member or self.has(Fault.GROUP_LEAKED)) and device_id not in excepted:
                for _ in range(2 if self.has(Fault.GROUP_DOUBLED) else 1):
                    self._deliver(device_id, record)

    def _deliver_held_back(self) -> None:
        while self._held_back:
            self._deliver(*self._held_back.pop())

    def _deliver(self, device_id: str, record: dict[str, object]) -> None:
        if self.has(Fault.NOTHING_DELIVERED):
            return
        receivers = self._slots.get(device_id, [])
        if self.has(Fault.BROADCAST):
            receivers = [connection for slots in self._slots.values() for connection in slots]
        if self.has(Fault.FORWARDED_TO_ALL):
            others = [connection for slots in self._slots.values() for connection in slots if connection.is_away(self)]
            receivers = [*receivers, *(connection for connection in others if connection not in receivers)]
        for connection in list(receivers):
            if connection.is_away(self) and self.has(Fault.NOT_FORWARDED):
                continue
            twice = self.has(Fault.DELIVERED_TWICE) or (connection.is_away(self) and self.has(Fault.FORWARDED_TWICE))
            for _ in range(2 if twice else 1):
                connection.send(TEXT, self._message(record).encode())

    def _message(self, record: dict[str, object]) -> str:
        kept = {Fault.PRIORITY_PASSED_ON: "priority", Fault.TO_PASSED_ON: "to"}
        removed = {"type", "to", "except", "priority"} - {name for fault, name in kept.items() if self.has(fault)}
        fields = {name: value for name, value in record.items() if name not in removed}
        if self.has(Fault.UNKNOWN_FIELDS_LOST):
            fields.pop("probe", None)
        if self.has(Fault.CURSORS):
            fields["cursor"] = "opaque-7"
        message = (
            {**fields, "type": "transcription"} if self.has(Fault.TYPE_LAST) else {"type": "transcription", **fields}
        )
        return json.dumps(
            message,
            separators=(", ", ": ") if self.has(Fault.MESSAGE_HAS_BLANKS) else (",", ":"),
            ensure_ascii=self.has(Fault.MESSAGE_ESCAPED),
        )

    # --- Identity --------------------------------------------------------------------------------------------------

    def _token(self, url: str, headers: Mapping[str, str]) -> tuple[str, bool]:
        """The token, and whether it came as a subprotocol."""
        query = parse_qs(urlsplit(url).query).get("token")
        if query and not self.has(Fault.QUERY_TOKEN_IGNORED):
            return query[0], False
        if headers.get("authorization", "").startswith("Bearer "):
            return headers["authorization"][7:], False
        protocols = [part.strip() for part in headers.get("sec-websocket-protocol", "").split(",")]
        return (protocols[1], True) if protocols[0] == "bearer" and len(protocols) > 1 else ("", False)

    def _claims(self, token: str) -> dict[str, object] | str:
        """The claims, or the message of the refusal."""
        try:
            if self.has(Fault.ALG_NONE_ACCEPTED) and jwt.get_unverified_header(token)["alg"] == "none":
                claims = jwt.decode(token, options={"verify_signature": False})
            else:
                options: Options = {
                    "verify_signature": not self.has(Fault.SIGNATURE_IGNORED),
                    "verify_exp": not self.has(Fault.EXPIRED_ACCEPTED),
                }
                claims = jwt.decode(token, SECRET, algorithms=["HS256"], options=options)
                if self.has(Fault.SIGNATURE_IGNORED) and jwt.get_unverified_header(token)["alg"] == "none":
                    return "Invalid JWT token"
        except jwt.PyJWTError:
            return "Invalid JWT token"
        if "device_id" not in claims:
            if self.has(Fault.NO_DEVICE_ID_ACCEPTED):
                return {"device_id": "nobody"}
            return "Invalid JWT claims"
        return dict(claims)

    # --- The handshake ---------------------------------------------------------------------------------------------

    async def _websocket(
        self, url: str, headers: Mapping[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        is_plain = headers.get("upgrade") != "websocket"
        if is_plain and self.has(Fault.PLAIN_GET_NOT_JUDGED):
            refuse(writer, 426, "Upgrade Required", {"Upgrade": "websocket"})
            return
        token, as_subprotocol = self._token(url, headers)
        claims = self._claims(token) if token else "Missing JWT token"
        if not token and self.has(Fault.NO_TOKEN_LET_IN):
            claims = {"device_id": "anybody"}
        if isinstance(claims, str):
            self._unauthorized(writer, token, claims)
            return
        origin = headers.get("origin")
        if origin is not None and (self._is_foreign(origin) or self.has(Fault.NO_ORIGIN_AT_ALL)):
            refuse(writer, 403, "Origin not allowed")
            return
        device_id = str(claims["device_id"])
        connection = Connection(self, device_id, writer, claims)
        others = self._slots.setdefault(device_id, [])
        if self.left.get(device_id, self) is not self and self.has(Fault.FREED_LATE_ELSEWHERE):
            self.left.pop(device_id)
            refuse(writer, 409, "Device already connected", {"Retry-After": "5"})
            return
        if others and not self.faults & {Fault.NO_409, Fault.ACCEPT_THEN_CLOSE, Fault.INCUMBENT_EVICTED}:
            late = {} if self.has(Fault.NO_RETRY_AFTER) else {"Retry-After": "5"}
            refuse(writer, 409, "Device already connected", late)
            return
        if is_plain:
            late = {} if self.has(Fault.UPGRADE_TAKEN_OUT) else {"Upgrade": "websocket"}
            refuse(writer, 400 if self.has(Fault.PLAIN_GET_IS_400) else 426, "Upgrade Required", late)
            return
        if self.has(Fault.INCUMBENT_EVICTED):
            for other in others:
                other.send(CLOSE, struct.pack("!H", 4409))
            others.clear()
        is_duplicate = bool(others)
        others.append(connection)
        self.opened.append(device_id)
        self._switch(writer, headers, as_subprotocol)
        if is_duplicate and self.has(Fault.ACCEPT_THEN_CLOSE):
            others.remove(connection)
            connection.send(CLOSE, struct.pack("!H", 4409))
            return
        await connection.run(reader)

    def _unauthorized(self, writer: asyncio.StreamWriter, token: str, message: str) -> None:
        if self.has(Fault.OTHER_401_BODY) and message.startswith("Missing"):
            message = "missing token"
        if self.has(Fault.TOKEN_ECHOED):
            message = f"Invalid JWT token {token}"
        status = 400 if self.has(Fault.BAD_TOKEN_IS_400) and token == "not-a-token" else 401
        refuse(writer, status, message, {} if self.has(Fault.NO_WWW_AUTHENTICATE) else {"WWW-Authenticate": "Bearer"})

    def _is_foreign(self, origin: str) -> bool:
        return urlsplit(origin).hostname != "127.0.0.1" and not self.has(Fault.ANY_ORIGIN)

    def _switch(self, writer: asyncio.StreamWriter, headers: Mapping[str, str], as_subprotocol: bool) -> None:
        key = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "Connection: Upgrade"]
        lines.append(f"Sec-WebSocket-Accept: {accept[::-1] if self.has(Fault.WRONG_ACCEPT_KEY) else accept}")
        if as_subprotocol and not self.has(Fault.BEARER_NOT_SELECTED):
            lines.append("Sec-WebSocket-Protocol: bearer")
        elif self.has(Fault.OTHER_SUBPROTOCOL_SELECTED) and "mqtt" in headers.get("sec-websocket-protocol", ""):
            lines.append("Sec-WebSocket-Protocol: mqtt")
        if self.has(Fault.UNASKED_EXTENSION):
            lines.append("Sec-WebSocket-Extensions: permessage-deflate")
        writer.write("\r\n".join([*lines, "", ""]).encode())

    def released(self, connection: Connection, *, closed: bool) -> None:
        """The connection has ended, with or without a closing handshake."""
        kept = Fault.SLOT_KEPT_AFTER_CLOSE if closed else Fault.SLOT_KEPT_AFTER_RESET
        if self.has(kept):
            return
        slots = self._slots.get(connection.device_id, [])
        if closed:
            self.left[connection.device_id] = self
        if connection in slots:
            slots.remove(connection)


class Connection:
    """One device's connection, once it is open."""

    def __init__(
        self,
        gateway: BrokenGateway,
        device_id: str,
        writer: asyncio.StreamWriter | None,
        claims: Mapping[str, object] | None = None,
    ) -> None:
        self.device_id = device_id
        self._gateway, self._writer, self._claims = gateway, writer, claims or {}

    def is_away(self, gateway: BrokenGateway) -> bool:
        """Whether another server has the connection."""
        return self._gateway is not gateway

    def is_in(self, group: str) -> bool:
        groups = self._claims.get("groups", [])
        return isinstance(groups, list) and group in groups

    def send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        head = struct.pack("!BB", 0x80 | opcode, size) if size < 126 else struct.pack("!BBH", 0x80 | opcode, 126, size)
        if self._writer is not None:
            self._writer.write(head + payload)

    async def run(self, reader: asyncio.StreamReader) -> None:
        pinger = asyncio.create_task(self._ping())
        closed = False
        try:
            idle_s = IDLE_CUT_S if self._gateway.has(Fault.IDLE_CUT) else None
            async with asyncio.timeout(idle_s) as idle:
                while not closed:
                    opcode, size, payload = await self._read_frame(reader)
                    if idle_s is not None and opcode != PONG:
                        idle.reschedule(asyncio.get_running_loop().time() + idle_s)
                    closed = self._take(opcode, size, payload)
        except TimeoutError:
            pass  # cut, without a word
        finally:
            pinger.cancel()
            if closed and self._gateway.has(Fault.SLOT_FREED_LATE):
                await asyncio.sleep(0.3)
            self._gateway.released(self, closed=closed)

    def _take(self, opcode: int, size: int, payload: bytes) -> bool:
        """Handle a frame; True if the connection is to end now."""
        has = self._gateway.has
        if size > MAX_MESSAGE_BYTES and not has(Fault.OVERSIZE_ACCEPTED):
            if not has(Fault.OVERSIZE_CUT):
                self.send(CLOSE, struct.pack("!H", 1009))
            return True
        if opcode == CLOSE:
            if not has(Fault.CLOSE_NOT_ANSWERED):
                self.send(CLOSE, payload)
            return True
        speech = self._gateway.speech
        if opcode == BINARY and speech is not None:
            speech.take(self._claims, payload)
        if opcode == TEXT and payload == b'{"type":"audio_end"}' and speech is not None:
            speech.end(self._claims)
        if opcode == PING and not has(Fault.NO_PONG):
            self.send(PONG, b"other" if has(Fault.OTHER_PONG) else payload)
        if opcode not in (0, 1, 2, CLOSE, PING, PONG) and not has(Fault.INVALID_FRAME_IGNORED):
            self.send(CLOSE, struct.pack("!H", 1002))
            return True
        return False

    async def _ping(self) -> None:
        while not self._gateway.has(Fault.NO_SERVER_PING):
            await asyncio.sleep(PING_S)
            self.send(PING, b"server")

    async def _read_frame(self, reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
        """Opcode, size and payload; the payload of an oversize frame is read only where it is accepted."""
        first, second = await reader.readexactly(2)
        size = second & 127
        if size == 126:
            (size,) = struct.unpack("!H", await reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await reader.readexactly(8))
        mask = await reader.readexactly(4)
        if size > MAX_MESSAGE_BYTES and not self._gateway.has(Fault.OVERSIZE_ACCEPTED):
            return first & 15, size, b""
        payload = await reader.readexactly(size)
        if size <= LARGEST_THAT_IS_READ:
            payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        return first & 15, size, payload


def answer(writer: asyncio.StreamWriter, status: int, body: str, headers: Mapping[str, str] | None = None) -> None:
    raw = body.encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(raw)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + raw)


def refuse(writer: asyncio.StreamWriter, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
    answer(writer, status, json.dumps({"message": message}, separators=(",", ":")), headers)


@contextlib.contextmanager
def running(
    *faults: Fault, tls: ssl.SSLContext | None = None, speech: Sequence[SpeechFault] | None = None
) -> Iterator[BrokenGateway]:
    """A gateway in a thread and loop of its own, for tests of the command line."""
    gateway, ready, loop = BrokenGateway(*faults, speech=speech), threading.Event(), asyncio.new_event_loop()

    async def serve(stop: asyncio.Event) -> None:
        await gateway.start(tls)
        ready.set()
        await stop.wait()
        await gateway.stop()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(stop)), name="broken-gateway")
    thread.start()
    assert ready.wait(10)
    try:
        yield gateway
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
