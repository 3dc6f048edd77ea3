"""An upload at the speed of speech, to gateways that take it badly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from cocoa_tornado.probe.recording import parse_wav
from cocoa_tornado.probe.speaking import Spoken, post_speech
from cocoa_tornado.probe.target import Target
from cocoa_tornado.probe.wire import NotHttpError

from .recordings import wav

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def upload(serve: Serve, data: bytes, **options: bool) -> Spoken:
    served: list[tuple[asyncio.Task[None], asyncio.StreamWriter]] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.append((task, writer))
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        target = Target("127.0.0.1", port, secure=False, prefix="/base")
        return await asyncio.wait_for(post_speech(target, "a.b.c", parse_wav(data), lambda _: None, **options), 20)
    finally:
        server.close()
        for task, writer in served:
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*(task for task, _ in served), return_exceptions=True)
        await asyncio.sleep(0)  # the transports are closed by the loop's next turn


def test_the_body_is_the_file_in_chunks_behind_the_head_that_the_contract_wants() -> None:
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.readuntil(b"\r\n0\r\n\r\n"))
        writer.write(ANSWER)
        writer.close()

    data = wav(0.1)
    spoken = asyncio.run(upload(serve, data))
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    sizes = [1280 + 44, 1280, 640]

    assert lines[0] == "POST /base/api/v1/audio/stream?interim=true HTTP/1.1"
    assert {"Authorization: Bearer a.b.c", "Content-Type: audio/wav", "Transfer-Encoding: chunked"} <= set(lines)
    assert [int(body.split(b"\r\n")[0], 16)] == sizes[:1]
    assert len(body) == len(data) + sum(len(f"{size:x}") + 4 for size in sizes) + 5
    assert (spoken.response.body, spoken.complete) == (b"ok", True)
    assert spoken.last_byte_at - spoken.began_at >= 0.1


def test_hypotheses_need_not_be_asked_for() -> None:
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.readuntil(b"\r\n0\r\n\r\n"))
        writer.write(ANSWER)
        writer.close()

    asyncio.run(upload(serve, wav(0.05), interim=False))

    assert received.startswith(b"POST /base/api/v1/audio/stream HTTP/1.1\r\n")


def test_a_gateway_that_answers_and_reads_no_further_does_not_hold_the_upload_up() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # a gateway that is no more interested
        await asyncio.sleep(0.2)
        writer.write(ANSWER)
        await asyncio.Event().wait()

    fast = wav(2.0, rate=192_000, channels=16, sample_bytes=4)
    spoken = asyncio.run(upload(serve, fast))

    assert not spoken.complete


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_is_cut_in_the_middle_is_named_as_such(reset: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if reset:
            writer.transport.abort()
        writer.close()

    with pytest.raises(NotHttpError, match="without an answer"):
        asyncio.run(upload(serve, wav(0.5)))
