"""Valid and invalid device tokens."""

from __future__ import annotations

import time
from typing import Any

import jwt


def token(secret: str, device_id: str, lifetime_s: float | None = 3600.0, algorithm: str = "HS256") -> str:
    claims: dict[str, Any] = {"device_id": device_id, "user_id": 99, "device_version": "1.0.0"}
    if lifetime_s is not None:
        claims["exp"] = int(time.time() + lifetime_s)
    return jwt.encode(claims, secret, algorithm)
