"""Every endpoint of the admin API, with the scope that it requires. Each is tried by ``test_access.py``."""

from __future__ import annotations

from typing import Final, NamedTuple


class Endpoint(NamedTuple):
    """:ivar path: below ``/api/v1/admin``, with ids that name nothing"""

    method: str
    path: str
    scope: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


ENDPOINTS: Final = (
    Endpoint("GET", "/devices", "admin:read"),
    Endpoint("DELETE", "/devices/nobody/connections", "admin:write"),
    Endpoint("DELETE", "/users/99/connections", "admin:write"),
    Endpoint("DELETE", "/groups/nobody/connections", "admin:write"),
    Endpoint("GET", "/groups/nobody/devices", "admin:read"),
    Endpoint("GET", "/users/99/devices", "admin:read"),
    Endpoint("GET", "/devices/nobody", "admin:read"),
    Endpoint("DELETE", "/devices/nobody/box", "admin:write"),
    Endpoint("PUT", "/devices/nobody/block", "admin:write"),
    Endpoint("DELETE", "/devices/nobody/block", "admin:write"),
    Endpoint("POST", "/messages", "admin:write"),
    Endpoint("GET", "/messages/nothing", "admin:read"),
    Endpoint("POST", "/device-token", "admin:write"),
    Endpoint("GET", "/overview", "admin:read"),
    Endpoint("POST", "/explain", "admin:read"),
    Endpoint("GET", "/events", "admin:read"),
    Endpoint("GET", "/top", "admin:read"),
    Endpoint("GET", "/quarantine", "admin:read"),
    Endpoint("GET", "/quarantine/0/0", "admin:read"),
    Endpoint("POST", "/quarantine/0/0/requeue", "admin:write"),
)
