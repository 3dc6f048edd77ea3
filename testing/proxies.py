"""Real proxies for the tests, each with the configuration of ``conf/proxies``, on free ports of 127.0.0.1.

The tests change ports and paths only, so they cover the configurations that operators use.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .certificates import Certificate, write_certificate
from .ports import ReservedPort
from .processes import end

CONF = Path(__file__).parent.parent / "conf" / "proxies"
START_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Places:
    """The ports and paths that replace those of a configuration.

    :ivar plain: the port that redirects to HTTPS
    :ivar secure: the HTTPS port
    :ivar gateway: the gateway's port
    :ivar edits: further replacements, to test the effect of a missing line
    """

    folder: Path
    plain: int
    secure: int
    gateway: int
    certificate: Certificate
    edits: dict[str, str]


@dataclass(frozen=True)
class Program:
    """A proxy program.

    :ivar configure: writes its configuration; returns its command line
    """

    name: str
    configure: Callable[[Places], list[str]]

    def why_not(self) -> str:
        """Why it cannot run here; empty if it can."""
        return (
            "" if shutil.which(self.name, path=_PATH) else f"{self.name} is not installed: apt-get install {self.name}"
        )


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"  # where Debian has them; not on all PATHs


def filled_in(name: str, places: Places, replacements: dict[str, str]) -> str:
    """A configuration of ``conf/proxies`` with other ports and paths. Each replaced text must occur in it."""
    text = (CONF / name).read_text(encoding="utf-8")
    for old, new in (replacements | places.edits).items():
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new)
    return text


def _tls_files(places: Places) -> dict[str, str]:
    return {
        "/etc/cocoa-gateway/tls/fullchain.pem": str(places.certificate.cert),
        "/etc/cocoa-gateway/tls/privkey.pem": str(places.certificate.key),
        "127.0.0.1:8080": f"127.0.0.1:{places.gateway}",
    }


def _nginx(places: Places) -> list[str]:
    text = filled_in(
        "nginx.conf",
        places,
        _tls_files(places)
        | {
            "listen 80;": f"listen 127.0.0.1:{places.plain};",
            "listen 443 ssl;": f"listen 127.0.0.1:{places.secure} ssl;",
            "/var/log/nginx/": f"{places.folder}/",
            "https://$host$": f"https://$host:{places.secure}$",
        },
    )
    (places.folder / "cocoa.conf").write_text(text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {places.folder}/{kind};" for kind in kinds)
    # The rest is the relevant part of Debian's nginx.conf, in one foreground process.
    (places.folder / "nginx.conf").write_text(
        f"""daemon off; master_process off; pid {places.folder}/nginx.pid; error_log {places.folder}/error.log;
        events {{ worker_connections 256; }}
        http {{ {temporary} access_log {places.folder}/access.log; gzip on; include {places.folder}/cocoa.conf; }}"""
    )
    return ["nginx", "-p", str(places.folder), "-c", str(places.folder / "nginx.conf")]


def _haproxy(places: Places) -> list[str]:
    both = places.folder / "both.pem"
    both.write_bytes(places.certificate.cert.read_bytes() + places.certificate.key.read_bytes())
    text = filled_in(
        "haproxy.cfg",
        places,
        {
            "/etc/haproxy/cocoa.pem": str(both),
            "127.0.0.1:8080": f"127.0.0.1:{places.gateway}",
            "bind :80": f"bind 127.0.0.1:{places.plain}",
            "bind :443": f"bind 127.0.0.1:{places.secure}",
            "redirect scheme https": f"redirect prefix https://localhost:{places.secure}",
        },
    )
    (places.folder / "haproxy.cfg").write_text(text)
    return ["haproxy", "-db", "-f", str(places.folder / "haproxy.cfg")]


def _caddy(places: Places) -> list[str]:
    text = filled_in(
        "Caddyfile",
        places,
        _tls_files(places)
        | {
            "http_port 80\n": f"http_port {places.plain}\n",
            # No admin API: its port is fixed, so only one Caddy per machine could have it.
            "https_port 443\n": f"https_port {places.secure}\n\tadmin off\n\tdefault_bind 127.0.0.1\n",
            "gateway.example {": "localhost {",
        },
    )
    (places.folder / "Caddyfile").write_text(text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(places.folder / "Caddyfile")]


NGINX, HAPROXY, CADDY = Program("nginx", _nginx), Program("haproxy", _haproxy), Program("caddy", _caddy)


class Proxy:
    """A proxy with TLS in front of a gateway. Clients must trust ``certificate``.

    :ivar secure_port: devices connect here; :ivar plain_port: redirects to it
    """

    def __init__(self, program: Program, folder: Path, gateway_port: int, edits: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.program, self.folder = program, folder
        self.certificate = write_certificate(folder)
        self._ports = ReservedPort(), ReservedPort()
        self.plain_port, self.secure_port = (port.number for port in self._ports)
        places = Places(folder, self.plain_port, self.secure_port, gateway_port, self.certificate, edits or {})
        self._command = program.configure(places)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        # Caddy keeps files in its user's home.
        environment = os.environ | {"PATH": _PATH, "HOME": str(self.folder)}
        environment |= {"XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        with open(self.folder / "output.log", "ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        (self.folder / "pid").write_text(str(self._process.pid))
        deadline = time.monotonic() + START_PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if all(_accepts(port) for port in (self.plain_port, self.secure_port)):
                return
            time.sleep(0.02)
        log = self.logged()[-4000:]
        self.close()
        raise RuntimeError(f"{self.program.name} did not start:\n{log}")

    def logged(self) -> str:
        """The contents of all its logs."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        """Stop it and release its ports."""
        process, self._process = self._process, None
        if process is not None:
            end(process, signal.SIGTERM)
            (self.folder / "pid").unlink(missing_ok=True)
        for port in self._ports:
            port.close()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
