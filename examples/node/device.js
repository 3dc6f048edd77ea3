// A device: prints the messages it receives, streams a WAV file, and reconnects whatever ends its connection.
//
//     node device.js [FILE.wav]
//
// Its settings are environment variables: see examples/README.rst.

import fs from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";

const env = process.env;
const URL_ = env.GATEWAY_URL ?? "ws://127.0.0.1:8080/ws";
const CURSOR_FILE = env.CURSOR_FILE ?? "cursor.txt";
const SCALE = Number(env.WAIT_SCALE ?? 1); // shortens all waits, for experiments

const [BASE_S, CAP_S, SLOW_S, STABLE_S] = [1, 60, [60, 300], 60];
const SILENCE_S = 75; // the gateway pings every 30 s: after two missing pings the network is dead
// An early retry cannot succeed: the firmware, the configuration, or another holder of this device id must change
// first. But never give up: only the device itself can reconnect.
const SLOW = new Set([400, 403, 404, 426, 1002, 1007, 4409]);
const NEW_TOKEN = new Set([401, 4401]);

// Seconds until the next attempt, with full jitter: a fleet that lost its server must not return all at once.
// Retry-After is a minimum, and the jitter comes on top, because every device was given the same number.
function waitS(why, attempt, minimumS) {
  const [low, high] = SLOW.has(why) ? SLOW_S : [0, Math.min(CAP_S, BASE_S * 2 ** attempt)];
  return (minimumS + low + Math.random() * (high - low)) * SCALE;
}

// Why a connection ended or was refused: a close code or an HTTP status. 1006 means that no reason is known.
// minimumS: before the next attempt; lastedS: of the connection, 0 if there was none
class End extends Error {
  constructor(why, minimumS = 0, lastedS = 0) {
    super(`ended with ${why}`);
    Object.assign(this, { why, minimumS: Number(minimumS) || 0, lastedS });
  }
}

let token = env.DEVICE_TOKEN ?? "";
let cursor = fs.existsSync(CURSOR_FILE) ? fs.readFileSync(CURSOR_FILE, "utf8").trim() : "";
let recording = process.argv[2] && fs.readFileSync(process.argv[2]); // until it has been sent

// For devices that can keep a secret. Others get their tokens from your own backend.
async function fetchToken() {
  const url = new URL("/api/v1/auth/token", URL_.replace(/^ws/, "http"));
  const headers = { "X-API-Key": env.API_KEY, "X-API-Secret": env.API_SECRET ?? "" };
  const body = JSON.stringify({ device_id: env.DEVICE_ID ?? "doll-1" });
  const answer = await fetch(url, { method: "POST", headers, body, signal: AbortSignal.timeout(10_000) });
  if (!answer.ok) {
    console.log(`no token: ${answer.status}`);
    // 401: wrong credentials. 404: the gateway has no credentials configured. An early retry cannot succeed.
    throw new End(answer.status === 401 ? 404 : answer.status, answer.headers.get("Retry-After"));
  }
  return (await answer.json()).token;
}

// Writes the cursor atomically, even if the power fails.
function save(newest) {
  cursor = newest;
  const file = fs.openSync(`${CURSOR_FILE}.new`, "w");
  fs.writeSync(file, cursor);
  fs.fsyncSync(file);
  fs.closeSync(file);
  fs.renameSync(`${CURSOR_FILE}.new`, CURSOR_FILE);
}

function handle(message) {
  if (message.type === "transcription" && message.final === false) {
    console.log(`perhaps: ${message.text}`);
    return; // the cursor of a partial result is that of the message before it
  }
  if (message.type === "transcription") {
    console.log(message.success === false ? `failed: ${message.error}` : `heard: ${message.text}`);
  } else if (message.type === "gap") {
    console.log(`missed: ${message.missed}`);
  } // ignore other types: newer gateways may send some
  // After processing: a crash in between repeats the message, and the other order would lose it.
  if (message.cursor !== undefined) save(message.cursor);
}

// Sends a recording in place of a microphone's samples, 100 ms at a time, in real time. The WAV header at its beginning
// names the format; a microphone sends raw samples: 16 kHz, mono, signed 16-bit little-endian.
async function speak(socket) {
  for (let at = 0; at < recording.length; at += 3200) {
    if (socket.readyState !== WebSocket.OPEN) return;
    socket.send(recording.subarray(at, at + 3200));
    await sleep(100);
  }
  socket.send('{"type":"audio_end"}'); // ends the utterance now instead of after 0.8 s of silence
  console.log(`spoke: ${recording.length} bytes`);
  recording = undefined;
}

// One connection from its handshake to its end.
function talk() {
  const url = new URL(URL_);
  // ?cursors=1: this device uses cursors and has none yet. The gateway sends everything that it keeps for the device.
  url.search = new URLSearchParams({ ...(cursor ? { after: cursor } : { cursors: "1" }), interim: "true" });
  const options = { headers: { Authorization: `Bearer ${token}` }, perMessageDeflate: false, handshakeTimeout: 10_000 };
  return new Promise((resolve) => {
    const socket = new WebSocket(url, options);
    let [acknowledged, comeBackS, acknowledging, silence, opened] = ["", 0];
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => socket.terminate(), SILENCE_S * 1000);
    };
    const over = (end) => {
      clearInterval(acknowledging);
      clearTimeout(silence);
      resolve(end);
    };
    socket.on("open", () => {
      console.log("connected");
      opened = performance.now();
      alive();
      // At most once a second. A cursor covers all messages before it. It is saved first, because the gateway then
      // deletes those messages.
      acknowledging = setInterval(() => {
        if (cursor === acknowledged) return;
        acknowledged = cursor;
        socket.send(JSON.stringify({ type: "ack", cursor }));
      }, 1000 * SCALE);
      if (recording) speak(socket);
    });
    socket.on("ping", alive); // the library has already answered it
    socket.on("message", (data, isBinary) => {
      alive();
      if (isBinary) return;
      const message = JSON.parse(data);
      if (message.type === "reconnect") comeBackS = message.after_ms / 1000; // from a draining gateway
      else handle(message);
    });
    socket.on("unexpected-response", async (request, response) => {
      let body = "";
      for await (const chunk of response) body += chunk;
      if (response.statusCode === 400 && body.includes("Unknown cursor")) {
        // It belongs to another device or mailbox. Without it, some messages may arrive a second time.
        save("");
        over(new End(1006));
      } else {
        over(new End(response.statusCode, response.headers["retry-after"]));
      }
    });
    socket.on("error", () => {}); // "close" follows, except after a refusal, which is handled above
    socket.on("close", (code) => over(new End(code, comeBackS, opened && (performance.now() - opened) / 1000)));
  });
}

for (let attempt = 0; ; attempt++) {
  let end;
  try {
    if (!token && env.API_KEY) token = await fetchToken();
    end = await talk();
    if (NEW_TOKEN.has(end.why) && env.API_KEY) token = ""; // fetch a new one, after the wait
  } catch (error) {
    end = error instanceof End ? error : new End(1006);
  }
  // Only a connection that lasted resets the backoff, not one that is accepted and closed at once.
  if (end.lastedS > STABLE_S * SCALE) attempt = 0;
  const pause = waitS(end.why, attempt, end.minimumS);
  console.log(`ended: ${end.why}, again in ${pause.toFixed(2)} s`);
  await sleep(pause * 1000);
}
