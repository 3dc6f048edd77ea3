"""Plain HTTP: health, readiness, metrics, and the contract's error bodies."""

from __future__ import annotations

import http.client
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tornado.web import Finish, HTTPError, RequestHandler, stream_request_body

from ..brokers.port import Broker, BrokerState, QuarantineState
from ..counters import count
from ..errors import IdentityError
from ..live import Live
from ..mailboxes.port import MailboxState
from ..metrics import MetricsPage
from ..openapi import document as openapi
from ..plain_text import one_line
from ..presence.port import PresenceState
from ..rules.blocked import Blocked
from ..rules.byte_budget import ByteBudget
from ..rules.cors import cors_headers
from ..rules.identity import DeviceIdentity, TokenPolicy, find_token
from ..rules.origins import Network, find_caller
from ..rules.rate import Allowances, LineBudget, RateLimit
from ..rules.readiness_report import OFF, Readiness, ReadinessPart
from ..speech.port import SpeechState
from ..workers.port import Siblings
from .answers import Answer
from .streams import HttpStream

if TYPE_CHECKING:
    from ..connection.device_context import DeviceContext
    from .audio_context import AudioContext

SERVICE = "audio-streaming"
MAX_SHOWN_PATH = 256
MAX_BODIES_BYTES = 16 * 1024 * 1024

FLAGS = {b"true": True, b"1": True, b"false": False, b"0": False}

MAX_CLIENTS = 8192
"""Remembered addresses with wrong credentials, and devices that publish: 1 MB each. Forgetting an eighth of them takes
a few milliseconds."""

HOST_NOT_ALLOWED: Final = "Host not allowed: add its name to the setting allowed_hosts"
"""Not the name itself, which any client may choose."""

log = logging.getLogger("cocoa.http")


@dataclass(frozen=True, slots=True)
class WebContext:
    """What the handlers share. Created by the composition root and passed through ``initialize``; IOLoop thread only.

    :ivar live: the only part that a reload changes
    :ivar http_publish: whether a device may publish records to itself over HTTP (for trials)
    :ivar audio: None while speech is off
    :ivar bodies: the budget for all bodies that are read whole
    :ivar siblings: None unless this server is one of several workers under a parent
    :ivar canary: returns the canaries' entry in the readiness report
    :ivar guesses: wrong credentials, by address; :ivar publishing: records over HTTP, by device
    """

    live: Live
    broker: Broker
    devices: DeviceContext
    metrics: MetricsPage
    results_topic: str
    http_publish: bool
    trusted_proxies: Sequence[Network] = ()
    retry_after_s: int = 5
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    audio: AudioContext | None = None
    bodies: ByteBudget = field(default_factory=lambda: ByteBudget(MAX_BODIES_BYTES))
    guesses: Allowances = field(default_factory=lambda: Allowances(MAX_CLIENTS))
    host_lines: LineBudget = field(default_factory=lambda: LineBudget(RateLimit(per_s=0.1, burst=5)))
    guess_lines: LineBudget = field(default_factory=lambda: LineBudget(RateLimit(per_s=1, burst=10)))
    blocked: Blocked = field(default_factory=Blocked)
    publishing: Allowances = field(default_factory=lambda: Allowances(MAX_CLIENTS))
    siblings: Siblings | None = None
    canary: Callable[[], ReadinessPart] = lambda: OFF

    def readiness(self) -> Readiness:
        """This server's parts. A part that is off is ready. Details are only in the log, because the page is public."""
        broker = self.broker.status()
        keys_ok, _ = self.live.now.keys.status()
        quarantine = broker.quarantine
        parts: dict[str, ReadinessPart] = {
            "broker": {"ok": broker.state is BrokerState.READY, "state": broker.state.value},
            "quarantine": {"ok": quarantine is not QuarantineState.UNAVAILABLE, "state": quarantine.value},
            "canary": self.canary(),
            "mailbox": self._mailbox(),
            "presence": self._presence(),
            "speech": self._speech(),
            "keys": {"ok": keys_ok, "state": "ready" if keys_ok else "loading"},
        }
        return Readiness(self.devices.presence.draining, parts)

    def _presence(self) -> ReadinessPart:
        presence = self.devices.presence
        status, is_shared = presence.status(), presence.lease.is_shared
        if status.state is PresenceState.READY and not status.reaches_others:
            return {"ok": False, "state": "disconnected"}
        return {"ok": status.state is PresenceState.READY, "state": status.state.value if is_shared else "local"}

    def _mailbox(self) -> ReadinessPart:
        mail = self.devices.mail
        if mail is None:
            return OFF
        state = mail.mailbox.status().state
        return {"ok": state is MailboxState.READY, "state": state.value}

    def _speech(self) -> ReadinessPart:
        if self.audio is None:
            return OFF
        state = self.audio.transcriber.status().state
        return {"ok": state is SpeechState.READY, "state": state.value}


def compact(value: object) -> str:
    """Compact JSON, as the firmware requires: no blanks, no needless escapes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def flag(values: Sequence[bytes] | None) -> bool | None:
    """The last of a query's values for one name; False if there is none, None if it is neither true nor false."""
    return FLAGS.get(values[-1].lower()) if values else False


def shown_path(path: str) -> str:
    """A request's path, truncated for the log: any client may send 60 KiB of it."""
    return path if len(path) <= MAX_SHOWN_PATH else f"{path[:MAX_SHOWN_PATH]}..."


def timestamp(unix_s: float) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return datetime.fromtimestamp(int(unix_s), UTC).isoformat().replace("+00:00", "Z")


def shown_time(timestamp_ms: int) -> str | None:
    """The timestamp of a record. Null if it has none, or one outside the calendar: producers set it."""
    try:
        return timestamp(timestamp_ms / 1000) if timestamp_ms >= 0 else None
    except (ValueError, OverflowError, OSError):
        return None


class GatewayErrors(RequestHandler):
    """Base of every handler: errors have a JSON body, and a log line without the query string."""

    context: WebContext

    allows_any_host = False
    """Whether it accepts any host name: only if an answer without a token or a secret reveals nothing."""

    is_quiet = False
    """Leave it out of the access log: a client could ask for any number of these lines."""

    def initialize(self, context: WebContext) -> None:
        self.context = context
        self._set_cors_headers()

    def set_default_headers(self) -> None:
        self.clear_header("Server")

    def prepare(self) -> None:
        """Runs before the body is read: a request that is refused here is refused without reading its body."""
        self.look_behind_the_proxy()
        if not self.is_enabled:
            self.refuse(404, "Not Found")
            raise Finish
        if not self.allows_any_host:
            self._check_host()
        if self.request.method == "OPTIONS":
            # Before any check of a subclass: the answer to OPTIONS does not depend on the request.
            self.options()
            raise Finish
        assert self.request.method is not None
        if not self._is_implemented(self.request.method):
            raise HTTPError(405)

    @property
    def is_enabled(self) -> bool:
        """False: this route answers 404, like an unknown one."""
        return True

    @property
    def body_bytes(self) -> int | None:
        """The length of the request's body, 0 if there is none; None: it is chunked."""
        connection = self.request.connection
        return connection.body_bytes if isinstance(connection, Answer) else 0

    def ask_for_body(self, timeout_s: float | None = None) -> None:
        """Under ``stream_request_body``: accept the request, and start reading its body.

        :param timeout_s: instead of ``body_timeout``
        """
        if isinstance(self.request.connection, Answer):
            self.request.connection.begin_body(timeout_s)

    @property
    def http_stream(self) -> HttpStream | None:
        """The stream of the request's connection."""
        connection = self.request.connection
        stream = connection.stream if isinstance(connection, Answer) else None
        return stream if isinstance(stream, HttpStream) else None

    def log_fields(self) -> dict[str, object]:
        """Additional fields of the request's line in the access log."""
        return {}

    def compute_etag(self) -> None:
        """No answer has an ETag, because none can be reused."""

    def look_behind_the_proxy(self) -> None:
        """If the peer is a trusted proxy, use the client address, host and scheme that it forwards."""
        request = self.request
        caller = find_caller(request.remote_ip or "", request.host, request.headers, self.context.trusted_proxies)
        request.remote_ip, request.host = caller.ip, caller.host
        request.protocol = caller.scheme or request.protocol

    def _check_host(self) -> None:
        """Answer 421 to a request by a name that is not allowed, before anything else is asked of it."""
        headers, context = self.request.headers, self.context
        name = context.live.now.hosts.refused(headers.get("Host"), headers)
        if name is None:
            return
        context.devices.counters.hosts_refused += 1
        self.is_quiet = True
        suppressed = context.host_lines.take(context.devices.clock())
        if suppressed is not None:
            extra = {"host": one_line(name), "setting": "allowed_hosts", "remote_ip": self.request.remote_ip}
            log.warning("host not allowed", extra=extra | ({"suppressed": suppressed} if suppressed else {}))
        self.refuse(421, HOST_NOT_ALLOWED)
        raise Finish

    def answer(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        """Finish with a compact JSON body."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            self.set_header(name, value)
        self.finish(compact(body))

    def refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.answer(status, {"message": message}, headers)

    def options(self, *args: Any, **kwargs: Any) -> None:
        """Answer with the allowed methods; also a browser's preflight."""
        self.set_status(204)
        self.set_header("Allow", self._allowed_methods())
        self.finish()

    def _set_cors_headers(self) -> None:
        """Set the headers that allow web pages to read the answer."""
        request, allowed = self.request, self.context.live.now.allowed_origins
        headers = cors_headers(request.path, request.method or "", request.headers.get("Origin"), allowed)
        for name, value in headers.items():
            self.set_header(name, value)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self._set_cors_headers()  # Tornado has cleared all headers
        message = http.client.responses.get(status_code, "Error")
        headers = {}
        if status_code == 405:
            headers["Allow"] = self._allowed_methods()
        self.refuse(status_code, message, headers)

    def _allowed_methods(self) -> str:
        return ", ".join(method for method in self.SUPPORTED_METHODS if self._is_implemented(method))

    def _is_implemented(self, method: str) -> bool:
        return getattr(type(self), method.lower()) is not getattr(RequestHandler, method.lower())

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Log without the URL: Tornado would log all of it, including a token."""
        if isinstance(value, HTTPError):
            return
        extra = {"method": self.request.method, "path": shown_path(self.request.path)}
        log.error("handler failed", extra=extra, exc_info=None if typ is None or value is None else (typ, value, tb))

    async def identify(self) -> DeviceIdentity | None:
        """Return the device of the Bearer token. Answers 401 and returns None without a valid token; 403 if the device
        is blocked."""
        now = self.context.devices.wall_clock()
        try:
            found = find_token((), self.request.headers.get("Authorization"), None)
            identity = await self.context.live.now.keys.identify(found.token, now)
        except IdentityError as error:
            self.refuse(401, error.message, {"WWW-Authenticate": "Bearer"})
            return None
        if self.context.blocked.holds(identity.device_id, now):
            self.refuse(403, "Device blocked")
            return None
        return identity


class NotFoundHandler(GatewayErrors):
    """Every unknown route. It reveals nothing, so it accepts any host name."""

    def prepare(self) -> None:
        self.look_behind_the_proxy()
        self.refuse(404, "Not Found")


@stream_request_body
class ReadsBody(GatewayErrors):
    """Base of a handler that reads the whole body, once the request has been checked without it.

    Before reading, it reserves the declared length, or ``max_body_bytes``, from :attr:`WebContext.bodies`. It answers
    413 if the body is too large, and 503 if there is no room.
    """

    max_body_bytes: ClassVar[int]
    _reserved = 0
    _is_whole = False

    async def judge(self) -> None:
        """Check everything that needs no body. If this does not answer, the body is read."""

    async def prepare(self) -> None:  # type: ignore[override]  # Tornado awaits it; the base class has no need to
        super().prepare()
        await self.judge()
        if not self._finished:
            self._make_room()

    def body(self) -> bytes:
        """The whole body, for the handler of the HTTP method."""
        self._is_whole = True
        return bytes(self._body)

    def data_received(self, chunk: bytes) -> None:
        """Tornado's hook: a piece of the body."""
        if self._finished:
            return
        self._body += chunk
        if len(self._body) > self.max_body_bytes:
            self._refuse_large()

    def on_finish(self) -> None:
        self._give_back()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if not self._is_whole:
            self._give_back()

    def _make_room(self) -> None:
        self._body = bytearray()
        wanted = self.max_body_bytes if self.body_bytes is None else self.body_bytes
        if wanted > self.max_body_bytes:
            self._refuse_large()
        elif not self.context.bodies.take(wanted):
            count(self.context.devices.counters.bodies_refused, "full")
            self.refuse(503, "Too many request bodies", {"Retry-After": str(self.context.retry_after_s)})
        else:
            self._reserved = wanted
            self.ask_for_body()

    def _refuse_large(self) -> None:
        count(self.context.devices.counters.bodies_refused, "too_large")
        self.refuse(413, http.client.responses[413])

    def _give_back(self) -> None:
        self.context.bodies.give_back(self._reserved)
        self._reserved = 0
        self._body = bytearray()


class NoStore(GatewayErrors):
    """Base of the endpoints for monitoring: their answers are not cached, no page of another origin can embed them, and
    HEAD works."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")


class HealthHandler(NoStore):
    """``GET /api/v1/health``: 200 while the process is alive."""

    def get(self) -> None:
        now = timestamp(self.context.devices.wall_clock())
        self.answer(200, {"status": "healthy", "timestamp": now, "service": SERVICE})

    head = get


class ReadyHandler(NoStore):
    """``GET /api/v1/ready``: 200 if a record produced from now on will be delivered, and a device can connect."""

    async def get(self) -> None:
        siblings, ready = self.context.siblings, self.context.readiness()
        if siblings is not None:
            ready = await siblings.ready(ready)
        headers = {"Retry-After": str(self.context.retry_after_s)} if ready.failing else {}
        self.answer(503 if ready.failing else 200, ready.body(), headers)

    head = get


class MetricsHandler(NoStore):
    """``GET /metrics``, for Prometheus."""

    async def get(self) -> None:
        siblings, page = self.context.siblings, self.context.metrics.render()
        if siblings is not None:
            page = (await siblings.metrics(page.decode())).encode()
        self.set_header("Content-Type", self.context.metrics.content_type)
        self.finish(page)

    head = get


class OpenApiHandler(NoStore):
    """``GET /api/v1/openapi.json``: all HTTP endpoints, including the admin API."""

    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(openapi.TEXT)

    head = get
