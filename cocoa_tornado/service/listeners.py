"""The listeners of a gateway: for devices and, if the admin API has a port of its own, for operators."""

from __future__ import annotations

import socket

from tornado.httputil import HTTPServerConnectionDelegate

from ..counters import Counters
from ..hub import Hub
from ..rules.addresses import base_url
from ..web.listener import Listener
from ..web.listening_sockets import bind
from ..web.upgrading import Upgrader
from .configuration import Configuration
from .options import listener_options


class Listeners:
    """The listeners of one gateway, and their ports. IOLoop thread only.

    :param is_shared: other workers listen on the same ports
    :ivar port: of the devices; 0 before :meth:`bind`
    :ivar admin_port: of the admin API's own listener; 0 if there is none, and before :meth:`bind_admin`
    """

    def __init__(self, configuration: Configuration, counters: Counters, hub: Hub, *, is_shared: bool) -> None:
        self._configuration, self._counters, self._hub = configuration, counters, hub
        self._is_shared = is_shared
        self._listeners: list[Listener] = []
        self.port = self.admin_port = 0

    def __repr__(self) -> str:
        return f"<Listeners {self.url} {self._listeners}>"

    @property
    def url(self) -> str:
        """Of the devices' listener."""
        return self._url(self._configuration.settings.host, self.port)

    @property
    def admin_url(self) -> str:
        """Where the admin API and the console are."""
        return self._url(self._configuration.settings.admin_host, self.admin_port) if self.admin_port else self.url

    def _url(self, host: str, port: int) -> str:
        return base_url(host, port, tls=self._configuration.live.now.tls is not None)

    def server_name(self) -> str:
        """The name of this server, which by default has the port in it."""
        return self._configuration.settings.server_name or f"{socket.gethostname()}:{self.port}"

    def own_device_port(self) -> int | None:
        """The port of the devices; None if the admin API is there too."""
        return None if self._configuration.settings.admin_port is None else self.port

    @property
    def http_connections(self) -> int:
        """Connections that are not a device's, or not yet."""
        return sum(listener.pending for listener in self._listeners)

    def make(self, front: HTTPServerConnectionDelegate, upgrader: Upgrader | None = None) -> Listener:
        """A listener with the settings' options, not started.

        :param front: answers requests
        :param upgrader: of the devices' listener
        """
        options, live, hub = listener_options(self._configuration.settings), self._configuration.live, self._hub
        upgrades = () if upgrader is None else (upgrader.try_at_once,)
        listener = Listener(front, options, lambda: live.now.tls, self._counters, lambda: len(hub), *upgrades)
        self._listeners.append(listener)
        return listener

    def bind(self) -> list[socket.socket]:
        """The sockets for the devices' listener.

        :raises ServiceError: the port cannot be had
        """
        settings = self._configuration.settings
        sockets = bind(settings.host, settings.port, shared=self._is_shared)
        self.port = sockets[0].getsockname()[1]
        return sockets

    def bind_admin(self) -> list[socket.socket]:
        """As :meth:`bind`, for the admin API's own listener."""
        settings = self._configuration.settings
        assert settings.admin_port is not None
        sockets = bind(settings.admin_host, settings.admin_port, shared=self._is_shared)
        self.admin_port = sockets[0].getsockname()[1]
        return sockets
