"""Uploads of audio over real HTTP, to a gateway with a scripted engine."""

from __future__ import annotations

import json
from typing import Any

from testing.raw_device import RawDevice, Response
from testing.waiting import eventually

from ..harness import Harness
from ..scripted_engine import ScriptedEngine

PATH = "/api/v1/audio/stream"
RAW = "application/octet-stream"
MIB = 1024 * 1024


class Upload:
    """One POST, sent piece by piece."""

    def __init__(self, device: RawDevice) -> None:
        self.device = device

    def head(self, fields: dict[str, str], query: str = "") -> None:
        lines = [f"POST {PATH}{query} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self.device.writer.write("\r\n".join([*lines, "", ""]).encode())

    def write(self, data: bytes) -> None:
        self.device.writer.write(data)

    def chunk(self, data: bytes) -> None:
        self.device.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> Response:
        self.device.writer.write(b"0\r\n\r\n")
        return await self.answer()

    async def answer(self) -> Response:
        return await self.device.read_response()

    async def is_closed(self) -> bool:
        """Whether the gateway closes the connection now."""
        return await self.device.read_to_end() == b""


class Bench:
    """A gateway with a scripted engine."""

    def __init__(self, harness: Harness, engine: ScriptedEngine) -> None:
        self.harness, self.engine = harness, engine

    def fields(self, device_id: str = "doll", **more: str) -> dict[str, str]:
        token = self.harness.token(device_id)
        fields = {"Host": "localhost", "Authorization": f"Bearer {token}", "Content-Type": RAW}
        return fields | {name.replace("_", "-"): value for name, value in more.items()}

    async def post(self, body: bytes, device_id: str = "doll", query: str = "", **more: str) -> Response:
        upload = Upload(await self.harness.dial())
        upload.head(self.fields(device_id, Content_Length=str(len(body)), **more), query)
        upload.write(body)
        return await upload.answer()

    async def stream(self, device_id: str = "doll", query: str = "", **more: str) -> Upload:
        """A chunked upload; its stream is open."""
        before = len(self.engine.streams)
        upload = Upload(await self.harness.dial())
        upload.head(self.fields(device_id, Transfer_Encoding="chunked", **more), query)
        await eventually(lambda: len(self.engine.streams) > before)
        return upload

    @property
    def open_streams(self) -> int:
        assert self.harness.gateway.wiring.transcriber is not None
        return len(self.harness.gateway.wiring.transcriber)

    @property
    def outcomes(self) -> dict[str, int]:
        return self.harness.gateway.counters.speech.streams

    def published(self) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in self.harness.broker.records("transcription.results")]


def is_error(response: Response, status: int, message: str) -> bool:
    return (response.status, response.body) == (status, f'{{"message":"{message}"}}'.encode())
