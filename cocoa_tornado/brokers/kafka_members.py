"""Sees that one gateway reads in the group, where it alone holds the devices (``rules/sole_reader``): asks the group's
coordinator for its members, before joining and after each assignment.

Nothing is asked while the group stays as it is: whoever joins or leaves causes an assignment. kafka-python asks, on a
thread of its own, whatever library reads.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from kafka import errors as kafka_errors

from ..rules.sole_reader import Group, Member, SoleReader, Step, readers
from .asking import ask
from .kafka_availability import Availability
from .kafka_clients import KafkaClient, KafkaClients, describe, is_retriable
from .kafka_options import KafkaOptions

STANDBY_LOOK_S = 0.5  # how often a gateway that waits outside looks whether the group is free
HOLD_LOOK_S = 0.1  # the same of one that waits within
SHARED_LOOK_S = 2.0  # of the reader, while another member is there
AWAY_AFTER_S = 3.0  # without an answer; brokers that have just started take a moment to name a coordinator
REBALANCE_PATIENCE_S = 10.0  # a rebalance may take so long before it counts as not being available

_SETTLED = frozenset({"Stable", "Empty", "Dead"})
_ERROR = re.compile(r"\[Error (\d+)\]")  # at the beginning of kafka-python's text for each error of a broker

log = logging.getLogger("cocoa.broker")


class StandBy(Exception):
    """Another member of the group reads; its text says who."""


class Coordinator:
    """Describes the group, one question at a time. Used by one thread; the questions have threads of their own."""

    def __init__(self, clients: KafkaClients, group: str) -> None:
        self._clients, self._group = clients, group
        self._asked: Future[Group] | None = None
        self._lock = threading.Lock()  # of the client
        self._admin: KafkaClient = None

    def ask(self) -> Future[Group]:
        """Ask now, or wait for the answer that is to come. Raises RuntimeError where no thread is to be had."""
        if self._asked is None:
            self._asked = ask("cocoa-kafka-members", self._describe)
        return self._asked

    def take_answer(self) -> Future[Group] | None:
        """What has been answered, once: the group, or what the question has raised."""
        if self._asked is None or not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        return asked

    def forget(self) -> None:
        """An answer that is to come, or to be taken, is of no use any more."""
        self._asked = None

    def rest(self) -> None:
        """Close the connections, once the question under way has its answer; the next one opens them again."""
        asked, self._asked = self._asked, None
        if asked is None and self._admin is None:
            return

        def close() -> None:
            if asked is not None:
                wait([asked])
            with self._lock:
                self._close()

        with contextlib.suppress(RuntimeError):  # no thread is to be had: they stay open
            ask("cocoa-kafka-members", close)

    def _describe(self) -> Group:
        with self._lock:
            try:
                if self._admin is None:
                    self._admin = self._clients.admin()
                return _group(self._admin.describe_groups([self._group])[self._group])
            except BaseException:
                self._close()  # it remembers the coordinator, which may be another by now
                raise

    def _close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(Exception):  # whatever state it is in, it is being thrown away
                admin.close()


class SoleReading:
    """The rule, carried out by the consumer's thread, to which it belongs."""

    def __init__(self, clients: KafkaClients, options: KafkaOptions, availability: Availability) -> None:
        self._options, self._availability = options, availability
        self._coordinator = Coordinator(clients, options.group)
        self._rule = SoleReader(options.results_topic)
        self._ask_at = 0.0
        self._may_read: bool | None = None  # None: not looked at since the latest assignment
        self._is_clear = False  # there is nothing to find out before the next assignment
        self._is_blind = False  # in this session
        self._told_blind = False

    def await_turn(self, stopping: threading.Event) -> None:
        """Return once nobody in the group reads, or when it is time to stop.

        A gateway must not join to find that out: it would take partitions from the one that reads.
        """
        self._rule, self._is_blind = SoleReader(self._options.results_topic), False
        heard_at = settled_at = time.monotonic()
        while not stopping.is_set():
            self._availability.alive()
            with contextlib.suppress(RuntimeError):  # no thread is to be had: next time, perhaps
                wait([self._coordinator.ask()], AWAY_AFTER_S)
            group, now = self._hear(), time.monotonic()
            if self._is_blind:
                return
            if group is None:
                if now - heard_at >= AWAY_AFTER_S:
                    bootstrap = ",".join(self._options.bootstrap)
                    self._availability.down("away", f"{bootstrap}: no answer about group {self._options.group}")
            else:
                heard_at = now
                others = readers(group, self._options.results_topic)
                if not others:
                    return
                if group.settled:
                    settled_at = now
                    self.stand_by(_names(others))
                elif now - settled_at >= REBALANCE_PATIENCE_S:
                    self._availability.down("group", f"group {self._options.group} has not come to an assignment")
            stopping.wait(STANDBY_LOOK_S)

    def stand_by(self, reader: str) -> None:
        self._availability.standby(self._options.group, reader)

    def note_assignment(self) -> None:
        """Whoever has come or gone: look again."""
        self._may_read, self._is_clear, self._ask_at = None, self._is_blind, 0.0
        self._coordinator.forget()  # that answer is of the time before

    def may_read(self, me: Callable[[], str | None]) -> bool:
        """Whether records may be handed over; to be asked now and then while there is an assignment.

        :param me: the present member id
        :raises StandBy: another member was there before; leave the group
        """
        if self._is_clear:
            return True
        if self._may_read is None:
            self._may_read = self._rule.is_reader(me() or "")
        group = self._hear()
        if group is not None:
            self._may_read = self._judge(me() or "", group)
        elif time.monotonic() >= self._ask_at and not self._is_clear:
            with contextlib.suppress(RuntimeError):  # no thread is to be had: next time, perhaps
                self._coordinator.ask()
        return self._may_read or self._is_clear

    def intruder(self) -> str | None:
        """Who takes part of the records away, and stays."""
        return None if self._rule.intruder(time.monotonic()) is None else _names(self._rule.others)

    def end_session(self) -> None:
        """The consumer is closed, or there is none yet."""
        self._may_read, self._is_clear = None, False
        self._coordinator.rest()

    def _judge(self, me: str, group: Group) -> bool:
        now = time.monotonic()
        step = self._rule.judge(me, group, now)
        if step is Step.LEAVE:
            raise StandBy(_names(self._rule.others))
        self._ask_at = now + (HOLD_LOOK_S if step is Step.HOLD else SHARED_LOOK_S)
        if step is Step.READ and group.settled and not self._rule.others:
            self._is_clear = True
            self._coordinator.rest()
        return step is Step.READ

    def _hear(self) -> Group | None:
        """The answer, if there is one that tells something."""
        answer = self._coordinator.take_answer()
        if answer is None:
            return None
        self._ask_at = time.monotonic() + HOLD_LOOK_S
        try:
            return answer.result()
        except kafka_errors.KafkaError as error:
            if not is_retriable(error) and not isinstance(error, kafka_errors.SaslAuthenticationFailedError):
                self._go_on_blindly(describe(error))  # not allowed to ask, or the brokers know no such question
            return None
        except Exception as error:  # whatever this client makes of these brokers is no reason not to read
            self._go_on_blindly(f"{type(error).__name__}: {error}")
            return None

    def _go_on_blindly(self, why: str) -> None:
        self._is_blind = self._is_clear = True
        if not self._told_blind:
            self._told_blind = True
            log.warning("group members unknown", extra={"group": self._options.group, "detail": why})


def _group(found: dict[str, Any]) -> Group:
    if found["error"]:
        number = _ERROR.match(found["error"])
        error = kafka_errors.for_code(int(number[1])) if number else kafka_errors.UnknownError
        if error is kafka_errors.GroupIdNotFoundError:
            return Group(settled=True)
        raise error(found["error"])
    settled = found["group_state"] in _SETTLED
    return Group(settled, tuple(_member(member) for member in found["members"]))


def _member(found: dict[str, Any]) -> Member:
    subscription = found["member_metadata"]  # empty while the group is not settled; bytes where it is no consumer's
    topics = frozenset(subscription["topics"]) if isinstance(subscription, dict) else None
    return Member(found["member_id"], found["client_id"], found["client_host"].lstrip("/"), topics)


def _names(members: tuple[Member, ...]) -> str:
    first, *more = members
    return f"{first} and {len(more)} more" if more else str(first)
