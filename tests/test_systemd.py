from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cocoa_tornado.systemd import Notifier


def test_outside_systemd_nothing_is_sent() -> None:
    notifier = Notifier({})
    for notify in (notifier.ready, notifier.reloading, notifier.stopping, notifier.alive, notifier.close):
        notify()
    assert notifier.watchdog_s is None


@pytest.mark.parametrize("abstract", [False, True])
def test_it_reports_states_and_takes_the_variables_from_the_environment(tmp_path: Path, abstract: bool) -> None:
    name = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name[1:]}" if abstract else name)
        systemd.settimeout(30)
        environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7", "PATH": "/bin"}
        notifier = Notifier(environ, pid=7, clock=lambda: 1.5)
        assert environ == {"PATH": "/bin"}
        assert notifier.watchdog_s == 1.0
        notifier.ready("serves")
        notifier.reloading()
        notifier.stopping()
        notifier.alive()
        notifier.status("2 of 2")
        assert [systemd.recv(4096) for _ in range(5)] == [
            b"READY=1\nSTATUS=serves",
            b"RELOADING=1\nMONOTONIC_USEC=1500000",
            b"STOPPING=1",
            b"WATCHDOG=1",
            b"STATUS=2 of 2",
        ]
        notifier.close()


@pytest.mark.parametrize(
    "environ",
    [{"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {}],
)
def test_a_watchdog_for_another_process_or_none_is_not_fed(environ: dict[str, str]) -> None:
    assert Notifier(dict(environ), pid=7).watchdog_s is None


def test_a_socket_that_is_gone_or_full_is_no_failure(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(10_000):
            notifier.alive()
    notifier.alive()
    notifier.close()
