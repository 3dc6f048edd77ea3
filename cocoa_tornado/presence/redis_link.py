"""The scripts of presence, on two connections to Redis: beats do not wait behind claims."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from ..redis_store.connection import RedisConnection, facts_of
from ..redis_store.faults import RedisFault
from ..redis_store.scripts import Command, Script
from ..rules.claims import Generation
from . import redis_scripts as scripts
from .actions import Acquire
from .membership import Beat, Fence, Join, Leave, Settle
from .port import Holder
from .redis_backlog import Asked
from .redis_cautions import Facts
from .redis_scripts import BeatReply, ClaimItem, ClaimReply, EpochOver, JoinReply, TermOver

PATIENCE_S: Final = 1.0
"""For a connection, and for a reply: after that, the question is asked again."""

_SCRIPTS: Final = {name: Script(text, key=scripts.META) for name, text in scripts.TEXTS.items()}
_SETTINGS: Final = (b"maxmemory-policy", b"min-replicas-to-write", b"min-replicas-max-lag")

T = TypeVar("T")
HoldersByDevice = Mapping[str, Sequence[Holder]]


class Answers(NamedTuple):
    """The answers to one round trip.

    :ivar released: None, or why the releases were rejected
    :ivar claims: in their order; a fault says that nothing was granted
    :ivar is_fenced: the epoch has ended; then there are no claims
    :ivar found: for each look-up, or why they were rejected
    :ivar foreign: keys with holders that are of another type
    """

    released: RedisFault | None
    claims: Sequence[ClaimReply | RedisFault]
    is_fenced: bool
    found: Sequence[HoldersByDevice] | RedisFault
    foreign: frozenset[bytes] = frozenset()


Outcome: TypeAlias = Answers | RedisFault | TermOver | None


class RedisLink:
    """Every method raises RedisFault if Redis does not answer, and TermOver if it is another process than the one that
    the arguments are for, or another term has begun."""

    def __init__(self, url: str) -> None:
        both = (RedisConnection(url, [*_SCRIPTS.values()], connect_s=PATIENCE_S, reply_s=PATIENCE_S) for _ in range(2))
        self._asking, self._beating = both

    async def join(self, join: Join, wall_s: float, clock: Callable[[], float]) -> tuple[str, JoinReply, float]:
        """Returns the run, the reply, and when it was sent."""
        await self._beating.begin_anew()
        await self._beating.exchange([[b"PING"]])
        process = self._beating.process
        if not process:
            raise RedisFault("the Redis user lacks a permission: INFO", away=False)
        run = process.decode()
        arguments = scripts.join_arguments(run, join.known_term, join.epoch, wall_s)
        command = _SCRIPTS["join"].call(*arguments)
        sent_at = clock()
        (reply,) = await self._beating.exchange([command], process, once=True)
        return run, _read(scripts.join_reply, _accepted(reply)), sent_at

    async def beat(self, beat: Beat, info: str) -> BeatReply:
        """:raises EpochOver: this server was fenced"""
        command = _SCRIPTS["beat"].call(*scripts.beat_arguments(beat.stamp, beat.epoch, beat.seen, info))
        return _read(scripts.beat_reply, await self._send(self._beating, beat.stamp, command))

    async def send(self, action: Fence | Settle | Leave) -> bool:
        """
        :returns: False: FENCE has changed nothing
        :raises EpochOver: LEAVE came too late
        """
        match action:
            case Fence(stamp, epoch, beat):
                command = _SCRIPTS["fence"].call(*scripts.fence_arguments(stamp, epoch, beat))
            case Settle(stamp):
                command = _SCRIPTS["settle"].call(*scripts.settle_arguments(stamp))
            case Leave(stamp, epoch):
                command = _SCRIPTS["leave"].call(*scripts.leave_arguments(stamp, epoch))
        return scripts.done(await self._send(self._beating, action.stamp, command))

    async def facts(self) -> Facts | None:
        """The relevant settings of Redis; None without permission to read them."""
        replies = await self._beating.exchange(
            [[b"INFO", b"replication"], *([b"CONFIG", b"GET", name] for name in _SETTINGS)]
        )
        if any(isinstance(reply, RedisFault) or len(reply) < 2 for reply in replies):
            return None
        policy, least, lag = (reply[1].decode() for reply in replies[1:])
        replicas = int(facts_of(replies[0]).get(b"connected_slaves", b"0"))
        return Facts(policy, replicas, int(least), float(lag), self._beating.has_sentinels)

    async def ask(self, stamp: str, epoch: str, per_device: int, asked: Asked) -> Answers:
        """One round trip."""
        question = _Question(stamp, epoch, per_device, asked)
        return _read(question.answers, await self._exchange(self._asking, stamp, question.commands))

    def ask_now(
        self, stamp: str, epoch: str, per_device: int, asked: Asked, on_answers: Callable[[Outcome], object]
    ) -> bool:
        """One round trip without a task, if the connection is ready for that; False: call :meth:`ask`.

        :param on_answers: called once, and never from within this call, with the answers, the error that :meth:`ask`
            would raise, or None: call :meth:`ask`
        """
        question = _Question(stamp, epoch, per_device, asked)

        def finish(replies: list[Any] | Exception | None) -> None:
            if not isinstance(replies, list):
                assert replies is None or isinstance(replies, RedisFault)
                on_answers(replies)
            elif _is_of_another_term(replies):
                on_answers(TermOver())
            else:
                try:
                    answers: Answers | RedisFault = _read(question.answers, replies)
                except RedisFault as fault:
                    answers = fault
                on_answers(answers)

        return self._asking.exchange_now(question.commands, _process_of(stamp), finish)

    async def close(self, timeout_s: float) -> None:
        closing = [asyncio.ensure_future(link.close()) for link in (self._asking, self._beating)]
        _, late = await asyncio.wait(closing, timeout=timeout_s)  # closing a TLS connection may hang
        for task in late:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)

    async def _send(self, link: RedisConnection, stamp: str, command: Command) -> Any:
        (reply,) = await self._exchange(link, stamp, [command])
        return _accepted(reply)

    async def _exchange(self, link: RedisConnection, stamp: str, commands: Sequence[Command]) -> list[Any]:
        try:
            replies = await link.exchange(commands, _process_of(stamp))
        except RedisFault as fault:
            if fault.is_another_process:
                raise TermOver from fault
            raise
        if _is_of_another_term(replies):
            raise TermOver
        return replies


class _Question:
    """The commands of one round trip, and what their replies mean."""

    def __init__(self, stamp: str, epoch: str, per_device: int, asked: Asked) -> None:
        self._stamp, self._asked = stamp, asked
        releases = _chunks([(each.device_id, each.claim) for each in asked.releases])
        self._releases, self._claims, self._look_ups = len(releases), _chunks(asked.acquires), _chunks(_devices(asked))
        self.commands: list[Command] = []
        for some in releases:
            self.commands.append(_SCRIPTS["release"].call(*scripts.release_arguments(stamp, some)))
        for acquires in self._claims:
            self.commands.append(_SCRIPTS["claim"].call(*_claims(stamp, epoch, per_device, acquires)))
        for devices in self._look_ups:
            self.commands.append(_SCRIPTS["holders"].call(*scripts.holders_arguments(stamp, devices)))

    def answers(self, replies: Sequence[Any]) -> Answers:
        released, rest = replies[: self._releases], replies[self._releases :]
        claimed, found = rest[: len(self._claims)], rest[len(self._claims) :]
        answers, is_fenced = _claimed(self._claims, claimed)
        holders = _found(self._stamp, self._asked, self._look_ups, found)
        return Answers(_fault_among(released), answers, is_fenced, holders, _foreign(self._look_ups, found))


def _devices(asked: Asked) -> Sequence[str]:
    """Those that are looked up, each of them once."""
    if not asked.look_ups:
        return ()
    return list(dict.fromkeys(device_id for look_up in asked.look_ups for device_id in look_up.device_ids))


def _process_of(stamp: str) -> bytes:
    return stamp.partition(":")[2].encode()


def _is_of_another_term(replies: Sequence[Any]) -> bool:
    return any(not isinstance(reply, RedisFault) and reply[0] == b"term" for reply in replies)


def _claims(stamp: str, epoch: str, per_device: int, acquires: Sequence[Acquire]) -> list[bytes]:
    items = [ClaimItem(each.device_id, each.claim.number, each.mode, each.kept) for each in acquires]
    return scripts.claim_arguments(stamp, epoch, per_device, items)


def _claimed(chunks: Sequence[Sequence[Acquire]], replies: Sequence[Any]) -> tuple[list[ClaimReply | RedisFault], bool]:
    answers: list[ClaimReply | RedisFault] = []
    for chunk, reply in zip(chunks, replies, strict=True):
        try:
            answers += [reply] * len(chunk) if isinstance(reply, RedisFault) else scripts.claim_replies(reply)
        except EpochOver:
            return [], True
    return answers, False


def _found(
    stamp: str, asked: Asked, chunks: Sequence[Sequence[str]], replies: Sequence[Any]
) -> Sequence[HoldersByDevice] | RedisFault:
    if not asked.look_ups:
        return ()
    fault = _fault_among(replies)
    if fault is not None:
        return fault
    term = int(stamp.partition(":")[0])
    holders: dict[str, list[Holder]] = {}
    for chunk, reply in zip(chunks, replies, strict=True):
        for device_id, found in zip(chunk, scripts.holders_replies(reply), strict=True):
            if found:
                holders[device_id] = [Holder(each.claim.server, Generation(term, each.number)) for each in found]
    return [
        {device_id: holders[device_id] for device_id in look_up.device_ids if device_id in holders}
        for look_up in asked.look_ups
    ]


def _foreign(chunks: Sequence[Sequence[str]], replies: Sequence[Any]) -> frozenset[bytes]:
    if not chunks:
        return frozenset()
    answered = [
        (chunk, reply) for chunk, reply in zip(chunks, replies, strict=True) if not isinstance(reply, RedisFault)
    ]
    return frozenset().union(*(scripts.foreign_buckets(chunk, reply) for chunk, reply in answered))


def _fault_among(replies: Sequence[Any]) -> RedisFault | None:
    return next((reply for reply in replies if isinstance(reply, RedisFault)), None)


def _read(parse: Callable[[Any], T], reply: Any) -> T:
    """Another program may have written the data in a reply."""
    try:
        return parse(reply)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise RedisFault(f"a reply of Redis is unreadable: {error}", away=False) from error


def _accepted(reply: Any) -> Any:
    if isinstance(reply, RedisFault):
        raise reply
    return reply


def _chunks(items: Sequence[T]) -> Sequence[Sequence[T]]:
    if len(items) <= scripts.MAX_BATCH:
        return (items,) if items else ()
    return [items[start : start + scripts.MAX_BATCH] for start in range(0, len(items), scripts.MAX_BATCH)]
