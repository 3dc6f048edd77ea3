// A device: prints what it hears, speaks a WAV file, and reconnects after anything.   node device.js [FILE.wav]
// The environment says where and who: examples/README.rst.

import fs from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";

const env = process.env;
const URL_ = env.GATEWAY_URL ?? "ws://127.0.0.1:8080/ws";
const CURSOR_FILE = env.CURSOR_FILE ?? "cursor.txt";
const SCALE = Number(env.WAIT_SCALE ?? 1); // shortens all waits, to try things out

const [BASE_S, CAP_S, SLOW_S, STABLE_S] = [1, 60, [60, 300], 60];
const SILENCE_S = 75; // the gateway pings every 30 s: after two that are missing the network is dead
// Trying again soon will not help: the firmware, the other holder of the id or the gateway must change first. The
// device keeps trying all the same, for nobody else would ever bring it back.
const SLOW = new Set([400, 403, 404, 426, 1002, 1007, 4409]);
const NEW_TOKEN = new Set([401, 4401]);

// Seconds until the next attempt. Full jitter: a fleet that lost one server must not return in one moment. What the
// gateway asks for (Retry-After) is a minimum, and the jitter comes on top: all were told the same number.
function waitS(why, attempt, minimumS) {
  const [low, high] = SLOW.has(why) ? SLOW_S : [0, Math.min(CAP_S, BASE_S * 2 ** attempt)];
  return (minimumS + low + Math.random() * (high - low)) * SCALE;
}

// Why a connection ended, or never began: a close code or an HTTP status. 1006: nobody said why.
class End extends Error {
  constructor(why, minimumS = 0) {
    super(`ended with ${why}`);
    Object.assign(this, { why, minimumS: Number(minimumS) || 0 });
  }
}

let token = env.DEVICE_TOKEN ?? "";
let cursor = fs.existsSync(CURSOR_FILE) ? fs.readFileSync(CURSOR_FILE, "utf8").trim() : "";
let recording = process.argv[2] && fs.readFileSync(process.argv[2]); // until it has been spoken

// Only for devices that can keep a secret; others get their tokens from your own backend.
async function fetchToken() {
  const url = new URL("/api/v1/auth/token", URL_.replace(/^ws/, "http"));
  const headers = { "X-API-Key": env.API_KEY, "X-API-Secret": env.API_SECRET ?? "" };
  const body = JSON.stringify({ device_id: env.DEVICE_ID ?? "doll-1" });
  const answer = await fetch(url, { method: "POST", headers, body, signal: AbortSignal.timeout(10_000) });
  if (!answer.ok) {
    console.log(`no token: ${answer.status}`);
    // 401: wrong credentials. 404: the gateway has none configured. Neither heals in a second.
    throw new End(answer.status === 401 ? 404 : answer.status, answer.headers.get("Retry-After"));
  }
  return (await answer.json()).token;
}

// Whole or not at all, even if the power fails.
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
    return; // a hypothesis carries the cursor of the message before it: nothing to save
  }
  if (message.type === "transcription") {
    console.log(message.success === false ? `failed: ${message.error}` : `heard: ${message.text}`);
  } else if (message.type === "gap") {
    console.log(`missed: ${message.missed}`);
  } // newer gateways may send what this program does not know
  // After the message has been dealt with: a crash in between repeats it, and the other order would lose it.
  if (message.cursor !== undefined) save(message.cursor);
}

// A recording in place of a microphone: 100 ms at a time, at the speed of speech. Its header, which goes out first,
// tells the gateway the format; a microphone sends bare samples: 16 kHz, mono, signed 16-bit little-endian.
async function speak(socket) {
  for (let at = 0; at < recording.length; at += 3200) {
    if (socket.readyState !== WebSocket.OPEN) return;
    socket.send(recording.subarray(at, at + 3200));
    await sleep(100);
  }
  socket.send('{"type":"audio_end"}'); // without it the gateway would wait for 0.8 s of silence
  console.log(`spoke: ${recording.length} bytes`);
  recording = undefined;
}

// One connection from its handshake to its end.
function talk() {
  const url = new URL(URL_);
  // ?cursors=1 says "I go by cursors and have none yet": everything that is kept for this device comes.
  url.search = new URLSearchParams({ ...(cursor ? { after: cursor } : { cursors: "1" }), interim: "true" });
  const options = { headers: { Authorization: `Bearer ${token}` }, perMessageDeflate: false, handshakeTimeout: 10_000 };
  return new Promise((resolve) => {
    const socket = new WebSocket(url, options);
    let [acknowledged, comeBackS, acknowledging, silence] = ["", 0];
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
      alive();
      // Once a second at most. A cursor covers all before it, and must be safe here before the gateway may delete.
      acknowledging = setInterval(() => {
        if (cursor === acknowledged) return;
        acknowledged = cursor;
        socket.send(JSON.stringify({ type: "ack", cursor }));
      }, 1000 * SCALE);
      if (recording) speak(socket);
    });
    socket.on("ping", alive); // the library has answered it already
    socket.on("message", (data, isBinary) => {
      alive();
      if (isBinary) return;
      const message = JSON.parse(data);
      if (message.type === "reconnect") comeBackS = message.after_ms / 1000; // a draining gateway says when
      else handle(message);
    });
    socket.on("unexpected-response", async (request, response) => {
      let body = "";
      for await (const chunk of response) body += chunk;
      if (response.statusCode === 400 && body.includes("Unknown cursor")) {
        // Of another device or mailbox. Without it comes everything that is kept: some of it perhaps again.
        save("");
        over(new End(1006));
      } else {
        over(new End(response.statusCode, response.headers["retry-after"]));
      }
    });
    socket.on("error", () => {}); // "close" follows, but for a refusal, which is handled above
    socket.on("close", (code) => over(new End(code, comeBackS)));
  });
}

for (let attempt = 0; ; attempt++) {
  const since = performance.now();
  let end;
  try {
    if (!token && env.API_KEY) token = await fetchToken();
    end = await talk();
    if (NEW_TOKEN.has(end.why) && env.API_KEY) token = ""; // fetched after the wait: a whole fleet may need new ones
  } catch (error) {
    end = error instanceof End ? error : new End(1006);
  }
  // One that is accepted and closed at once goes on backing off; only a connection that lasted starts anew.
  if (performance.now() - since > STABLE_S * SCALE * 1000) attempt = 0;
  const pause = waitS(end.why, attempt, end.minimumS);
  console.log(`ended: ${end.why}, again in ${pause.toFixed(2)} s`);
  await sleep(pause * 1000);
}
