// The panel of the connection: the device, its state, and what the gateway knows of it.

import {api, path, poll} from "../api.js";
import {h, show} from "../dom.js";
import {line, milliseconds, plural} from "../format.js";
import {facts, field, id, input, note, pill, scopeHint, time} from "../parts.js";
import {claimsOf, session} from "../session.js";
import {NoToken} from "./link.js";

const ADJECTIVES = ["amber", "brave", "calm", "eager", "gentle", "happy", "lucky", "merry", "quick", "shiny", "sunny", "witty"];
const ANIMALS = ["badger", "beaver", "falcon", "ferret", "heron", "lynx", "otter", "panda", "robin", "seal", "tiger", "wombat"];
const POLL_MS = 5000;

const any = (list) => list[Math.floor(Math.random() * list.length)];
// The same for as long as the page is open, whichever of its pages one looks at meanwhile.
let deviceId = `try-${any(ADJECTIVES)}-${any(ANIMALS)}-${Math.floor(Math.random() * 90 + 10)}`;

const NO_KEY = [h("strong", {}, "This gateway cannot make device tokens. "), "It has public keys only. Paste a token from your own system."];

/** @param onConnect (deviceId), onDisconnect (), onHurry () */
export function devicePanel({onConnect, onDisconnect, onHurry, signal}) {
  const name = input({class: "mono", value: deviceId, maxlength: 128, required: true, name: "device"});
  const token = input({class: "mono", type: "password", name: "device-token", placeholder: "eyJ…"});
  const button = h("button", {class: "button primary", type: "submit", "data-key": "connect"});
  const own = h("details", {}, h("summary", {}, "Use your own device token"), field("Device token", token, "The device id comes from the token. The page keeps it in memory only."));
  const state = h("span", {role: "status"});
  const wait = h("p", {class: "waiting"});
  const notes = h("div", {class: "notes", role: "status"});
  const glance = h("p", {class: "glance"});
  const more = h("div");
  const about = h("div", {hidden: true}, glance, h("details", {}, h("summary", {}, "Connection details"), more));
  const form = h("form", {class: "form", novalidate: true}, h("div", {class: "bar"}, field("Device id", name), button), own);
  let phase = "off";
  let following = null;
  let counting = null;

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    deviceId = claimsOf(token.value.trim()).device_id ?? name.value.trim();
    if (typeof deviceId !== "string" || deviceId === "") {
      show(notes, note("bad", "Enter a device id."));
      return name.focus();
    }
    name.value = deviceId;
    onConnect(deviceId);
  });
  button.addEventListener("click", (event) => {
    if (button.type === "submit") return;
    event.preventDefault(); // it submits the form from now on
    onDisconnect();
  });
  name.addEventListener("input", () => (deviceId = name.value.trim()));

  if (!session.may("admin:write")) {
    own.open = true;
    show(notes, note("warn", h("strong", {}, "Paste a device token. "), scopeHint("admin:write")));
  }

  function drawState({kind = "", text}) {
    show(state, pill(kind, text));
  }

  /** What the gateway shows of the connection. */
  function follow(open) {
    following = new AbortController();
    const until = claimsOf(open.token).exp;
    // A device may hold several connections: this is the newest.
    const newest = (rows) => rows.reduce((found, each) => (found && found.connected_at > each.connected_at ? found : each), null);
    const draw = (row) => {
      const mine = row && newest(row.connections);
      show(glance, mine ? ["On ", id(mine.server), " since ", time(mine.connected_at), "."] : "The connection is open.");
      show(
        more,
        facts([
          ["URL", h("span", {class: "id"}, line(`${open.url.origin}${open.url.pathname}`))],
          ["Token", "subprotocol ", h("code", {}, line(open.protocol || "none"))],
          Number.isFinite(until) && ["Token expires", time(new Date(until * 1000))],
          mine && ["Generation", id(mine.generation)],
          mine && ["IP address", id(mine.ip)],
          mine && ["Round trip", mine.rtt_ms === null ? h("span", {class: "muted"}, "after the first ping") : milliseconds(mine.rtt_ms)],
          row && row.groups.length > 0 && ["Groups", row.groups.map((each, at) => [at ? ", " : "", id(each)])],
          row && ["Box", row.box === null ? h("span", {class: "muted"}, "no mailbox, so no cursors") : plural(row.box.messages, "message")],
        ]),
      );
    };
    about.hidden = false;
    draw(null);
    if (!session.may("admin:read")) return;
    const {signal: leaving} = following;
    poll(async () => draw(await api.get(path("devices", open.deviceId), {signal: leaving})), {everyMs: POLL_MS, signal: leaving});
  }

  function count({end, at}) {
    const left = h("span", {class: "number"});
    const step = () => {
      const seconds = Math.max(0, Math.ceil((at - Date.now()) / 1000));
      show(left, seconds > 90 ? `${Math.ceil(seconds / 60)} min` : `${seconds} s`);
    };
    step();
    counting = setInterval(step, 500);
    const kind = end.how === "soon" || end.how === "token" ? "warn" : "bad";
    show(notes, note(kind, h("strong", {}, `${end.title}. `), end.text, end.detail && h("span", {class: "code"}, ` (${line(end.detail)})`)));
    show(wait, h("span", {}, "Reconnecting in ", left), h("button", {class: "button tiny", type: "button", "data-key": "hurry", on: {click: onHurry}}, "Now"));
  }

  function update(next) {
    phase = next.phase;
    following?.abort();
    clearInterval(counting);
    show(wait);
    if (phase !== "off" || !notes.querySelector(".bad")) show(notes);
    const isOff = phase === "off" || phase === "stuck";
    name.readOnly = token.readOnly = !isOff;
    show(button, isOff ? "Connect" : phase === "open" ? "Disconnect" : "Stop");
    button.classList.toggle("primary", isOff);
    button.type = isOff ? "submit" : "button"; // Enter in a field is for connecting only
    about.hidden = phase !== "open";
    own.hidden = !isOff;
    if (phase === "off") drawState({text: "not connected"});
    if (phase === "token" || phase === "connecting") drawState({kind: "info", text: "connecting"});
    if (phase === "open") {
      drawState({kind: "ok", text: "connected"});
      follow({...next, deviceId});
    }
    if (phase === "waiting") {
      drawState({kind: "warn", text: next.end.code === 4409 ? "replaced" : "not connected"});
      count(next);
    }
    if (phase === "stuck") {
      drawState({kind: "bad", text: "not connected"});
      show(notes, note("bad", next.why));
      own.open = true;
      token.focus();
    }
  }

  signal.addEventListener("abort", () => {
    following?.abort();
    clearInterval(counting);
  });
  const first = notes.firstChild;
  update({phase: "off"});
  if (first) notes.append(first);

  /** A token for the device: one's own, or one that the gateway makes. */
  async function getToken(wanted, isAgain, until) {
    const pasted = token.value.trim();
    if (pasted !== "" && !isAgain) return pasted;
    if (pasted !== "") throw new NoToken([h("strong", {}, "The gateway does not accept this token. "), "It has expired, or it is for another gateway."], true);
    try {
      return (await api.post("device-token", {device_id: wanted}, {signal: until})).token;
    } catch (error) {
      if (error.status === 404) throw new NoToken(NO_KEY);
      if (error.scope) throw new NoToken(scopeHint(error.scope));
      if (error.status === 400) throw new NoToken([h("strong", {}, "Invalid device id. "), line(error.message)], true);
      throw error;
    }
  }

  const box = h("div", {class: "stack"}, form, notes, wait, about);
  return {
    box,
    state,
    update,
    getToken,
    get deviceId() {
      return deviceId;
    },
  };
}
