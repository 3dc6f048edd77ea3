"""Plain HTTP: health, readiness, metrics, tokens, publishing, and errors as the contract has them."""

from __future__ import annotations

import asyncio
import hmac
import http.client
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tornado.web import HTTPError, RequestHandler

from ..brokers.port import Broker, BrokerState
from ..errors import BrokerError, IdentityError
from ..hub import Hub
from ..identity.keys import Signer
from ..identity.minting import TokenRequest, token_claims
from ..mailboxes.port import MailboxState
from ..metrics import MetricsPage
from ..rules.identity import DEVICE_CLAIMS, DeviceIdentity, TokenPolicy, check_claims, find_token
from ..rules.origins import Network, client_address, is_trusted
from ..rules.records import Delivery, decode
from ..speech.port import SpeechState

if TYPE_CHECKING:
    from ..identity.jwks import KeyStore
    from .audio_handler import AudioContext
    from .device_context import DeviceContext

SERVICE = "audio-streaming"
MAX_SHOWN_PATH = 256
PUBLISH_PATIENCE_S = 10.0

log = logging.getLogger("cocoa.http")


@dataclass(slots=True)
class WebContext:
    """What the handlers share. Made by the composition root, handed over through ``initialize``; IOLoop thread only.

    A reload replaces ``allowed_origins``, ``credentials`` and ``signer``; all else stays for good.

    :ivar credentials: API secrets by key, for the token endpoint
    :ivar http_publish: whether a device may publish records to itself over HTTP (for trying things out)
    :ivar audio: None while speech is off
    """

    hub: Hub
    broker: Broker
    keys: KeyStore
    devices: DeviceContext
    metrics: MetricsPage
    results_topic: str
    http_publish: bool
    allowed_origins: Sequence[str] = ()
    trusted_proxies: Sequence[Network] = ()
    retry_after_s: int = 5
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    signer: Signer | None = field(default=None, repr=False)
    audio: AudioContext | None = None


def compact(value: object) -> str:
    """JSON as the firmware reads it: no blanks, no needless escapes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def flag(values: Sequence[bytes]) -> bool | None:
    """The last of a query's values for one name; False if there is none, None if it is neither true nor false."""
    return {b"true": True, b"1": True, b"false": False, b"0": False}.get(values[-1].lower()) if values else False


def shown_path(path: str) -> str:
    """A request's path as the log has it: a stranger may send 60 KiB of it."""
    return path if len(path) <= MAX_SHOWN_PATH else f"{path[:MAX_SHOWN_PATH]}..."


def timestamp(unix_s: float) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return datetime.fromtimestamp(int(unix_s), UTC).isoformat().replace("+00:00", "Z")


class GatewayErrors(RequestHandler):
    """How every handler of the gateway fails: a JSON body, and a log line without the query string."""

    context: WebContext

    def initialize(self, context: WebContext) -> None:
        self.context = context

    def set_default_headers(self) -> None:
        self.clear_header("Server")

    def prepare(self) -> None:
        peer = self.request.remote_ip or ""
        trusted = self.context.trusted_proxies
        if trusted and is_trusted(peer, trusted):
            self.request.remote_ip = client_address(peer, self.request.headers.get("X-Forwarded-For"), trusted)
            scheme = self.request.headers.get("X-Forwarded-Proto", "").split(",")[-1].strip().lower()
            if scheme in ("http", "https"):
                self.request.protocol = scheme
            host = self.request.headers.get("X-Forwarded-Host", "").split(",")[-1].strip()
            self.request.host = host or self.request.host

    def answer(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        """Finish with a compact JSON body."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            self.set_header(name, value)
        self.finish(compact(body))

    def refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.answer(status, {"message": message}, headers)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        message = http.client.responses.get(status_code, "Error")
        headers = {}
        if status_code == 405:
            allowed = [method for method in self.SUPPORTED_METHODS if self._is_implemented(method)]
            headers["Allow"] = ", ".join(allowed)
        self.refuse(status_code, message, headers)

    def _is_implemented(self, method: str) -> bool:
        return getattr(type(self), method.lower()) is not getattr(RequestHandler, method.lower())

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Tornado would log the whole URL here, and with it a token."""
        if isinstance(value, HTTPError):
            return
        extra = {"method": self.request.method, "path": shown_path(self.request.path)}
        log.error("handler failed", extra=extra, exc_info=None if typ is None or value is None else (typ, value, tb))

    async def identify(self) -> DeviceIdentity | None:
        """The device behind the Bearer token; answers 401 and returns None where there is none."""
        try:
            found = find_token((), self.request.headers.get("Authorization"), None)
            identity = await self.context.keys.identify(found.token, self.context.devices.wall_clock())
        except IdentityError as error:
            self.refuse(401, error.message, {"WWW-Authenticate": "Bearer"})
            return None
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None:
            stream.has_device_token = True  # the crowd of strangers does not count it (rules/crowd.py)
        return identity


class NotFoundHandler(GatewayErrors):
    """Every unknown route."""

    def prepare(self) -> None:
        super().prepare()
        self.refuse(404, "Not Found")


class HealthHandler(GatewayErrors):
    """The process lives."""

    def get(self) -> None:
        now = timestamp(self.context.devices.wall_clock())
        self.answer(200, {"status": "healthy", "timestamp": now, "service": SERVICE})

    head = get


class ReadyHandler(GatewayErrors):
    """A record produced from now on will be delivered, and a device can connect."""

    def get(self) -> None:
        parts = self._parts()
        failing = [name for name, part in parts.items() if not part["ok"]]
        if self.context.hub.draining:
            failing.insert(0, "draining")
        body: dict[str, object] = {}
        if failing:
            body["message"] = "not ready: " + ", ".join(failing)
        body |= {"status": "unavailable" if failing else "ready", "parts": parts}
        headers = {"Retry-After": str(self.context.retry_after_s)} if failing else {}
        self.answer(503 if failing else 200, body, headers)

    head = get

    def _parts(self) -> dict[str, dict[str, object]]:
        """One entry a part. What is off is ready; the details are in the log, for this page is open to anyone."""
        broker = self.context.broker.status()
        keys_ok, _ = self.context.keys.status()
        return {
            "broker": {"ok": broker.state is BrokerState.READY, "state": broker.state.value},
            "mailbox": self._mailbox(),
            "presence": {"ok": True, "state": "local"},
            "speech": self._speech(),
            "keys": {"ok": keys_ok, "state": "ready" if keys_ok else "loading"},
        }

    def _mailbox(self) -> dict[str, object]:
        mail = self.context.devices.mail
        if mail is None:
            return {"ok": True, "state": "off"}
        state = mail.mailbox.status().state
        return {"ok": state is MailboxState.READY, "state": state.value}

    def _speech(self) -> dict[str, object]:
        audio = self.context.audio
        if audio is None:
            return {"ok": True, "state": "off"}
        state = audio.transcriber.status().state
        return {"ok": state is SpeechState.READY, "state": state.value}


class MetricsHandler(GatewayErrors):
    def get(self) -> None:
        self.set_header("Content-Type", self.context.metrics.content_type)
        self.finish(self.context.metrics.render())


class TokenHandler(GatewayErrors):
    """``POST /api/v1/auth/token``: a device token for a backend that knows an API key and its secret.

    The optional JSON body may say ``device_id``, ``user_id``, ``device_version`` and ``groups``; without it the token
    is for a device named after the API key.
    """

    def post(self) -> None:
        context = self.context
        if not context.credentials or context.signer is None:
            self.refuse(404, "Not Found")
            return
        key = self._known_key()
        if key is None:
            self.refuse(401, "Invalid credentials")
            return
        now = context.devices.wall_clock()
        try:
            claims = token_claims(self._request(key), context.policy, now)
            # What is signed here must be good enough for the handshake.
            check_claims(claims, context.policy, now)
        except IdentityError as error:
            self.refuse(400, f"Invalid {error.reason}")
            return
        except ValueError as error:
            self.refuse(400, str(error))
            return
        token = context.signer.sign(claims)
        if len(token) > context.policy.max_token_bytes:
            self.refuse(400, "Token too long")
            return
        self.answer(200, {"token": token, "type": "Bearer"}, {"Cache-Control": "no-store"})

    def _known_key(self) -> str | None:
        """The API key, where its secret came with it.

        Every configured pair is compared, in a time that does not depend on where they differ.
        """
        # Tornado reads headers as Latin-1, which keeps every byte; people configure text, and clients send UTF-8.
        given = "\0".join(self.request.headers.get(name, "") for name in ("X-API-Key", "X-API-Secret"))
        sent = given.encode("latin-1", "replace")
        pairs = self.context.credentials.items()
        matching = [key for key, secret in pairs if hmac.compare_digest(sent, f"{key}\0{secret}".encode())]
        return matching[0] if matching else None

    def _request(self, key: str) -> TokenRequest:
        """What the body asks for. ValueError with a text for the caller, if it is no JSON object."""
        try:
            body = json.loads(self.request.body) if self.request.body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError("Body is not JSON") from error
        if not isinstance(body, dict):
            raise ValueError("Body is not a JSON object")
        asked = {name: body[name] for name in DEVICE_CLAIMS if name in body}
        return TokenRequest(device_id=key, user_id=key, extra_claims=asked)


class PublishHandler(GatewayErrors):
    """``POST /api/v1/transcriptions``: a device publishes a record to itself, through the broker.

    For trying things out, and for ``probe-device``; on by default only with the embedded broker. The body is the
    value of a record; the token says for which device, and no other may be named.
    """

    async def post(self) -> None:
        if not self.context.http_publish:
            self.refuse(404, "Not Found")
            return
        identity = await self.identify()
        if identity is None:
            return
        decoded = decode(None, self.request.body, 0)
        if not isinstance(decoded, Delivery):
            self.refuse(400, f"Invalid record: {decoded.reason}")
        elif decoded.device_id != identity.device_id:
            self.refuse(403, "The token is for another device")
        else:
            await self._publish(decoded.device_id)

    async def _publish(self, device_id: str) -> None:
        broker = self.context.broker
        if not broker.can_write() or broker.status().state is not BrokerState.READY:
            self.refuse(503, "Broker not available", {"Retry-After": str(self.context.retry_after_s)})
            return
        try:
            async with asyncio.timeout(PUBLISH_PATIENCE_S):
                await asyncio.shield(broker.publish(self.context.results_topic, device_id, self.request.body))
        except (BrokerError, TimeoutError):
            self.refuse(503, "Broker not available", {"Retry-After": str(self.context.retry_after_s)})
            return
        self.answer(202, {"success": True})
