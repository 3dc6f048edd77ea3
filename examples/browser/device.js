// A device in a page: shows what it hears, speaks into the microphone, and reconnects after anything.
// How to serve and open it: examples/README.rst.

const form = document.querySelector("form");
const fields = form.elements;
// What stands in the fragment (#token=...&url=...) fills the form: a fragment reaches no server and no log.
const given = new URLSearchParams(location.hash.slice(1));
for (const name of ["url", "token"]) if (given.has(name)) fields[name].value = given.get(name);
const SCALE = Number(given.get("scale") ?? 1); // shortens all waits, to try things out

const [BASE_S, CAP_S, SLOW_S, STABLE_S] = [1, 60, [60, 300], 60];
// Trying again soon will not help: the page, the other holder of the id or the gateway must change first. The page
// keeps trying all the same, for a person may have left it open for the day.
const SLOW = new Set([400, 403, 1002, 1007, 4409]);
const NEW_TOKEN = new Set([401, 4401]);

let socket; // the open connection
let token = "";
let running; // stands for the one loop that may go on
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

// Seconds until the next attempt. Full jitter: all pages of a gateway that restarts must not return in one moment. What
// the gateway asks for (Retry-After) is a minimum, and the jitter comes on top: all were told the same number.
function waitS({ why, minimumS = 0 }, attempt) {
  const [low, high] = SLOW.has(why) ? SLOW_S : [0, Math.min(CAP_S, BASE_S * 2 ** attempt)];
  return (minimumS + low + Math.random() * (high - low)) * SCALE;
}

// A page must not hold the API's secret, for everybody can read it there: have your own server ask for the token (POST
// /api/v1/auth/token) for the user who is logged in, and return `(await (await fetch("/device-token")).json()).token`
// here. This page takes the one in the form.
async function fetchToken() {
  return fields.token.value.trim();
}

// A cursor belongs to one device of one gateway; the token says which device.
function cursorKey() {
  const claims = atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"));
  return `cursor of ${JSON.parse(claims).device_id}`;
}

// The browser says 1006 for every refusal, whatever its status. A plain GET of the same URL tells the page why, and
// takes the place of nobody. 426 means that nothing is wrong now.
async function askWhy(url) {
  const http = new URL(url);
  http.protocol = http.protocol.replace("ws", "http");
  const answer = await fetch(http, { headers: { Authorization: `Bearer ${token}` } });
  const { message } = await answer.json();
  if (answer.status === 400 && message === "Unknown cursor") {
    // Of another device or mailbox. Without it comes everything that is kept: some of it perhaps again.
    localStorage.removeItem(cursorKey());
    return { why: 1006 };
  }
  const why = answer.status === 426 ? 1006 : answer.status;
  return { why, minimumS: Number(answer.headers.get("Retry-After")) || 0 };
}

function handle(message) {
  if (message.type === "transcription" && message.final === false) {
    log(`perhaps: ${message.text}`);
    return; // a hypothesis carries the cursor of the message before it: nothing to save
  }
  if (message.type === "transcription") {
    log(message.success === false ? `failed: ${message.error}` : `heard: ${message.text}`);
  } else if (message.type === "gap") {
    log(`missed: ${message.missed}`);
  } // newer gateways may send what this page does not know
  // After the message has been dealt with: a crash in between repeats it, and the other order would lose it.
  if (message.cursor !== undefined) localStorage.setItem(cursorKey(), message.cursor);
}

// One connection from its handshake to its end. The browser answers the gateway's pings and shows the page nothing of
// them, so a dead network is noticed only by the event "offline" below, or when something is sent.
function talk(url) {
  const cursor = localStorage.getItem(cursorKey());
  // cursors=1 says "I go by cursors and have none yet": everything that is kept for this device comes.
  url.search = new URLSearchParams({ ...(cursor ? { after: cursor } : { cursors: "1" }), interim: "true" });
  return new Promise((resolve) => {
    // A page cannot set headers here: the token goes as a subprotocol, and never into the URL, which is logged.
    const opening = new WebSocket(url, ["bearer", token]);
    let [acknowledged, comeBackS, acknowledging] = [cursor, 0];
    opening.onopen = () => {
      socket = opening;
      fields.speak.disabled = false;
      log("connected");
      // Once a second at most. A cursor covers all before it, and must be safe here before the gateway may delete.
      acknowledging = setInterval(() => {
        const newest = localStorage.getItem(cursorKey());
        if (newest === acknowledged) return;
        acknowledged = newest;
        opening.send(JSON.stringify({ type: "ack", cursor: newest }));
      }, 1000 * SCALE);
    };
    opening.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "reconnect") comeBackS = message.after_ms / 1000; // a draining gateway says when
      else handle(message);
    };
    opening.onclose = async ({ code }) => {
      clearInterval(acknowledging);
      const wasOpen = socket === opening;
      socket = undefined;
      fields.speak.disabled = true;
      try {
        resolve(wasOpen || code !== 1006 ? { why: code, minimumS: comeBackS } : await askWhy(url));
      } catch {
        resolve({ why: 1006 }); // no network
      }
    };
  });
}

async function run() {
  const mine = (running = {});
  for (let attempt = 0; running === mine; attempt++) {
    const since = performance.now();
    token ||= await fetchToken();
    const end = await talk(new URL(fields.url.value));
    if (NEW_TOKEN.has(end.why)) token = "";
    // One that is accepted and closed at once goes on backing off; only a connection that lasted starts anew.
    if (performance.now() - since > STABLE_S * SCALE * 1000) attempt = 0;
    const pause = waitS(end, attempt);
    log(`ended: ${end.why}, again in ${pause.toFixed(2)} s`);
    if (running === mine) await sleep(pause);
  }
}

// Until the button is pressed again. The browser resamples to 16 kHz; nothing but the samples is sent.
async function speak() {
  const options = { channelCount: 1, echoCancellation: true, noiseSuppression: true };
  const stream = await navigator.mediaDevices.getUserMedia({ audio: options });
  const context = new AudioContext({ sampleRate: 16000 });
  await context.audioWorklet.addModule("microphone.js");
  const microphone = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
  microphone.port.onmessage = ({ data }) => {
    // What does not leave in time is dropped rather than sent late: 64 KiB are two seconds.
    if (socket?.readyState === WebSocket.OPEN && socket.bufferedAmount < 65536) socket.send(data);
  };
  context.createMediaStreamSource(stream).connect(microphone);
  log("speaking");
  return async () => {
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
    socket?.send('{"type":"audio_end"}'); // without it the gateway would wait for 0.8 s of silence
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
// A browser may keep a page that was left, its socket open, and answer pings for it: the next page would get 409.
addEventListener("pagehide", () => {
  running = undefined;
  socket?.close();
});
addEventListener("pageshow", (event) => event.persisted && run());
