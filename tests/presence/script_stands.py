"""Stores for the tests of the scripts, which take arguments and return parsed replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from cocoa_tornado.presence import redis_scripts as scripts
from cocoa_tornado.presence.redis_scripts import META, TEXTS, ClaimItem, ClaimReply, JoinReply
from cocoa_tornado.rules.claims import Claim

from .simulator.store import Data, Scripts

RUN = "r1"
NOW_S = scripts.TERM_ORIGIN_S + 5.0


class Store(Protocol):
    def run(self, name: str, arguments: Sequence[bytes]) -> Any: ...


class SimulatedStore:
    """The scripts in Lua, and commands in Python."""

    def __init__(self) -> None:
        self._data, self._scripts = Data(), Scripts()

    def run(self, name: str, arguments: Sequence[bytes]) -> Any:
        return self._scripts.run(name, self._data, arguments)


class RealStore:
    """A client of a real Redis."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, name: str, arguments: Sequence[bytes]) -> Any:
        return self._client.eval(TEXTS[name], 1, META, *arguments)


class Stand:
    """A store, and a server that has joined: what it asks, in Python's terms.

    :ivar stamp: of the last JOIN
    """

    def __init__(self, store: Store, epoch: str = "a") -> None:
        self.store = store
        self.stamp = ""
        if epoch:
            self.join(epoch)

    def join(self, epoch: str, run: str = RUN, known: int = 0, wall_s: float = NOW_S) -> JoinReply:
        reply = scripts.join_reply(self.store.run("join", scripts.join_arguments(run, known, epoch, wall_s)))
        self.stamp = f"{reply.term}:{run}"
        return reply

    def settle(self) -> bool:
        return scripts.done(self.store.run("settle", scripts.settle_arguments(self.stamp)))

    def beat(self, epoch: str, seen: int, info: str = "") -> scripts.BeatReply:
        return scripts.beat_reply(self.store.run("beat", scripts.beat_arguments(self.stamp, epoch, seen, info)))

    def claim_all(self, epoch: str, items: Sequence[ClaimItem], per_device: int = 1) -> list[ClaimReply]:
        arguments = scripts.claim_arguments(self.stamp, epoch, per_device, items)
        return scripts.claim_replies(self.store.run("claim", arguments))

    def claim(self, epoch: str, number: int, per_device: int = 1, **item: Any) -> ClaimReply:
        (reply,) = self.claim_all(epoch, [ClaimItem("doll", number, **item)], per_device)
        return reply

    def release(self, epoch: str, number: int, device_id: str = "doll") -> bool:
        items = [(device_id, Claim(epoch, number))]
        return scripts.done(self.store.run("release", scripts.release_arguments(self.stamp, items)))

    def holders(self, *device_ids: str) -> list[list[Claim]]:
        arguments = scripts.holders_arguments(self.stamp, device_ids or ["doll"])
        replies = scripts.holders_replies(self.store.run("holders", arguments))
        return [[holding.claim for holding in reply] for reply in replies]

    def fence(self, epoch: str, beat: int) -> bool:
        return scripts.done(self.store.run("fence", scripts.fence_arguments(self.stamp, epoch, beat)))

    def leave(self, epoch: str) -> bool:
        return scripts.done(self.store.run("leave", scripts.leave_arguments(self.stamp, epoch)))
