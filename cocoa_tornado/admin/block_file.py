"""Blocked devices in a file, for a server that shares no Redis with others."""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..plain_files import read_file
from .blocks import BlockFault

MAX_BYTES: Final = 16 * 1024 * 1024


class BlockFile:
    """A :class:`~.blocks.BlockStore`: a JSON object of devices, each with the end of its block, or null.

    :param path: None: there is no folder for it; no device can be blocked
    """

    is_shared = False

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._changing = asyncio.Lock()  # a change that began before another one's end would undo it

    def __repr__(self) -> str:
        return f"<BlockFile {self._path}>"

    async def changed(self) -> bool:
        return False

    async def read(self) -> Mapping[str, float]:
        return {} if self._path is None else self._read(self._path)

    async def write(self, device_id: str, until: float | None) -> None:
        if self._path is None:
            raise BlockFault("there is no data directory; set COCOA_DATA_DIR")
        async with self._changing:
            blocks = self._read(self._path)
            blocks.pop(device_id, None)
            if until is not None:
                blocks[device_id] = until
            await self._keep(self._path, blocks)

    async def forget(self, over: Mapping[str, float]) -> None:
        if self._path is None:
            return
        async with self._changing:
            blocks = self._read(self._path)
            kept = {name: until for name, until in blocks.items() if over.get(name) != until}
            await self._keep(self._path, kept)

    @staticmethod
    async def _keep(path: Path, blocks: Mapping[str, float]) -> None:
        try:
            await asyncio.to_thread(_replace, path, blocks)
        except OSError as error:
            raise BlockFault(f"blocked devices {path}: {error.strerror}") from error

    async def close(self) -> None: ...

    def _read(self, path: Path) -> dict[str, float]:
        try:
            value = json.loads(read_file(path, MAX_BYTES))
            return {str(name): math.inf if until is None else float(until) for name, until in value.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise BlockFault(f"blocked devices {path}: {error.strerror}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise BlockFault(f"blocked devices {path}: is damaged; correct or delete it") from error


def _replace(path: Path, blocks: Mapping[str, float]) -> None:
    """Write the file as a whole, so that a crash leaves the old one or the new one."""
    text = json.dumps({name: None if until == math.inf else until for name, until in blocks.items()})
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
