"""The parent of the workers: starts them, watches them, and gathers their answers. It serves no device.

One thread and no event loop: :class:`Parent` carries out what ``rules/supervision.py`` decides. It imports as little as
possible, because it is the one process that nothing restarts, except systemd.
"""

from __future__ import annotations

import logging
import selectors
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, cast

import msgspec

from ..rules.readiness_report import Readiness, workers_part, worst
from ..rules.summed_metrics import SummedMetrics
from ..rules.supervision import LOOK_S, Action, End, Kill, Start, Supervisor, Terminate
from ..systemd import Notifier
from .folder import SocketFolder
from .gathering import Gathering, Gatherings
from .messages import (
    MAX_MESSAGE_BYTES,
    Answer,
    Ask,
    Beat,
    BrokenChannel,
    FromParent,
    FromWorker,
    Gathered,
    Leaving,
    MessageReader,
    Question,
    Reload,
    Reloaded,
    Report,
    Up,
    encode,
)
from .own_metrics import parents_metrics
from .place import Place

READ_BYTES: Final = 256 * 1024
MAX_UNSENT_BYTES: Final = 2 * MAX_MESSAGE_BYTES
"""The bytes that may wait for one worker. A worker that reads nothing has stopped, and loses later messages."""

RELOAD_S: Final = 30.0
"""How long the parent reports a reload to systemd at most, if a worker does not complete it."""

log = logging.getLogger("cocoa.workers")


class Child:
    """One worker process, with the parent's end of its channel."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.number, self.process, self.sock = number, process, sock
        self.reader = MessageReader[FromWorker](cast(type[FromWorker], FromWorker))
        self.unsent = bytearray()
        self.is_readable = True


class Parent:
    """Not thread-safe; :meth:`stop`, :meth:`force` and :meth:`reload` may be called by signal handlers.

    :param command: what a worker executes
    :param name: the server's name, from which the workers' names derive
    :param port: the port that all workers listen on
    :param environ: the workers' environment
    :param drain_s: the workers' ``drain_grace``
    :param on_serving: called once, when all workers serve
    :param on_reload: called at each reload, for the parent's own settings
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        name: str,
        port: int,
        environ: Mapping[str, str],
        drain_s: float,
        notifier: Notifier,
        on_serving: Callable[[], None] = lambda: None,
        on_reload: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command, self._count, self._name, self._port = list(command), count, name, port
        self._environ, self._notifier, self._clock = dict(environ), notifier, clock
        self._on_serving, self._on_reload = on_serving, on_reload
        self._supervisor = Supervisor(count, drain_s, clock())
        self._gatherings = Gatherings()
        self._metrics = SummedMetrics()
        self._children: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._is_serving = False
        self._wants_stop = self._wants_force = self._wants_reload = False
        self._reloading: set[int] = set()
        self._reload_until = 0.0
        self._watchdog_at = clock()
        self._folder = SocketFolder()

    # orders, from signal handlers

    def stop(self) -> None:
        """Drain the workers, and end."""
        self._wants_stop = True

    def force(self) -> None:
        """Kill the workers, and end with status 1."""
        self._wants_force = True

    def reload(self) -> None:
        """Have the workers read their settings again."""
        self._wants_reload = True

    def run(self) -> int:
        """Run the workers until a stop; returns the exit status."""
        try:
            while True:
                now = self._clock()
                self._take_orders(now)
                for action in self._supervisor.actions(now):
                    if isinstance(action, End):
                        return action.status
                    self._carry_out(action)
                self._send_gathered(now)
                self._notify_watchdog(now)
                self._read(self._timeout_s(now))
                self._reap()
        finally:
            self._end()

    def _timeout_s(self, now: float) -> float:
        until = self._gatherings.next_at()
        return LOOK_S if until is None else min(LOOK_S, max(0.0, until - now))

    def _take_orders(self, now: float) -> None:
        if self._wants_reload:
            self._wants_reload = False
            self._begin_reload(now)
        if self._reloading and now >= self._reload_until:
            self._end_reload()
        if self._wants_stop and not self._supervisor.is_stopping:
            self._notifier.stopping()
            self._supervisor.stop(now)
        if self._wants_force:
            self._wants_force = False
            self._supervisor.force()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Start(number):
                self._start(number)
            case Terminate(number):
                if number in self._children:
                    self._children[number].process.terminate()
            case Kill(number, reason):
                if number in self._children:
                    child = self._children[number]
                    extra = {"worker": self._name_of(number), "pid": child.process.pid, "reason": reason}
                    log.error("worker killed", extra=extra)
                    child.process.kill()
            case End():
                pass

    def _name_of(self, number: int) -> str:
        return f"{self._name}/{number}"

    # processes

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        place = Place(theirs.fileno(), number, self._count, self._name_of(number), self._port, self._folder.path)
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                env={**self._environ, **place.variable()},
                pass_fds=(place.fd,),
                # Ctrl-C in a terminal is for the parent, which asks its workers to drain.
                process_group=0,
            )
        except OSError as error:
            ours.close()
            self._supervisor.on_started(number, self._clock())
            restart = self._supervisor.on_exit(number, -1, self._clock())
            extra: dict[str, object] = {"worker": self._name_of(number), "error": str(error)}
            extra |= {"retry_in_s": None if restart is None else restart.delay_s}
            log.error("worker not started", extra=extra)
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        child = self._children[number] = Child(number, process, ours)
        self._selector.register(ours, selectors.EVENT_READ, child)
        self._supervisor.on_started(number, self._clock())
        log.info("worker started", extra={"worker": self._name_of(number), "pid": process.pid})

    def _reap(self) -> None:
        for child in list(self._children.values()):
            status = child.process.poll()
            if status is not None:
                self._on_exit(child, status)

    def _on_exit(self, child: Child, status: int) -> None:
        self._close_channel(child)
        number = child.number
        del self._children[number]
        self._metrics.on_exit(number)
        self._gatherings.on_exit(number)
        restart = self._supervisor.on_exit(number, status, self._clock())
        extra: dict[str, object] = {"worker": self._name_of(number), "pid": child.process.pid, "how": how(status)}
        if restart is not None:
            extra["restart_in_s"] = round(restart.delay_s, 3)
        if restart is None:
            log.info("worker ended", extra=extra)
        elif restart.reason == "drained":
            log.info("worker drained", extra=extra)
        else:
            log.warning("worker died", extra=extra)
        self._on_reloaded(number)
        self._report_status()

    # the channels

    def _read(self, timeout_s: float) -> None:
        for key, events in self._selector.select(timeout_s):
            child: Child = key.data
            if events & selectors.EVENT_WRITE:
                self._flush(child)
            if events & selectors.EVENT_READ:
                self._receive(child)

    def _receive(self, child: Child) -> None:
        try:
            data = child.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # it was killed, with something unread
        try:
            for message in child.reader.feed(data):
                self._on_message(child, message)
        except BrokenChannel as error:
            log.error("channel broken", extra={"worker": self._name_of(child.number), "error": str(error)})
            data = b""
        if not data:
            # The worker ends, or will be killed, as it cannot beat any more.
            self._close_channel(child)

    def _close_channel(self, child: Child) -> None:
        if child.is_readable:
            child.is_readable = False
            self._selector.unregister(child.sock)
            child.sock.close()

    def _send(self, child: Child, message: FromParent) -> None:
        if child.is_readable and len(child.unsent) < MAX_UNSENT_BYTES:
            child.unsent += encode(message)
            self._flush(child)

    def _flush(self, child: Child) -> None:
        try:
            while child.unsent:
                del child.unsent[: child.sock.send(child.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            child.unsent.clear()  # the worker has ended; its exit is reported separately
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.unsent else 0)
        self._selector.modify(child.sock, events, child)

    def _on_message(self, child: Child, message: FromWorker) -> None:
        now, number = self._clock(), child.number
        match message:
            case Beat():
                self._supervisor.on_beat(number, now)
            case Up():
                self._supervisor.on_up(number, now)
                self._on_up(child)
            case Leaving():
                self._supervisor.on_leaving(number, now)
            case Reloaded():
                self._on_reloaded(number)
            case Ask():
                self._on_ask(number, message, now)
            case Answer():
                self._gatherings.on_answer(number, message.number, message.text)

    def _on_up(self, child: Child) -> None:
        log.info("worker up", extra={"worker": self._name_of(child.number), "pid": child.process.pid})
        if self._supervisor.all_were_up and not self._is_serving:
            self._is_serving = True
            self._on_serving()
            self._notifier.ready()
        self._report_status()

    # answers that cover all workers

    def _on_ask(self, asker: int, ask: Ask, now: float) -> None:
        up, missing = self._supervisor.up, self._supervisor.missing
        number = self._gatherings.ask(ask.topic, asker, ask.number, up, missing, now)
        if number is not None:
            for worker in up:
                self._send(self._children[worker], Question(number, ask.topic))

    def _send_gathered(self, now: float) -> None:
        for gathering in self._gatherings.complete(now):
            text = self._metrics_of(gathering) if gathering.topic == "metrics" else self._readiness_of(gathering)
            if gathering.asker in self._children:
                self._send(self._children[gathering.asker], Gathered(gathering.asker_number, text))

    def _metrics_of(self, gathering: Gathering) -> str:
        own = parents_metrics(self._count, len(gathering.missing), self._supervisor.restarts())
        return self._metrics.summed(gathering.answers, own)

    def _readiness_of(self, gathering: Gathering) -> str:
        reports = [msgspec.json.decode(text, type=Report) for text in gathering.answers.values()]
        ready = worst(Readiness(report.draining, report.parts) for report in reports)
        missing = workers_part([self._name_of(number) for number in gathering.missing])
        parts = {name: dict(part) for name, part in {**ready.parts, "workers": missing}.items()}
        return msgspec.json.encode(Report(ready.draining, parts)).decode()

    # reloads

    def _begin_reload(self, now: float) -> None:
        self._reloading = set(self._children)
        self._reload_until = now + RELOAD_S
        self._notifier.reloading()
        try:
            self._on_reload()
        except Exception as error:  # for example, no more threads can be started: the workers continue nevertheless
            log.error("reload failed", extra={"error": str(error)})
        for child in self._children.values():
            self._send(child, Reload())
        if not self._reloading:
            self._end_reload()

    def _on_reloaded(self, number: int) -> None:
        if number in self._reloading:
            self._reloading.remove(number)
            if not self._reloading:
                self._end_reload()

    def _end_reload(self) -> None:
        self._reloading.clear()
        if self._is_serving and not self._supervisor.is_stopping:
            self._notifier.ready()

    # systemd

    def _notify_watchdog(self, now: float) -> None:
        interval_s = self._notifier.watchdog_s
        if interval_s is not None and now >= self._watchdog_at:
            self._watchdog_at = now + interval_s
            self._notifier.alive()

    def _report_status(self) -> None:
        if self._is_serving:
            self._notifier.status(f"{len(self._supervisor.up)} of {self._count} workers serve")

    def _end(self) -> None:
        """Clean up, also after an exception: workers whose channel is closed drain."""
        for child in self._children.values():
            self._close_channel(child)
        self._selector.close()
        self._folder.remove()


def how(status: int) -> str:
    """An exit status of ``subprocess``, in words."""
    return f"signal {-status}" if status < 0 else f"status {status}"
