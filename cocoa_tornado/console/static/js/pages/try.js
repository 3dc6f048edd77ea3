// A test device: connect, speak into the microphone, watch the words arrive, see every message.

import {api} from "../api.js";
import {h, show} from "../dom.js";
import {action, choice, field, id, input, pageHead, panel, scopeHint, toastError, traceLink} from "../parts.js";
import {samples} from "../samples.js";
import {session} from "../session.js";
import {devicePanel} from "../try/device_panel.js";
import {Journal} from "../try/journal.js";
import {Link} from "../try/link.js";
import {speakingPanel} from "../try/speaking.js";

const WRITE = "admin:write";

export const title = "Try it";

/** The URL of /ws: beside this page, unless the devices have a port of their own, where no path precedes it. */
async function findUrl() {
  const url = new URL("ws", location.origin + location.pathname);
  url.protocol = location.protocol.replace("http", "ws");
  const overview = samples.latest ?? (await api.get("overview").catch(() => null));
  const port = overview?.servers[0]?.device_port;
  if (port) [url.port, url.pathname] = [port, "/ws"];
  return url;
}

const isSpeechOff = () => (samples.latest?.servers ?? []).some((row) => row.parts.speech?.state === "off");

/** Text to this device, as a backend sends it, or from it. */
function sendPanel(link, deviceId) {
  const text = input({name: "text", required: true, value: "Hello from the console"});
  const result = h("p", {class: "small muted", role: "status"});
  let way = "down";
  const form = h("form", {class: "form", novalidate: true});
  const button = action("Send", send, {scope: null, kind: "primary"});
  button.type = "submit";

  async function send() {
    if (way === "up") {
      show(result, link.send(text.value) ? "Sent." : "The device is not connected.");
      return;
    }
    show(result, "Sending…");
    try {
      const published = await api.post("messages", {device_id: deviceId(), text: text.value, timestamp: new Date().toISOString(), success: true});
      show(result, "Published as ", traceLink(published.id), link.isOpen ? "." : ". The device is not connected.");
    } catch (error) {
      show(result);
      toastError(error);
    }
  }

  function permit() {
    const may = way === "up" || session.may(WRITE);
    button.disabled = !may;
    button.title = may ? "" : `Requires the scope ${WRITE}`;
    show(result, may ? null : scopeHint(WRITE));
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(
    choice("Direction", "way", [["down", "To the device"], ["up", "From the device"]], way, (chosen) => {
      way = chosen;
      permit();
    }),
    h("div", {class: "bar"}, field("Text", text), button),
    result,
  );
  permit();
  return panel("Send a message", form);
}

export function render(main, {signal}) {
  const journal = new Journal();
  let deviceId = "";
  let wasOpen = false;

  const link = new Link({
    findUrl,
    getToken: (...wanted) => device.getToken(...wanted),
    onState(state) {
      if (state.phase === "open") journal.event("ok", "connected as ", id(deviceId));
      if (state.phase === "off" && wasOpen) journal.event("info", "disconnected (1000)");
      wasOpen = state.phase === "open";
      device.update(state);
      speaking.changed();
    },
    onText(way, text, value) {
      journal.text(way, text, value);
      if (way === "down") speaking.take(value);
    },
    onBinary: (way, size) => journal.binary(way, size),
    onEnd: (end, hadOpened) => journal.event(end.how === "slow" ? "bad" : "warn", hadOpened ? "closed: " : "refused: ", end.title, end.detail && ` (${end.detail})`),
  });
  const device = devicePanel({
    signal,
    onConnect(wanted) {
      deviceId = wanted;
      link.connect(wanted);
    },
    onDisconnect: () => link.disconnect(),
    onHurry: () => link.hurry(),
  });
  const speaking = speakingPanel({link, signal, isSpeechOff});
  const clear = h("button", {class: "button tiny", type: "button", on: {click: () => journal.clear()}}, "Clear");
  const chatter = h("input", {type: "checkbox", checked: true, on: {change: () => journal.showChatter(chatter.checked)}});
  const currentId = () => deviceId || device.deviceId;

  main.append(
    pageHead(title, {lead: "Use this page as a device: connect, speak, and watch the words and messages arrive."}),
    h(
      "div",
      {class: "try"},
      panel("Device", device.box, {side: device.state}),
      speaking.element,
      h("div", {class: "try-side stack"}, sendPanel(link, currentId), panel("Messages", journal.element, {bare: true, side: h("span", {class: "side-row"}, h("label", {class: "check"}, chatter, "Show audio and partial results"), clear)})),
    ),
  );
  samples.onChange(() => speaking.learned(), signal);

  const leave = () => link.disconnect();
  // A browser may keep a page that one has left, and its socket: the next page would be refused.
  addEventListener("pagehide", leave, {signal});
  addEventListener("online", () => link.hurry(), {signal});
  signal.addEventListener("abort", leave);
}
