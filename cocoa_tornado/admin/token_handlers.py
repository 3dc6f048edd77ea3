"""Device tokens, for trials."""

from __future__ import annotations

from typing import ClassVar, Final

from ..errors import IdentityError
from ..identity.minting import TokenRequest, token_claims
from ..rules.admin_tokens import WRITE
from ..rules.identity import DEVICE_CLAIMS, check_claims
from .handlers import AdminHandler
from .requests import Invalid

LIFETIME_S: Final = 600.0


class DeviceTokenHandler(AdminHandler):
    """``POST device-token``: a token of 10 minutes for the device that the body names. The body may also have
    ``user_id``, ``device_version`` and ``groups``. 404 if the gateway has public keys only."""

    scopes: ClassVar = {"POST": WRITE}
    max_body_bytes = 16 * 1024

    def post(self) -> None:
        signer, policy = self.context.live.now.signer, self.context.policy
        if signer is None:
            self.refuse(404, "Not Found")
            return
        body, now = self.json_body(), self.context.devices.wall_clock()
        if "device_id" not in body:
            raise Invalid("device_id")
        asked: dict[str, object] = {name: body[name] for name in DEVICE_CLAIMS if name in body}
        lifetime_s = min(LIFETIME_S, policy.max_lifetime_s or LIFETIME_S)
        claims = token_claims(TokenRequest("", 0, lifetime_s=lifetime_s, extra_claims=asked), policy, now)
        try:
            identity = check_claims(claims, policy, now)
        except IdentityError as error:
            raise Invalid(error.reason) from error
        token = signer.sign(claims)
        if len(token) > policy.max_token_bytes:
            raise Invalid("body: the token would be too long")
        self.note_in_log("device_id", identity.device_id)
        self.answer(200, {"token": token, "type": "Bearer", "expires_in": int(lifetime_s)})
