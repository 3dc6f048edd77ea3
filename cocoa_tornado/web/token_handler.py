"""``POST /api/v1/auth/token``: a device token for a backend that knows an API key and its secret."""

from __future__ import annotations

import hmac
import logging
import math
from typing import Final

from ..counters import count
from ..errors import IdentityError
from ..identity.minting import TokenRequest, token_claims
from ..rules.identity import DEVICE_CLAIMS, check_claims
from ..rules.rate import RateLimit, client_of
from ..rules.strict_json import NamedTwice, read_json
from .handlers import ReadsBody

WRONG_CREDENTIALS: Final = RateLimit(per_s=1 / 6, burst=10)
"""Of one client. A person who mistypes a secret does not notice it; a program gets through 14,000 guesses a day."""

# Not Basic, for which a browser would prompt its user. The scheme is not registered; it stands for the two headers.
CHALLENGE: Final = "ApiKey"
CREDENTIALS: Final = ("X-API-Key", "X-API-Secret")

log = logging.getLogger("cocoa.http")


class TokenHandler(ReadsBody):
    """The optional JSON body may contain ``device_id``, ``user_id``, ``device_version`` and ``groups``; without it the
    token is for a device named after the API key. The order of the answers: 404 (off), 429, 401, 413, 400.

    After too many wrong credentials, a client gets 429 without a check until it may try again. Correct credentials get
    429 too, because otherwise the answer would reveal which guess was correct.
    """

    # A token of 13 KiB, which is the longest that is accepted, has claims of less than 10 KiB; JSON may escape some.
    max_body_bytes = 16 * 1024
    allows_any_host = True
    _key = ""

    async def judge(self) -> None:
        context = self.context
        if not context.live.now.credentials or context.live.now.signer is None:
            self.refuse(404, "Not Found")
            return
        client, now = client_of(self.request.remote_ip or ""), context.devices.clock()
        counters = context.devices.counters.token_requests
        wait_s = context.guesses.wait_s(client, WRONG_CREDENTIALS, now)
        if wait_s:
            count(counters, "limited")
            self.is_quiet = True
            self.refuse(429, "Too many wrong credentials", {"Retry-After": str(math.ceil(wait_s))})
            return
        key = self._known_key()
        if key is not None:
            self._key = key
            return
        count(counters, "wrong_credentials")
        # A request without either header guesses nothing, and any web page can make its visitor's browser send it.
        if self._has_credentials() and context.guesses.spend(client, WRONG_CREDENTIALS, now):
            self._log_burst(client, now)
        self.refuse(401, "Invalid credentials", {"WWW-Authenticate": CHALLENGE})

    def post(self) -> None:
        outcome, status, text = self._issue(self._key)
        count(self.context.devices.counters.token_requests, outcome)
        if status == 200:
            self.answer(200, {"token": text, "type": "Bearer"}, {"Cache-Control": "no-store"})
        else:
            self.refuse(status, text)

    def _log_burst(self, client: str, now: float) -> None:
        """One line until the client has been quiet for a minute; not many more for any number of clients."""
        suppressed = self.context.guess_lines.take(now)
        if suppressed is not None:
            extra: dict[str, object] = {"remote_ip": client} | ({"suppressed": suppressed} if suppressed else {})
            log.warning("too many wrong credentials", extra=extra)

    def _issue(self, key: str) -> tuple[str, int, str]:
        """Return the outcome for the counter, the status, and the token or the message for the caller."""
        context = self.context
        signer = context.live.now.signer
        if signer is None:
            # A reload has removed it while the body arrived.
            return "invalid", 404, "Not Found"
        now = context.devices.wall_clock()
        try:
            claims = token_claims(self._request(key), context.policy, now)
            # The handshake must accept every token that is signed here.
            check_claims(claims, context.policy, now)
        except IdentityError as error:
            return "invalid", 400, f"Invalid {error.reason}"
        except ValueError as error:
            return "invalid", 400, str(error)
        token = signer.sign(claims)
        if len(token) > context.policy.max_token_bytes:
            return "invalid", 400, "Token too long"
        return "issued", 200, token

    def _has_credentials(self) -> bool:
        return any(name in self.request.headers for name in CREDENTIALS)

    def _known_key(self) -> str | None:
        """Return the API key if its secret is correct.

        Every configured pair is compared, in a time that does not depend on where they differ.
        """
        # Tornado reads headers as Latin-1, which keeps every byte; people configure text, and clients send UTF-8.
        given = "\0".join(self.request.headers.get(name, "") for name in CREDENTIALS)
        sent = given.encode("latin-1", "replace")
        pairs = self.context.live.now.credentials.items()
        matching = [key for key, secret in pairs if hmac.compare_digest(sent, f"{key}\0{secret}".encode())]
        return matching[0] if matching else None

    def _request(self, key: str) -> TokenRequest:
        """Return the request in the body. Raises ValueError with a text for the caller, if it is not a JSON object."""
        try:
            text = self.body()
            body = read_json(text) if text.strip() else {}
        except NamedTwice as error:
            raise ValueError("Body names a member twice") from error
        except ValueError as error:
            raise ValueError("Body is not JSON") from error
        if not isinstance(body, dict):
            raise ValueError("Body is not a JSON object")
        asked = {name: body[name] for name in DEVICE_CLAIMS if name in body}
        return TokenRequest(device_id=key, user_id=key, extra_claims=asked)
