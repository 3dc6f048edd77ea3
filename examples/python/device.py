"""A device: prints the messages it receives, streams a WAV file, and reconnects whatever ends its connection.

    python device.py [FILE.wav]

Needs Python 3.11 and the package websockets. Its settings are environment variables: see examples/README.rst.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

URL = os.environ.get("GATEWAY_URL", "ws://127.0.0.1:8080/ws")
API_KEY, API_SECRET = os.environ.get("API_KEY", ""), os.environ.get("API_SECRET", "")
DEVICE_ID = os.environ.get("DEVICE_ID", "doll-1")
CURSOR_FILE = Path(os.environ.get("CURSOR_FILE", "cursor.txt"))
SCALE = float(os.environ.get("WAIT_SCALE", "1"))  # shortens all waits, for experiments

BASE_S, CAP_S = 1.0, 60.0
SLOW_S = (60.0, 300.0)
STABLE_S = 60.0
# The largest message accepted. The gateway rejects records over 1 MiB. A smaller limit would end the
# connection, and with cursors the gateway would send the same message again after each reconnect.
LARGEST_BYTES = 2 * 1024 * 1024
# An early retry cannot succeed: the firmware, the configuration, or another holder of this device id must change first.
# But never give up: only the device itself can reconnect.
SLOW = {400, 403, 404, 426, 1002, 1007, 4409}
NEW_TOKEN = {401, 4401}


def wait_s(why: int, attempt: int, minimum_s: float = 0.0) -> float:
    """Seconds until the next attempt, with full jitter: a fleet that lost its server must not return all at once.

    Retry-After is a minimum, and the jitter comes on top, because every device was given the same number.
    """
    low, high = SLOW_S if why in SLOW else (0.0, min(CAP_S, BASE_S * 2 ** min(attempt, 16)))
    return (minimum_s + random.uniform(low, high)) * SCALE


@dataclass(frozen=True)
class End:
    """Why a connection ended or was refused: a close code or an HTTP status. 1006 means that no reason is known.

    minimum_s: before the next attempt; lasted_s: of the connection, 0 if there was none
    """

    why: int
    minimum_s: float = 0.0
    lasted_s: float = 0.0


def retry_after_s(headers: Any) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def fetch_token() -> str:
    """For devices that can keep a secret. Others get their tokens from your own backend. Raises HTTPError."""
    parts = urlsplit(URL)
    scheme = "https" if parts.scheme == "wss" else "http"
    request = urllib.request.Request(
        f"{scheme}://{parts.netloc}/api/v1/auth/token",
        json.dumps({"device_id": DEVICE_ID}).encode(),
        {"X-API-Key": API_KEY, "X-API-Secret": API_SECRET, "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["token"])


class Device:
    def __init__(self, recording: bytes) -> None:
        self.token = os.environ.get("DEVICE_TOKEN", "")
        self.cursor = CURSOR_FILE.read_text().strip() if CURSOR_FILE.exists() else ""
        self.recording = recording  # empty once it has been sent
        self.come_back_s = 0.0  # the delay that a draining gateway has asked for

    async def run(self) -> None:
        attempt = 0
        while True:
            end = await self.connect_once()
            # Only a connection that lasted resets the backoff, not one that is accepted and closed at once.
            if end.lasted_s > STABLE_S * SCALE:
                attempt = 0
            pause = wait_s(end.why, attempt, end.minimum_s)
            print(f"ended: {end.why}, again in {pause:.2f} s", flush=True)
            attempt += 1
            await asyncio.sleep(pause)

    async def connect_once(self) -> End:
        try:
            if not self.token and API_KEY:
                self.token = await asyncio.to_thread(fetch_token)
            end = await self.talk()
        except urllib.error.HTTPError as error:
            with error:
                print(f"no token: {error.code}", flush=True)
                # 401: wrong credentials. 404: the gateway has no credentials configured. An early retry cannot succeed.
                return End(404 if error.code == 401 else error.code, retry_after_s(error.headers))
        except InvalidStatus as error:
            response = error.response
            if response.status_code == 400 and b"Unknown cursor" in response.body:
                # It belongs to another device or mailbox. Without it, some messages may arrive a second time.
                self.save("")
                return End(1006)
            end = End(response.status_code, retry_after_s(response.headers))
        except (OSError, InvalidHandshake, TimeoutError):
            return End(1006)
        if end.why in NEW_TOKEN and API_KEY:
            self.token = ""  # fetch a new one, after the wait: when a key is removed, a whole fleet needs new tokens
        return end

    async def talk(self) -> End:
        # ?cursors=1: this device uses cursors and has none yet. The gateway sends everything that it keeps for it.
        position = {"after": self.cursor} if self.cursor else {"cursors": "1"}
        query = urlencode(position | {"interim": "true"})
        headers = {"Authorization": f"Bearer {self.token}"}
        # The library answers the gateway's pings. Its own pings detect a dead network sooner than TCP would.
        async with connect(
            f"{URL}?{query}",
            additional_headers=headers,
            ping_interval=30,
            ping_timeout=30,
            max_size=LARGEST_BYTES,
            compression=None,
        ) as socket:
            print("connected", flush=True)
            opened = time.monotonic()
            self.come_back_s = 0.0
            tasks = [asyncio.create_task(self.acknowledge(socket))]
            if self.recording:
                tasks.append(asyncio.create_task(self.speak(socket)))
            try:
                while True:
                    message = await socket.recv()
                    if isinstance(message, str):
                        self.handle(json.loads(message))
            except ConnectionClosed as closed:
                why = closed.rcvd.code if closed.rcvd else 1006
                return End(why, self.come_back_s, time.monotonic() - opened)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def handle(self, message: dict[str, Any]) -> None:
        match message.get("type"):
            case "transcription" if message.get("final") is False:
                # The cursor of a partial result is that of the message before it.
                print(f"perhaps: {message.get('text')}", flush=True)
                return
            case "transcription" if message.get("success") is False:
                print(f"failed: {message.get('error')}", flush=True)
            case "transcription":
                print(f"heard: {message.get('text')}", flush=True)
            case "gap":
                print(f"missed: {message.get('missed')}", flush=True)
            case "reconnect":
                self.come_back_s = message.get("after_ms", 0) / 1000
            case _:
                pass  # newer gateways may send other types
        if "cursor" in message:
            # After processing: a crash in between repeats the message, and the other order would lose it.
            self.save(message["cursor"])

    def save(self, cursor: str) -> None:
        """Write the cursor atomically, even if the power fails."""
        self.cursor = cursor
        unfinished = CURSOR_FILE.with_suffix(".new")
        with unfinished.open("w") as file:
            file.write(cursor)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(CURSOR_FILE)

    async def acknowledge(self, socket: ClientConnection) -> None:
        """At most once a second. A cursor covers all messages before it.

        It is saved first, because the gateway then deletes those messages.
        """
        last = ""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(SCALE)
                if self.cursor != last:
                    last = self.cursor
                    await socket.send(json.dumps({"type": "ack", "cursor": last}))

    async def speak(self, socket: ClientConnection) -> None:
        """Send a recording in place of a microphone's samples, 100 ms at a time, in real time."""
        with contextlib.suppress(ConnectionClosed):
            for at in range(0, len(self.recording), 3200):
                await socket.send(self.recording[at : at + 3200])
                await asyncio.sleep(0.1)
            # Ends the utterance now instead of after 0.8 s of silence.
            await socket.send('{"type":"audio_end"}')
            print(f"spoke: {len(self.recording)} bytes", flush=True)
            self.recording = b""


def samples(path: str) -> bytes:
    with wave.open(path) as wav:
        if (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) != (16000, 1, 2):
            sys.exit(f"{path} is not 16 kHz mono with 16 bits")
        data: bytes = wav.readframes(wav.getnframes())
        return data


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Device(samples(sys.argv[1]) if len(sys.argv) > 1 else b"").run())
