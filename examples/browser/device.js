// A device in a web page: shows the messages it receives, streams the microphone, and reconnects whatever ends its
// connection. examples/README.rst says how to serve and open it.

const form = document.querySelector("form");
const fields = form.elements;
// The fragment (#token=...&url=...) fills the form: browsers send it to no server, so it appears in no log.
const given = new URLSearchParams(location.hash.slice(1));
for (const name of ["url", "token"]) if (given.has(name)) fields[name].value = given.get(name);
const SCALE = Number(given.get("scale") ?? 1); // shortens all waits, for experiments

const [BASE_S, CAP_S, SLOW_S, STABLE_S] = [1, 60, [60, 300], 60];
// An early retry cannot succeed: the page, the configuration, or another holder of this device id must change first.
// But never give up: someone may leave the page open all day.
const SLOW = new Set([400, 403, 404, 1002, 1007, 4409]);
const NEW_TOKEN = new Set([401, 4401]);

let socket; // the open connection
let token = "";
let running; // identifies the one loop that may continue
let wake = () => {}; // ends a wait

const sleep = (seconds) =>
  new Promise((resolve) => {
    wake = resolve;
    setTimeout(resolve, seconds * 1000);
  });

function log(line) {
  console.log(line);
  document.querySelector("#log").append(`${line}\n`);
}

// Seconds until the next attempt, with full jitter: the pages of a gateway that restarts must not return all at once.
// Retry-After is a minimum, and the jitter comes on top, because every page was given the same number.
function waitS({ why, minimumS = 0 }, attempt) {
  const [low, high] = SLOW.has(why) ? SLOW_S : [0, Math.min(CAP_S, BASE_S * 2 ** attempt)];
  return (minimumS + low + Math.random() * (high - low)) * SCALE;
}

// A page must not contain the API secret, because anyone can read it there. Let your own server fetch the token (POST
// /api/v1/auth/token) for the user who is logged in, and return `(await (await fetch("/device-token")).json()).token`
// here. This page uses the one in the form.
async function fetchToken() {
  return fields.token.value.trim();
}

// A cursor belongs to one device of one gateway; the token says which device.
function cursorKey() {
  const claims = atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"));
  return `cursor of ${JSON.parse(claims).device_id}`;
}

// The browser reports 1006 for every refusal, whatever its status. A plain GET of the same URL returns the reason, and
// takes no slot. 426 means that nothing is wrong now.
async function askWhy(url) {
  const http = new URL(url);
  http.protocol = http.protocol.replace("ws", "http");
  const answer = await fetch(http, { headers: { Authorization: `Bearer ${token}` } });
  const { message } = await answer.json();
  if (answer.status === 400 && message === "Unknown cursor") {
    // It belongs to another device or mailbox. Without it, some messages may arrive a second time.
    localStorage.removeItem(cursorKey());
    return { why: 1006 };
  }
  const why = answer.status === 426 ? 1006 : answer.status;
  return { why, minimumS: Number(answer.headers.get("Retry-After")) || 0 };
}

function handle(message) {
  if (message.type === "transcription" && message.final === false) {
    log(`perhaps: ${message.text}`);
    return; // the cursor of a partial result is that of the message before it
  }
  if (message.type === "transcription") {
    log(message.success === false ? `failed: ${message.error}` : `heard: ${message.text}`);
  } else if (message.type === "gap") {
    log(`missed: ${message.missed}`);
  } // ignore other types: newer gateways may send some
  // After processing: a crash in between repeats the message, and the other order would lose it.
  if (message.cursor !== undefined) localStorage.setItem(cursorKey(), message.cursor);
}

// One connection from its handshake to its end. The browser answers the gateway's pings and hides them from the page,
// which therefore notices a dead network only by the event "offline" below, or when it sends something.
function talk(url) {
  const cursor = localStorage.getItem(cursorKey());
  // cursors=1: this device uses cursors and has none yet. The gateway sends everything that it keeps for the device.
  url.search = new URLSearchParams({ ...(cursor ? { after: cursor } : { cursors: "1" }), interim: "true" });
  return new Promise((resolve) => {
    // A page cannot set headers here. The token is a subprotocol, and not in the URL, which proxies log.
    const opening = new WebSocket(url, ["bearer", token]);
    let [acknowledged, comeBackS, acknowledging, opened] = [cursor, 0];
    opening.onopen = () => {
      socket = opening;
      fields.speak.disabled = false;
      log("connected");
      opened = performance.now();
      // At most once a second. A cursor covers all messages before it. It is saved first, because the gateway then
      // deletes those messages.
      acknowledging = setInterval(() => {
        const newest = localStorage.getItem(cursorKey());
        if (newest === acknowledged) return;
        acknowledged = newest;
        opening.send(JSON.stringify({ type: "ack", cursor: newest }));
      }, 1000 * SCALE);
    };
    opening.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "reconnect") comeBackS = message.after_ms / 1000; // from a draining gateway
      else handle(message);
    };
    opening.onclose = async ({ code }) => {
      clearInterval(acknowledging);
      const wasOpen = socket === opening;
      socket = undefined;
      fields.speak.disabled = true;
      try {
        const lastedS = wasOpen ? (performance.now() - opened) / 1000 : 0;
        resolve(wasOpen || code !== 1006 ? { why: code, minimumS: comeBackS, lastedS } : await askWhy(url));
      } catch {
        resolve({ why: 1006 }); // no network
      }
    };
  });
}

async function run() {
  const mine = (running = {});
  for (let attempt = 0; running === mine; attempt++) {
    token ||= await fetchToken();
    const end = await talk(new URL(fields.url.value));
    if (NEW_TOKEN.has(end.why)) token = "";
    // Only a connection that lasted resets the backoff, not one that is accepted and closed at once.
    if (end.lastedS > STABLE_S * SCALE) attempt = 0;
    const pause = waitS(end, attempt);
    log(`ended: ${end.why}, again in ${pause.toFixed(2)} s`);
    if (running === mine) await sleep(pause);
  }
}

// Until the button is pressed again. The browser resamples to 16 kHz. Only the samples are sent.
async function speak() {
  const options = { channelCount: 1, echoCancellation: true, noiseSuppression: true };
  const stream = await navigator.mediaDevices.getUserMedia({ audio: options });
  const context = new AudioContext({ sampleRate: 16000 });
  await context.audioWorklet.addModule("microphone.js");
  const microphone = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
  microphone.port.onmessage = ({ data }) => {
    // Drop what cannot be sent in time instead of sending it late: 64 KiB are two seconds.
    if (socket?.readyState === WebSocket.OPEN && socket.bufferedAmount < 65536) socket.send(data);
  };
  context.createMediaStreamSource(stream).connect(microphone);
  log("speaking");
  return async () => {
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
    socket?.send('{"type":"audio_end"}'); // ends the utterance now instead of after 0.8 s of silence
  };
}

let stop;
fields.speak.onclick = async () => {
  [stop, fields.speak.textContent] = stop ? [await stop(), "Speak"] : [await speak(), "Stop"];
};
form.onsubmit = (event) => {
  event.preventDefault();
  if (!running) run();
};
addEventListener("offline", () => socket?.close());
addEventListener("online", () => wake());
// A browser can keep a page that the user has left, with its socket open, and answer pings for it: the next page would
// get 409.
addEventListener("pagehide", () => {
  running = undefined;
  socket?.close();
});
addEventListener("pageshow", (event) => event.persisted && run());
