"""A device: prints what it hears, speaks a WAV file, and reconnects after anything.   python device.py [FILE.wav]

Needs Python 3.11 and the package websockets. The environment says where and who: examples/README.rst.
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
SCALE = float(os.environ.get("WAIT_SCALE", "1"))  # shortens all waits, to try things out

BASE_S, CAP_S = 1.0, 60.0
SLOW_S = (60.0, 300.0)
STABLE_S = 60.0
# Trying again soon will not help: the firmware, the other holder of the id or the gateway must change first. The device
# keeps trying all the same, for nobody else would ever bring it back.
SLOW = {400, 403, 404, 426, 1002, 1007, 4409}
NEW_TOKEN = {401, 4401}


def wait_s(why: int, attempt: int, minimum_s: float = 0.0) -> float:
    """Seconds until the next attempt. Full jitter: a fleet that lost one server must not return in one moment.

    What the gateway asks for (Retry-After) is a minimum, and the jitter comes on top: all were told the same number.
    """
    low, high = SLOW_S if why in SLOW else (0.0, min(CAP_S, BASE_S * 2 ** min(attempt, 16)))
    return (minimum_s + random.uniform(low, high)) * SCALE


@dataclass(frozen=True)
class End:
    """Why a connection ended, or never began: a close code or an HTTP status. 1006: nobody said why."""

    why: int
    minimum_s: float = 0.0


def retry_after_s(headers: Any) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def fetch_token() -> str:
    """Raises HTTPError. Only for devices that can keep a secret; others get their tokens from your own backend."""
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
        self.recording = recording  # empty once it has been spoken
        self.come_back_s = 0.0  # how long a draining gateway has asked this device to stay away

    async def run(self) -> None:
        attempt = 0
        while True:
            since = time.monotonic()
            end = await self.connect_once()
            # One that is accepted and closed at once goes on backing off; only a connection that lasted starts anew.
            if time.monotonic() - since > STABLE_S * SCALE:
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
                # 401: wrong credentials. 404: the gateway has none configured. Neither heals in a second.
                return End(404 if error.code == 401 else error.code, retry_after_s(error.headers))
        except InvalidStatus as error:
            response = error.response
            if response.status_code == 400 and b"Unknown cursor" in response.body:
                # Of another device or mailbox. Without it comes everything that is kept: some of it perhaps again.
                self.save("")
                return End(1006)
            end = End(response.status_code, retry_after_s(response.headers))
        except (OSError, InvalidHandshake, TimeoutError):
            return End(1006)
        if end.why in NEW_TOKEN and API_KEY:
            self.token = ""  # after the wait: when a key is removed a whole fleet needs new ones
        return end

    async def talk(self) -> End:
        # ?cursors=1 says "I go by cursors and have none yet": everything that is kept for this device comes.
        position = {"after": self.cursor} if self.cursor else {"cursors": "1"}
        query = urlencode(position | {"interim": "true"})
        headers = {"Authorization": f"Bearer {self.token}"}
        # The library answers the gateway's pings. Its own find a dead network sooner than TCP would.
        async with connect(
            f"{URL}?{query}", additional_headers=headers, ping_interval=30, ping_timeout=30, compression=None
        ) as socket:
            print("connected", flush=True)
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
                return End(closed.rcvd.code if closed.rcvd else 1006, self.come_back_s)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def handle(self, message: dict[str, Any]) -> None:
        match message.get("type"):
            case "transcription" if message.get("final") is False:
                # A hypothesis carries the cursor of the message before it: nothing to save.
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
                pass  # newer gateways may send what this program does not know
        if "cursor" in message:
            # After the message has been dealt with: a crash in between repeats it, and the other order would lose it.
            self.save(message["cursor"])

    def save(self, cursor: str) -> None:
        """Whole or not at all, even if the power fails."""
        self.cursor = cursor
        unfinished = CURSOR_FILE.with_suffix(".new")
        with unfinished.open("w") as file:
            file.write(cursor)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(CURSOR_FILE)

    async def acknowledge(self, socket: ClientConnection) -> None:
        """Once a second at most. A cursor covers all before it, and must be safe here before the gateway may delete."""
        last = ""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(SCALE)
                if self.cursor != last:
                    last = self.cursor
                    await socket.send(json.dumps({"type": "ack", "cursor": last}))

    async def speak(self, socket: ClientConnection) -> None:
        """A recording in place of a microphone: 100 ms at a time, at the speed of speech."""
        with contextlib.suppress(ConnectionClosed):
            for at in range(0, len(self.recording), 3200):
                await socket.send(self.recording[at : at + 3200])
                await asyncio.sleep(0.1)
            # Without it the gateway would wait for 0.8 s of silence.
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
