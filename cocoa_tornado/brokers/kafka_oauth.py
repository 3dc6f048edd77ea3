"""Access tokens for SASL/OAUTHBEARER, by the client credentials grant (RFC 6749, section 4.4)."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, InvalidURL

from ..errors import BrokerError
from ..rules.addresses import without_user_info

FETCH_TIMEOUT_S = 5.0
DEFAULT_LIFE_S = 300.0  # where the answer has no expires_in
MARGIN = 0.2  # of its life, that a token is renewed before it expires
RETRY_S = 10.0  # after a failure, before it is tried again without need
MAX_ANSWER_BYTES = 256 * 1024


class ClientCredentials:
    """Exchanges a client's id and secret for access tokens, and keeps each until shortly before it expires.

    Thread-safe; :meth:`token` may block for a few seconds and is called on the client library's own threads only. Call
    :meth:`refresh_if_due` now and then from a thread that may wait, and :meth:`token` seldom has to.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str,
        scope: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._client_id, self._secret, self._scope = token_url, client_id, client_secret, scope
        self._shown = without_user_info(token_url)
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = self._expires_at = float("-inf")

    def __repr__(self) -> str:
        return f"<ClientCredentials of {self._client_id} at {self._shown}>"

    def token(self) -> str:
        """A token that has not expired. Raises BrokerError where none is to be had."""
        with self._lock:
            now = self._clock()
            if now >= min(self._renew_at, self._expires_at):
                try:
                    self._renew()
                except BrokerError:
                    self._renew_at = now + RETRY_S
                    if now >= self._expires_at:
                        raise
            return self._token

    def token_and_life_s(self) -> tuple[str, float]:
        """The same, and how long it lives on."""
        token = self.token()
        return token, max(0.0, self._expires_at - self._clock())

    def refresh_if_due(self) -> None:
        """Renew the token if it is time to. A failure is left to :meth:`token`, which has to report it."""
        if self._clock() < self._renew_at:
            return
        try:
            self.token()
        except BrokerError:
            return

    def _renew(self) -> None:
        answer = self._fetch()
        token = answer.get("access_token")
        if not isinstance(token, str) or not token:
            raise BrokerError(f"the token endpoint {self._shown} answered without an access_token")
        # Some servers write the number as a string; where it is missing, the life is taken to be short.
        try:
            life_s = float(str(answer.get("expires_in", DEFAULT_LIFE_S)))
        except ValueError:
            life_s = DEFAULT_LIFE_S
        now = self._clock()
        self._token, self._expires_at = token, now + life_s
        self._renew_at = now + life_s * (1 - MARGIN)

    def _fetch(self) -> dict[str, object]:
        form = {"grant_type": "client_credentials"}
        if self._scope:
            form["scope"] = self._scope
        # RFC 6749, 2.3.1: both halves are form-encoded before they are joined.
        pair = f"{urllib.parse.quote_plus(self._client_id)}:{urllib.parse.quote_plus(self._secret)}"
        request = urllib.request.Request(
            self._url,
            data=urllib.parse.urlencode(form).encode(),
            headers={
                "Authorization": "Basic " + base64.b64encode(pair.encode()).decode(),
                "Accept": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=FETCH_TIMEOUT_S) as response:
                answer = json.loads(response.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise BrokerError(f"the token endpoint {self._shown} answered {error.code}") from error
        except InvalidURL:
            # It quotes what was taken for the port, which may be a password.
            raise BrokerError(f"the token endpoint {self._shown} has a host or port that cannot be used") from None
        except (OSError, ValueError, HTTPException) as error:
            raise BrokerError(f"the token endpoint {self._shown} cannot be used: {error}") from error
        if not isinstance(answer, dict):
            raise BrokerError(f"the token endpoint {self._shown} answered something that is not a JSON object")
        return answer
