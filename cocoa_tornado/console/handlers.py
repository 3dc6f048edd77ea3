"""``GET /`` and the files below ``/console/``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ..web.application import Routes
from ..web.handlers import GatewayErrors, WebContext
from .files import INDEX, ConsoleFile
from .policy import SAFETY, content_security_policy

BASE: Final = "/console"


@dataclass(frozen=True, slots=True)
class ConsoleContext:
    """:ivar device_port: returns the port of the devices, if the console is on another one"""

    files: Mapping[str, ConsoleFile]
    device_port: Callable[[], int | None] = lambda: None


class ConsoleHandler(GatewayErrors):
    """Serves one file. It needs no token, because it is the same for all clients and contains no data."""

    def initialize(self, context: WebContext, console: ConsoleContext) -> None:  # type: ignore[override]  # one more
        super().initialize(context)
        self.console = console

    @property
    def is_enabled(self) -> bool:
        return self.context.live.now.admin_keys is not None

    def get(self, name: str = INDEX) -> None:
        file = self.console.files.get(name)
        # One page has one address.
        if file is None or (name == INDEX and self.request.path != "/"):
            self.refuse(404, "Not Found")
            return
        request = self.request
        policy = content_security_policy(
            request.host, tls=request.protocol == "https", device_port=self.console.device_port()
        )
        for field, value in {**SAFETY, "Content-Security-Policy": policy}.items():
            self.set_header(field, value)
        self.set_header("ETag", file.etag)
        # A new release is seen at once; an unchanged file costs no body.
        self.set_header("Cache-Control", "no-cache")
        if file.etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]:
            self.set_status(304)
            self.finish()
            return
        self.set_header("Content-Type", file.content_type)
        self.finish(file.body)

    head = get

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """A path that is not UTF-8 is an unknown one, not a 400."""
        return value.decode("utf-8", "surrogateescape")


def console_routes(console: ConsoleContext) -> Routes:
    """All of them, for one listener."""
    shared: dict[str, object] = {"console": console}
    return [("/", ConsoleHandler, shared), (f"{BASE}/(.+)", ConsoleHandler, shared)]
