"""Decodes the replies of Redis, and encodes marks. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..rules.addressing import Options
from ..rules.box import Box, Epochs, Lane, Mark, Numbers, StoredMessage, with_marks
from ..rules.claims import FencingToken, bucket_of
from ..rules.feed import Page
from ..rules.retracted import retracted_of_text
from .backlog import PendingJoin
from .port import FanOut, FanOutStep, LaneRead, NamedMessage, NamedPage
from .redis_faults import RedisStoreFault
from .redis_group import device_key, number_of


def box_of(reply: list[Any], marks: Iterable[Mark] = ()) -> Box:
    """The box in a reply of the reading script, with ``marks`` applied."""
    if reply[0] == b"none":
        return Box.new(int(reply[1]), Epochs(int(reply[2]), emptied=int(reply[3])))
    _, (base, *of_normal), of_high, epoch, emptied, *_ = reply
    normal = _lane(int(base), *of_normal)
    if of_high:
        last, gone, acked, *rest = of_high
        # A device that acknowledges does so in both lanes, but a mailbox of the previous release has only one.
        is_unmarked = acked is None and normal.acked is not None
        high = _lane(int(base), last, gone, base if is_unmarked else acked, *rest)
    else:
        high = Lane.new(int(base))._replace(acked=None if normal.acked is None else int(base))
    return with_marks(Box(normal, high, Epochs(int(epoch), emptied=int(emptied))), marks)


def _lane(base: int, *fields: bytes | None) -> Lane:
    last, gone, acked, written, cuts, retracted = fields
    pairs = (cut.split(b":") for cut in (cuts or b"").split())
    return Lane(
        base,
        _number(last, base),
        _number(gone, base),
        None if acked is None else int(acked),
        _number(written, base),
        tuple((int(begun), int(kept)) for begun, kept in pairs),
        retracted_of_text((retracted or b"").decode()),
    )


def _number(field: bytes | None, default: int) -> int:
    return default if field is None else int(field)


def pages_of(reply: list[Any], marks: Iterable[Mark], lanes: Sequence[LaneRead]) -> list[Page]:
    """A page for each of the lanes.

    :param marks: the marks set before the query, which may not be stored yet
    """
    box = box_of(reply, marks)
    found = [[]] * len(lanes) if reply[0] == b"none" else reply[6:]
    pages = []
    for (name, _, _), parts in zip(lanes, found, strict=True):
        lane = box.lane(name)
        messages = [
            StoredMessage(number, payload, int(timestamp_ms), int(expires_ms), key.decode() or None, bool(low))
            for number, timestamp_ms, expires_ms, key, low, payload in zip(
                *(parts[at::6] for at in range(6)), strict=True
            )
        ]
        pages.append(Page(messages, lane.last, lane.base, lane.acked or 0, lane.retracted))
    return pages


def named_of(reply: list[Any]) -> NamedPage:
    """The messages with an ``id``, in the reply of the script that finds them."""
    _, cursor, parts, _ = reply
    rows = zip(*(parts[at::4] for at in range(4)), strict=True)
    found = [
        NamedMessage(name.decode("utf-8", "replace"), "high" if lane == b"h" else "normal", int(number), int(ms) / 1000)
        for name, lane, number, ms in rows
    ]
    return NamedPage(found, int(cursor))


def mark_arguments(marks: Mapping[str, Mark]) -> list[bytes]:
    """The arguments of the script that stores marks."""
    arguments: list[bytes] = []
    for device_id, (acked, written, epoch, fencing_token) in marks.items():
        guarded = guard_argument(device_id, fencing_token)
        arguments += (device_key(device_id), _numbers(acked), _numbers(written), b"%d" % epoch, guarded)
    return arguments


def guard_argument(device_id: str, fencing_token: FencingToken | None) -> bytes:
    """Where presence has the device's holders, and the one that must be among them; empty: nothing is checked."""
    if fencing_token is None:
        return b""
    return b"%d %d %b" % (bucket_of(device_key(device_id)), fencing_token.term, fencing_token.holder.encode())


def _numbers(numbers: Numbers | None) -> bytes:
    if numbers is None:
        return b""
    return b"%d %d" % numbers if numbers.high else b"%d" % numbers.normal


def join_arguments(joins: Mapping[str, PendingJoin]) -> list[bytes]:
    """The arguments of the script that stores members."""
    arguments: list[bytes] = []
    for device_id, join in joins.items():
        audiences = device_key("\n".join(sorted(join.audiences)))
        guard = guard_argument(device_id, join.fencing_token)
        arguments += [device_key(device_id), audiences, b"new" if join.is_new else b"", guard]
    return arguments


def steps_of(reply: list[Any], known: Mapping[bytes, FanOut]) -> dict[bytes, FanOutStep]:
    """The steps of fan-outs in the reply of a script, by the ids of their fan-outs.

    :param known: the fan-outs that the script does not describe
    """
    steps = {}
    for id_, is_last, recipients, names, given, about in reply:
        of = _described(about) if about else known.get(id_)
        if of is not None:
            numbers = {
                name.decode("utf-8", "surrogatepass"): number
                for name, result in zip(names, given.split(), strict=True)
                if (number := number_of(result)) is not None
            }
            content = (of.audience, of.excluded, of.payload, of.timestamp_ms, of.options, of.expires_ms)
            steps[id_] = FanOutStep(*content, numbers, bool(is_last), recipients)
    return steps


def fan_out_of(step: FanOutStep) -> FanOut:
    """The fan-out of a step, without its source."""
    return FanOut(step.audience, step.excluded, step.payload, step.timestamp_ms, "", 0, step.options, step.expires_ms)


def _described(about: list[bytes]) -> FanOut:
    audience, excluded, payload, timestamp_ms, options, expires_ms = about
    names = frozenset(json.loads(excluded))
    kept = Options(*json.loads(options)) if options else None
    name = audience.decode("utf-8", "surrogatepass")
    return FanOut(name, names, payload, int(timestamp_ms), "", 0, kept, int(expires_ms))


def refusal_of(reply: Any) -> RedisStoreFault | None:
    """The fault that a reply stands for; None if it is no fault."""
    if isinstance(reply, RedisStoreFault):
        return reply
    match reply:
        case [b"replaced"]:
            return RedisStoreFault("Redis was emptied or replaced", away=False, reopen=True)
        case [b"epoch"]:
            return RedisStoreFault("another epoch of the mailbox has begun", away=False, reopen=True)
        case [b"foreign", key]:
            return RedisStoreFault(f"{key_name(key)} has another type, or other fields", away=False, is_foreign=True)
    return None


def key_name(key: bytes) -> str:
    """A Redis key as printable text."""
    return key.decode("utf-8", "backslashreplace")


def foreign_keys(reply: Any) -> list[bytes]:
    """The keys of a wrong type that a script found."""
    match reply:
        case [b"foreign", key]:
            return [key]
        case [b"box", _, _, _, _, [*keys], *_]:
            return keys
        case [b"open" | b"stored" | b"stepped" | b"joined" | b"marked" | b"named" | b"swept", *_, [*keys]]:
            return keys
    return []


def promise_of(settings: list[Any]) -> tuple[str, tuple[str, ...]]:
    """What messages survive, and warnings, according to the values of three Redis settings."""
    if any(isinstance(reply, RedisStoreFault) or len(reply) != 2 for reply in settings):
        return "messages survive the gateway, and Redis as far as it persists them", ()
    policy, appendonly, appendfsync = (reply[1].decode() for reply in settings)
    cautions = []
    if policy != "noeviction":
        cautions.append(f"maxmemory-policy is {policy}: Redis may evict messages; set it to noeviction")
    if appendonly != "yes":
        cautions.append("messages survive the gateway, but not Redis; set appendonly to yes")
        return "messages survive the gateway, but not Redis", tuple(cautions)
    tail = "" if appendfsync == "always" else ", except for the last seconds before a power cut"
    return f"messages survive the gateway and Redis{tail}", tuple(cautions)
