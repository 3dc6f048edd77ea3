"""The gateways and operators of ``tests/admin``."""

from __future__ import annotations

from ..admin.conftest import gateway, start_admin

__all__ = ["gateway", "start_admin"]
