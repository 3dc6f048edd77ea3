"""Sees that one gateway reads in the group, where it alone holds the devices (``rules/sole_reader``): asks the group's
coordinator for its members, before joining and after each assignment.

Nothing is asked while the group stays as it is: a member that joins or leaves causes an assignment. kafka-python asks,
on a thread of its own, with either client library.
"""

from __future__ import annotations

import contextlib
import logging
import re
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

from kafka import errors as kafka_errors

from ..errors import BrokerError
from ..rules.backoff import Backoff
from ..rules.sole_reader import Group, Member, SoleReader, Step, readers
from .kafka_asking import Inquiry
from .kafka_availability import UNREACHABLE, Availability
from .kafka_clients import AUTH_ERRORS, KafkaClient, KafkaClients, describe, unreachable
from .kafka_options import KafkaOptions

STANDBY_LOOK_S = 0.5  # how often a gateway that waits outside looks whether the group is free
HOLD_LOOK_S = 0.1  # the same of one that waits within
SHARED_LOOK_S = 2.0  # of the reader, while another member is there
BLIND_LOOK_S = 30.0  # of one that could not be answered: rights are granted, and brokers updated
UNANSWERED_LOOK_S = 5.0  # at most, after questions that brought no answer: each makes a client of its own
AWAY_AFTER_S = 3.0  # without an answer; brokers that have just started take a moment to name a coordinator
REBALANCE_PATIENCE_S = 10.0  # a rebalance may take so long before it counts as not being available

_SETTLED = frozenset({"Stable", "Empty", "Dead"})
_ERROR = re.compile(r"\[Error (\d+)\]")  # at the beginning of kafka-python's text for each error of a broker

log = logging.getLogger("cocoa.broker")


class StandBy(Exception):
    """Another member of the group reads; its text says who."""


class UnreadableGroup(Exception):
    """The brokers' description of the group can't be parsed."""


DEFINITE: tuple[type[Exception], ...] = (
    kafka_errors.AuthorizationError,
    kafka_errors.UnsupportedVersionError,
    UnreadableGroup,
)
"""Answers that say there will be no description. Any other error is no answer yet: it says nothing of the group."""


def describe_group(admin: KafkaClient, group: str) -> Group:
    """Raises what kafka-python raises, and UnreadableGroup."""
    try:
        return _group(admin.describe_groups([group])[group])
    except OSError:  # some of TLS' errors are ValueErrors as well
        raise
    except (AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise UnreadableGroup(f"{type(error).__name__}: {error}") from error


class SoleReading:
    """The rule, carried out by the consumer's thread, to which it belongs."""

    def __init__(self, clients: KafkaClients, options: KafkaOptions, availability: Availability) -> None:
        self._options, self._availability, self._tokens = options, availability, clients.tokens
        self._coordinator = Inquiry(clients, "cocoa-kafka-members", lambda admin: describe_group(admin, options.group))
        self._rule = SoleReader(options.results_topic)
        self._ask_at = 0.0
        self._may_read: bool | None = None  # None: not looked at since the latest assignment
        self._is_clear = False  # there is nothing to find out before the next assignment
        self._is_blind = False  # the latest answer was a definite one without a description
        self._blindness_logged = False
        self._trouble: Exception | None = None  # of the latest question, where it brought no answer
        self._unanswered = Backoff(base_s=STANDBY_LOOK_S, cap_s=UNANSWERED_LOOK_S)

    def await_turn(self, stopping: threading.Event) -> None:
        """Return once no other member of the group reads, or when it is time to stop.

        A gateway must not join to find that out: it would take partitions from the one that reads.
        """
        self._rule, self._is_blind, self._trouble = SoleReader(self._options.results_topic), False, None
        heard_at = settled_at = time.monotonic()
        self._ask_at = 0.0
        while not stopping.is_set():
            self._availability.alive()
            if self._tokens is not None:
                self._tokens.refresh_if_due()
            if time.monotonic() >= self._ask_at:
                with contextlib.suppress(RuntimeError):  # no thread is to be had: next time, perhaps
                    wait([self._coordinator.ask()], AWAY_AFTER_S)
            group, now = self._hear(), time.monotonic()
            if self._is_blind:
                self._availability.turn_came()
                return
            if group is None:
                if now - heard_at >= AWAY_AFTER_S:
                    self._availability.down(*(self.trouble() or ("away", self._no_answer())))
            else:
                heard_at = now
                others = readers(group, self._options.results_topic)
                if not others:
                    self._availability.turn_came()
                    return
                if group.settled:
                    settled_at = now
                    self.stand_by(_names(others))
                elif now - settled_at >= REBALANCE_PATIENCE_S:
                    self._availability.down("group", f"group {self._options.group} has not come to an assignment")
            stopping.wait(STANDBY_LOOK_S)

    def trouble(self) -> tuple[str, str] | None:
        """The cause, in one word, and the details, where the latest question brought no answer."""
        error = self._trouble
        if error is None:
            return None
        # A BrokerError is our own: no access token is to be had.
        cause = "auth" if isinstance(error, (BrokerError, *AUTH_ERRORS)) else "away"
        detail, address = describe(error), unreachable(error)
        if address is not None and address not in self._options.bootstrap:
            bootstrap = ",".join(self._options.bootstrap)
            return cause, UNREACHABLE.format(address=address, bootstrap=bootstrap, detail=detail)
        return cause, f"{self._no_answer()}: {detail}"

    def _no_answer(self) -> str:
        return f"{','.join(self._options.bootstrap)}: no answer about the members of group {self._options.group}"

    def stand_by(self, reader: str) -> None:
        self._availability.standby(self._options.group, reader)

    def note_assignment(self) -> None:
        """A member has joined or left: look again."""
        self._may_read, self._is_clear, self._trouble, self._ask_at = None, False, None, 0.0
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
        elif time.monotonic() >= self._ask_at:
            with contextlib.suppress(RuntimeError):  # no thread is to be had: next time, perhaps
                self._coordinator.ask()
        return self._may_read or self._is_blind

    def other_reader(self) -> str | None:
        """Who takes part of the records away, and stays."""
        return None if self._rule.other_reader(time.monotonic()) is None else _names(self._rule.others)

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
        """The group, where the brokers have described it since the last call."""
        answer = self._coordinator.take_answer()
        if answer is None:
            return None
        self._ask_at = time.monotonic() + HOLD_LOOK_S
        try:
            group = answer.result()
        except DEFINITE as error:
            self._unanswered.reset()
            self._go_on_blindly(describe(error))
            return None
        except Exception as error:  # brokers, a token endpoint, descriptors, threads: it may be there next time
            self._trouble = error
            self._ask_at += self._unanswered.next_s()
            return None
        self._unanswered.reset()
        self._is_blind, self._trouble = False, None
        return group

    def _go_on_blindly(self, why: str) -> None:
        """Read, rather than never again. Whether the brokers answer by now is looked at now and then: should another
        reader be there, the rule has this one leave, for it has not been proven to be the first."""
        self._is_blind, self._trouble = True, None
        self._ask_at = time.monotonic() + BLIND_LOOK_S
        if not self._blindness_logged:
            self._blindness_logged = True
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
