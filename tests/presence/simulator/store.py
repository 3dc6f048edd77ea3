"""A Redis for the scripts of presence: the commands that they use, and Lua 5.1, without a clock or randomness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from lupa import lua51

from cocoa_tornado.presence import redis_lua
from cocoa_tornado.presence.redis_scripts import META, TEXTS

ROOT: Final = META.removesuffix(b"meta")
SERVERS: Final = ROOT + b"servers"

GUARD: Final = (
    redis_lua.BASE
    + """
if not is_current(ARGV[1]) then return {'term'} end
return {holds(ARGV[2], ARGV[3], ARGV[4]) and 'ok' or 'superseded'}
"""
)
"""What every script does that acts for a device: the stamp, the bucket, the device, ``epoch:number:generation``."""

Hash = dict[bytes, bytes]
Replacements = Mapping[str, Sequence[tuple[str, str]]]
"""By the name of a script: pieces of its text, and what takes their place."""

_DRIVER: Final = b"""
return function(call)
  redis = {call = call, pcall = call}
  return function(text) return assert(loadstring(text)) end,
    function(script, key, ...) KEYS, ARGV = {key}, {...} return script() end
end
"""


class Data:
    """The memory of a Redis process."""

    def __init__(self) -> None:
        self.hashes: dict[bytes, Hash] = {}
        self.inboxes: dict[bytes, list[Any]] = {}

    def copy(self) -> Data:
        copy = Data()
        copy.hashes = {key: dict(value) for key, value in self.hashes.items()}
        copy.inboxes = {key: list(value) for key, value in self.inboxes.items()}
        return copy

    # -- commands, as scripts call them

    def hget(self, key: bytes, field: bytes) -> bytes | bool:
        return self.hashes.get(key, {}).get(field, False)

    def hmget(self, key: bytes, *fields: bytes) -> list[bytes | bool]:
        found = self.hashes.get(key, {})
        return [found.get(field, False) for field in fields]

    def hset(self, key: bytes, *pairs: bytes) -> int:
        self.hashes.setdefault(key, {}).update(zip(pairs[::2], pairs[1::2], strict=True))
        return 0

    def hsetnx(self, key: bytes, field: bytes, value: bytes) -> int:
        self.hashes.setdefault(key, {}).setdefault(field, value)
        return 0

    def hdel(self, key: bytes, *fields: bytes) -> int:
        for field in fields:
            self.hashes.get(key, {}).pop(field, None)
        return 0

    def hkeys(self, key: bytes) -> list[bytes]:
        return list(self.hashes.get(key, {}))

    def hgetall(self, key: bytes) -> list[bytes]:
        return [part for pair in self.hashes.get(key, {}).items() for part in pair]

    def hexists(self, key: bytes, field: bytes) -> int:
        return int(field in self.hashes.get(key, {}))

    def delete(self, *keys: bytes) -> int:
        for key in keys:
            self.hashes.pop(key, None)
            self.inboxes.pop(key, None)
        return 0


_COMMANDS: Final[dict[bytes, Callable[..., Any]]] = {
    b"HGET": Data.hget,
    b"HMGET": Data.hmget,
    b"HSET": Data.hset,
    b"HSETNX": Data.hsetnx,
    b"HDEL": Data.hdel,
    b"HKEYS": Data.hkeys,
    b"HGETALL": Data.hgetall,
    b"HEXISTS": Data.hexists,
    b"DEL": Data.delete,
    b"UNLINK": Data.delete,
}


class Scripts:
    """The scripts, compiled; used by one process at a time.

    :param replacements: for planted faults
    """

    def __init__(self, replacements: Replacements | None = None) -> None:
        self._lua = lua51.LuaRuntime(encoding=None)
        self._table = self._lua.table_from
        self._data = Data()
        load, self._run = self._lua.execute(_DRIVER)(self._call)
        self._scripts = {
            name: load(replaced(text, (replacements or {}).get(name, ())).encode())
            for name, text in {**TEXTS, "guard": GUARD}.items()
        }

    def run(self, name: str, data: Data, arguments: Sequence[bytes]) -> list[Any]:
        self._data = data
        return [
            item if isinstance(item, bytes) else list(item.values())
            for item in self._run(self._scripts[name], META, *arguments).values()
        ]

    def _call(self, command: bytes, *arguments: bytes) -> Any:
        reply = _COMMANDS[command](self._data, *arguments)
        return self._table(reply) if type(reply) is list else reply


def replaced(text: str, replacements: Sequence[tuple[str, str]]) -> str:
    for piece, other in replacements:
        assert piece in text, piece
        text = text.replace(piece, other)
    return text


class Process:
    """One Redis process.

    :ivar run: of this process; none has it twice
    :ivar stuck_until: it takes requests, and answers them later
    """

    def __init__(self, run: str, data: Data, scripts: Scripts) -> None:
        self.run, self.data, self._scripts = run, data, scripts
        self.is_up = True
        self.stuck_until = 0.0

    def call(self, name: str, arguments: Sequence[bytes]) -> list[Any]:
        return self._scripts.run(name, self.data, arguments)

    def holders(self, bucket: bytes, device: bytes) -> Iterator[bytes]:
        """The living holders of a device."""
        servers = self.data.hashes.get(SERVERS, {})
        for holder in self.data.hashes.get(ROOT + b"h:" + bucket, {}).get(device, b"").split():
            if holder.split(b":")[0] in servers:
                yield holder

    def is_member(self, epoch: str) -> bool:
        return epoch.encode() in self.data.hashes.get(SERVERS, {})

    @property
    def stamp(self) -> str:
        meta = self.data.hashes.get(META, {})
        return (meta.get(b"term", b"") + b":" + meta.get(b"run", b"")).decode()

    def post(self, epoch: str, message: Any) -> None:
        self.data.inboxes.setdefault(ROOT + b"in:" + epoch.encode(), []).append(message)

    def inbox(self, epoch: str) -> list[Any]:
        return self.data.inboxes.get(ROOT + b"in:" + epoch.encode(), [])
