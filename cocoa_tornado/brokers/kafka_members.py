"""Makes sure that only one gateway reads in the group (``rules/sole_reader``): requests the group's members from its
coordinator, before joining and after each assignment.

Nothing is requested while the group is unchanged, since a member that joins or leaves causes an assignment. The
requests use kafka-python on a thread of their own, with either client library.
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
from .kafka_clients import KafkaClients
from .kafka_connections import KafkaClient
from .kafka_failures import AUTH_ERRORS, describe, unreachable
from .kafka_options import KafkaOptions

STANDBY_LOOK_S = 0.5  # how often a gateway outside the group checks whether it is free
HOLD_LOOK_S = 0.1  # the same for one that waits inside
SHARED_LOOK_S = 2.0  # the same for the reader, while another member is there
BLIND_LOOK_S = 30.0  # after an answer without a description: rights may be granted, and brokers updated
UNANSWERED_LOOK_S = 5.0  # at most, after requests without an answer: each creates a client
AWAY_AFTER_S = 3.0  # without an answer; brokers that have just started take a moment to name a coordinator
REBALANCE_PATIENCE_S = 10.0  # a longer rebalance counts as being unavailable

_WITHOUT_MEMBERS = frozenset({"Empty", "Dead"})
_SETTLED = _WITHOUT_MEMBERS | {"Stable"}
CONSUMER_PROTOCOL = Member(id="", client="a server with kafka_group_protocol consumer", host="some host", topics=None)
_ERROR = re.compile(r"\[Error (\d+)\]")  # the beginning of kafka-python's text for a broker's error

log = logging.getLogger("cocoa.broker")


class StandBy(Exception):
    """Another member of the group reads; the text names it."""


class UnreadableGroup(Exception):
    """The brokers' description of the group can't be parsed."""


DEFINITE: tuple[type[Exception], ...] = (
    kafka_errors.AuthorizationError,
    kafka_errors.UnsupportedVersionError,
    UnreadableGroup,
)
"""Answers that mean there will be no description. Any other error says nothing about the group."""


def describe_group(admin: KafkaClient, group: str) -> Group:
    """Raises kafka-python's errors, and UnreadableGroup."""
    try:
        found = admin.describe_groups([group])[group]
        return _group(found) if found["error"] is None else _without_description(admin, group, found["error"])
    except OSError:  # some TLS errors are also ValueErrors
        raise
    except (AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise UnreadableGroup(f"{type(error).__name__}: {error}") from error


class SoleReading:
    """Applies the rule. Used by the consumer's thread only."""

    def __init__(self, clients: KafkaClients, options: KafkaOptions, availability: Availability) -> None:
        self._options, self._availability, self._tokens = options, availability, clients.tokens
        self._coordinator = Inquiry(clients, "cocoa-kafka-members", lambda admin: describe_group(admin, options.group))
        self._rule = SoleReader(options.results_topic)
        self._ask_at = 0.0
        self._may_read: bool | None = None  # None: unknown since the last assignment
        self._is_clear = False  # nothing to find out before the next assignment
        self._is_blind = False  # the last answer was definite, but without a description
        self._blindness_logged = False
        self._trouble: Exception | None = None  # of the last request, if it was not answered
        self._unanswered = Backoff(base_s=STANDBY_LOOK_S, cap_s=UNANSWERED_LOOK_S)

    def await_turn(self, stopping: threading.Event) -> None:
        """Return once no other member of the group reads, or when it is time to stop.

        A gateway must not join to find that out, because it would take partitions from the reader.
        """
        self._rule, self._is_blind, self._trouble = SoleReader(self._options.results_topic), False, None
        heard_at = settled_at = time.monotonic()
        self._ask_at = 0.0
        while not stopping.is_set():
            self._availability.alive()
            if self._tokens is not None:
                self._tokens.refresh_if_due()
            if time.monotonic() >= self._ask_at:
                with contextlib.suppress(RuntimeError):  # no thread: try again next time
                    wait([self._coordinator.ask()], AWAY_AFTER_S)
            group, now = self._take_group(), time.monotonic()
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
        """A one-word cause and the details, if the last request was not answered."""
        error = self._trouble
        if error is None:
            return None
        # A BrokerError means that no access token is available.
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
        """A member has joined or left: check again."""
        self._may_read, self._is_clear, self._trouble, self._ask_at = None, False, None, 0.0
        self._coordinator.forget()  # that answer is older

    def may_read(self, me: Callable[[], str | None]) -> bool:
        """Return whether records may be handed over; call it periodically while there is an assignment.

        :param me: returns the current member id
        :raises StandBy: another member was there before; leave the group
        """
        if self._is_clear:
            return True
        if self._may_read is None:
            self._may_read = self._rule.is_reader(me() or "")
        group = self._take_group()
        if group is not None:
            self._may_read = self._judge(me() or "", group)
        elif time.monotonic() >= self._ask_at:
            with contextlib.suppress(RuntimeError):  # no thread: try again next time
                self._coordinator.ask()
        return self._may_read or self._is_blind

    def other_reader(self) -> str | None:
        """The member that takes some of the records, and stays."""
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

    def _take_group(self) -> Group | None:
        """The group, if the brokers have described it since the last call."""
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
        except Exception as error:  # of brokers, a token endpoint, descriptors, threads: it may work next time
            self._trouble = error
            self._ask_at += self._unanswered.next_s()
            return None
        self._unanswered.reset()
        self._is_blind, self._trouble = False, None
        return group

    def _go_on_blindly(self, why: str) -> None:
        """Read, rather than never again. Keep checking periodically whether the brokers answer: if there is another
        reader, the rule makes this gateway leave, because it was never seen to be the first."""
        self._is_blind, self._trouble = True, None
        self._ask_at = time.monotonic() + BLIND_LOOK_S
        if not self._blindness_logged:
            self._blindness_logged = True
            log.warning("group members unknown", extra={"group": self._options.group, "detail": why})


def _without_description(admin: KafkaClient, group: str, text: str) -> Group:
    """The group if it does not exist, or is of the consumer protocol (KIP-848), whose members kafka-python cannot
    describe."""
    number = _ERROR.match(text)
    error = kafka_errors.for_code(int(number[1])) if number else kafka_errors.UnknownError
    if error is not kafka_errors.GroupIdNotFoundError:
        raise error(text)
    states = [found["group_state"] for found in admin.list_groups() if found["group_id"] == group]
    return Group(settled=True, members=(CONSUMER_PROTOCOL,) if set(states) - _WITHOUT_MEMBERS else ())


def _group(found: dict[str, Any]) -> Group:
    settled = found["group_state"] in _SETTLED
    return Group(settled, tuple(_member(member) for member in found["members"]))


def _member(found: dict[str, Any]) -> Member:
    subscription = found["member_metadata"]  # empty during a rebalance; bytes if it is not a consumer's
    topics = frozenset(subscription["topics"]) if isinstance(subscription, dict) else None
    return Member(found["member_id"], found["client_id"], found["client_host"].lstrip("/"), topics)


def _names(members: tuple[Member, ...]) -> str:
    first, *more = members
    return f"{first} and {len(more)} more" if more else str(first)
