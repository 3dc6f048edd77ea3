"""The base of all handlers of the admin API: authentication, scopes and rate limits."""

from __future__ import annotations

import functools
import logging
import math
from asyncio import Future
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Concatenate, Final, ParamSpec, TypeAlias, TypeVar

import msgspec
from tornado.web import stream_request_body

from ..errors import IdentityError
from ..identity.key_store import KeyStore
from ..plain_text import one_line
from ..rules.admin_tokens import READ, TEXT, Operator, operator_of
from ..rules.identity import find_token
from ..rules.rate import RateLimit, client_of
from ..rules.strict_json import NamedTwice, read_json
from ..web.handlers import ReadsBody, WebContext, shown_path
from .context import AdminContext
from .requests import Invalid, id_of
from .servers import A, Answers, Q, Topic

WRONG_TOKENS: Final = RateLimit(per_s=1 / 6, burst=10)
"""Of one client: tokens that no key has signed. A console whose token has expired does not count."""
GUESSES: Final = frozenset({"too_long", "malformed", "critical", "algorithm", "unknown_key", "signature"})
"""Why a token was not verified (``identity/keys.py``)."""
REQUESTS: Final = RateLimit(per_s=50, burst=500)
"""Of one operator: each may be a query to every server."""

H = TypeVar("H", bound="AdminHandler")
P = ParamSpec("P")

log = logging.getLogger("cocoa.admin")


Method: TypeAlias = Callable[Concatenate[H, P], Coroutine[Any, Any, None]]
"""Of a handler, for one HTTP method."""


class WrongKind(Exception):
    """The token is a device's."""


def expensive(method: Method[H, P]) -> Method[H, P]:
    """Mark a method that looks at many devices, or reads much data. Only a few run at once, and half as many
    of one operator; more get 429."""

    @functools.wraps(method)
    async def bounded(self: H, /, *args: P.args, **kwargs: P.kwargs) -> None:
        assert self.operator is not None
        subject, shares = self.operator.subject, self.admin.expensive_shares
        if self.admin.expensive.locked() or not shares.take(subject):
            self.refuse(429, "Too many requests", {"Retry-After": "1"})
            return
        try:
            async with self.admin.expensive:
                await method(self, *args, **kwargs)
        finally:
            shares.give_back(subject)

    return bounded


async def judge_token(token: str, keys: KeyStore, device_keys: KeyStore, now: float) -> Operator:
    """Return the operator that a token names.

    :param now: Unix seconds
    :raises IdentityError: it is not valid
    :raises WrongKind: it is a device's
    """
    try:
        return operator_of((await keys.examine(token)).claims, keys.policy.leeway_s, now)
    except IdentityError as error:
        try:
            await device_keys.identify(token, now)
        except IdentityError:
            raise error from None
        raise WrongKind from None


@stream_request_body
class AdminHandler(ReadsBody):
    """One request to the admin API. The order of the answers: 404 (disabled), 421 (host), 405, 429 (wrong tokens), 401,
    403, 429 (requests), 413, and what the method itself answers.

    After too many wrong tokens, a client gets 429 without a check until it may try again, as at the token endpoint.

    :cvar scopes: the scope that each method requires
    """

    scopes: ClassVar[Mapping[str, str]] = {"GET": READ}
    max_body_bytes = 64 * 1024
    operator: Operator | None = None
    _about: Mapping[str, str] = MappingProxyType({})

    def initialize(self, context: WebContext, admin: AdminContext) -> None:  # type: ignore[override]  # one more
        super().initialize(context)
        self.admin = admin

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> Future[None]:
        """Forbid caching of the answer. A 404 of the disabled API looks like any unknown route, without that header."""
        if self.is_enabled:
            self.set_header("Cache-Control", "no-store")
        return super().finish(chunk)

    @property
    def is_enabled(self) -> bool:
        return self.context.live.now.admin_keys is not None

    @property
    def may_see_text(self) -> bool:
        """Whether the answer may have the text of messages; else it has their length."""
        return self.operator is not None and TEXT in self.operator.scopes

    async def judge(self) -> None:
        operator = await self._identify()
        if operator is None:
            return
        self.operator = operator
        scope = self.scopes[self.request.method or ""]
        if scope not in operator.scopes:
            self._refuse_scope(scope)
        elif self._is_over_its_rate(operator):
            return
        else:
            await self.check()

    async def check(self) -> None:
        """Check what needs no body: raise :class:`Invalid`, or answer."""

    def log_fields(self) -> dict[str, object]:
        return {} if self.operator is None else {"sub": one_line(self.operator.subject)}

    async def ask(self, topic: Topic[Q, A], question: Q) -> Answers[A]:
        """Ask all servers."""
        return await self.admin.servers.ask(topic, question)

    def id_of(self, text: str) -> str:
        """The id that a part of the path stands for; the log has it if the path does not. Raises :class:`Invalid`."""
        named = id_of(text, self.request.query_arguments)
        if named != text:
            self.note_in_log("id", named)
        return named

    def json_body(self) -> dict[str, object]:
        """The object in the body; empty if there is none. Raises :class:`Invalid`."""
        text = self.body()
        try:
            value = read_json(text) if text.strip() else {}
        except NamedTwice as error:
            raise Invalid("body: it names a member twice") from error
        except ValueError as error:
            raise Invalid("body: it is not JSON") from error
        if not isinstance(value, dict):
            raise Invalid("body: it is not a JSON object")
        return value

    def answer_struct(self, status: int, body: object) -> None:
        """Finish with the JSON of msgspec's types."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(body))

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Percent-decode a part of the path, once. The method rejects an id that is not UTF-8: an error here would be a
        400 even if the API is disabled."""
        return value.decode("utf-8", "surrogateescape")

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not isinstance(value, Invalid):
            super().log_exception(typ, value, tb)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = (kwargs.get("exc_info") or (None, None))[1]
        if isinstance(error, Invalid):
            self.refuse(400, str(error))
        else:
            super().write_error(status_code, **kwargs)

    def on_finish(self) -> None:
        """Log every change, and every attempt at one, as one line."""
        super().on_finish()
        if self.operator is not None and self.request.method not in ("GET", "HEAD", "OPTIONS"):
            extra = {"method": self.request.method, "path": shown_path(self.request.path), "status": self.get_status()}
            who = {"sub": one_line(self.operator.subject), "remote_ip": self.request.remote_ip}
            log.info("admin request", extra=who | extra | dict(self._about))

    def note_in_log(self, name: str, text: str) -> None:
        """Add fields to that line: what has changed, if the path does not show it."""
        self._about = {name: one_line(text)}

    # -- authentication

    async def _identify(self) -> Operator | None:
        """Return the operator; None: the answer was given."""
        admin, now = self.admin, self.context.devices.clock()
        client, live = client_of(self.request.remote_ip or ""), self.context.live.now
        wait_s = admin.guesses.wait_s(client, WRONG_TOKENS, now)
        if wait_s:
            self.is_quiet = True
            self.refuse(429, "Too many wrong tokens", {"Retry-After": str(math.ceil(wait_s))})
            return None
        assert live.admin_keys is not None
        try:
            found = find_token((), self.request.headers.get("Authorization"), None)
            return await judge_token(found.token, live.admin_keys, live.keys, self.context.devices.wall_clock())
        except WrongKind:
            self._refuse_scope(self.scopes[self.request.method or ""])
        except IdentityError as error:
            if error.reason in GUESSES and admin.guesses.spend(client, WRONG_TOKENS, now):
                self._log_burst(client, now)
            self.refuse(401, error.message, {"WWW-Authenticate": "Bearer"})
        return None

    def _log_burst(self, client: str, now: float) -> None:
        """Log one line until the client has been quiet for a minute, and a bounded number for any number of clients."""
        suppressed = self.admin.guess_lines.take(now)
        if suppressed is not None:
            extra: dict[str, object] = {"remote_ip": client} | ({"suppressed": suppressed} if suppressed else {})
            log.warning("too many wrong admin tokens", extra=extra)

    def _refuse_scope(self, scope: str) -> None:
        self.refuse(403, f"Missing scope {scope}")

    def _is_over_its_rate(self, operator: Operator) -> bool:
        """Count the request, or answer 429."""
        requests, now = self.admin.requests, self.context.devices.clock()
        wait_s = requests.wait_s(operator.subject, REQUESTS, now)
        if wait_s:
            self.refuse(429, "Too many requests", {"Retry-After": str(math.ceil(wait_s))})
            return True
        requests.spend(operator.subject, REQUESTS, now)
        return False
