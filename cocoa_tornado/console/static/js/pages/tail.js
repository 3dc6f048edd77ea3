// Live events of devices.

import {backoff, parse, pause} from "../api.js";
import {h, show} from "../dom.js";
import {line, lines, milliseconds, number, plural} from "../format.js";
import {icon} from "../icons.js";
import {deviceLink, failed, field, id, input, message, nothing, pageHead, panel, pill, time, traceLink} from "../parts.js";
import {go, href} from "../router.js";
import {readEvents} from "../stream.js";

export const title = "Live tail";

const KEPT = 500;
const LONGEST = 240; // characters
const KINDS = ["message", "connected", "refused", "challenged", "closed"];
const MARKS = {message: "info", connected: "ok", refused: "bad", challenged: "warn", closed: "", lost: "bad"};

/** What the message says, and the message itself for those who open it. */
function words(event) {
  if (event.text === undefined || event.text === null) return message(null, event.length);
  let said = null;
  try {
    const {text, error, success} = parse(event.text);
    if (typeof text === "string") said = success === false && typeof error === "string" ? `${text} (${error})` : text;
  } catch {
    // It is shown as it is.
  }
  return h("details", {}, h("summary", {}, message(beginning(said || event.text))), h("pre", {tabindex: 0}, lines(event.text)));
}

/** The first words of a text, on one line: no message pushes others out of sight. */
function beginning(text) {
  const found = Array.from(text.slice(0, 2 * LONGEST).replace(/\s*[\r\n]\s*/g, " \u23ce "));
  return found.length > LONGEST || text.length > 2 * LONGEST ? `${found.slice(0, LONGEST).join("")}\u2026` : found.join("");
}

function details(event) {
  if (event.event === "message") {
    const about = [event.priority !== "normal" && event.priority, event.interim && "interim", event.age_ms !== null && event.age_ms !== undefined && `${milliseconds(event.age_ms)} old`].filter(Boolean).join(", ");
    return [h("div", {class: "what"}, words(event)), h("div", {class: "meta"}, event.id && [traceLink(event.id), about && " · "], about)];
  }
  if (event.event === "lost") return h("strong", {class: "what"}, event.lost === null || event.lost === undefined ? "events missing" : `${plural(event.lost, "event")} missing`);
  const code = event.code && event.event !== "connected" ? `${event.event === "refused" ? "status" : "code"} ${event.code}` : "";
  return [h("div", {class: "what number"}, code), h("div", {class: "meta"}, "at ", id(event.server))];
}

const row = (event) =>
  h("li", {}, time(event.at, {ms: true, date: "never"}), pill(MARKS[event.event] ?? "", line(event.event)), h("div", {class: "whose"}, event.device_id ? deviceLink(event.device_id) : id(event.server)), details(event));

const searched = (event) => `${event.device_id ?? ""}\n${event.id ?? ""}\n${event.text ?? ""}\n${event.server}`.toLowerCase();

export function render(main, {query, signal}) {
  let events = [];
  let waiting = [];
  let isPaused = false;
  let lost = 0;
  let seen = 0;
  let isDue = false;
  const shown = new Set(KINDS);
  let wanted = "";

  const state = h("span", {role: "status"}, pill("", "connecting"));
  const count = h("span");
  const list = h("ol");
  const empty = h("div", {}, nothing("No events yet", "Messages appear as they are written to sockets, and connections as they open, are refused and close. Earlier events are not shown."));
  const view = h("div", {class: "tail", role: "log", "aria-live": "off", "aria-label": "Events", tabindex: 0}, empty, list);

  const fields = {device: input({value: query.device ?? "", placeholder: "doll-1"}), user: input({value: query.user ?? "", placeholder: '99 or "99"'}), group: input({value: query.group ?? "", placeholder: "kitchen"})};
  const form = h(
    "form",
    {class: "bar"},
    field("Device", fields.device),
    field("User", fields.user),
    field("Group", fields.group),
    h("button", {class: "button primary", type: "submit"}, "Watch"),
    (query.device || query.user || query.group) && h("a", {class: "button", href: href(["tail"])}, "Watch all"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go(["tail"], Object.fromEntries(Object.entries(fields).map(([name, control]) => [name, control.value.trim()])));
  });
  const pauseButton = h("button", {class: "button", type: "button", "aria-pressed": "false"}, icon("pause"), "Pause");
  pauseButton.addEventListener("click", () => {
    isPaused = !isPaused;
    pauseButton.setAttribute("aria-pressed", String(isPaused));
    show(pauseButton, icon(isPaused ? "play" : "pause"), isPaused ? "Resume" : "Pause");
    if (!isPaused) {
      add(waiting);
      waiting = [];
    }
    draw();
  });
  const clear = h("button", {class: "button", type: "button", on: {click: () => {
    events = [];
    show(list);
    draw();
  }}}, "Clear");
  const search = input({type: "search", placeholder: "Search events", "aria-label": "Search events", on: {input: () => {
    wanted = search.value.trim().toLowerCase();
    drawAll();
  }}});
  const kinds = KINDS.map((kind) => h("label", {class: "check"}, h("input", {type: "checkbox", checked: true, on: {change: (event) => {
    if (event.target.checked) shown.add(kind);
    else shown.delete(kind);
    drawAll();
  }}}), kind));

  main.append(
    pageHead(title, {actions: [pauseButton, clear]}),
    panel(null, h("div", {class: "form"}, form, h("div", {class: "bar"}, h("div", {class: "field"}, search), h("div", {class: "checks", role: "group", "aria-label": "Event types"}, kinds)))),
    panel("Events", view, {bare: true, side: count}),
  );
  main.querySelector("h1").after(state);

  const fits = (event) => (event.event === "lost" || shown.has(event.event)) && (wanted === "" || searched(event).includes(wanted));

  function stick(change) {
    const isAtEnd = view.scrollHeight - view.scrollTop - view.clientHeight < 40;
    change();
    if (isAtEnd) view.scrollTop = view.scrollHeight;
  }

  function add(added) {
    events = [...events, ...added].slice(-KEPT);
    stick(() => {
      list.append(...added.slice(-KEPT).filter(fits).map(row));
      while (list.children.length > KEPT) list.firstChild.remove();
    });
  }

  function drawAll() {
    stick(() => show(list, events.filter(fits).map(row)));
    draw();
  }

  function draw() {
    isDue = false;
    if (!isPaused && waiting.length) {
      add(waiting);
      waiting = [];
    }
    empty.hidden = list.hasChildNodes();
    const paused = isPaused && waiting.length ? `${number(waiting.length)} waiting, ` : "";
    show(count, lost > 0 && [pill("bad", `${number(lost)} lost`), " "], `${paused}${plural(seen, "event")}${seen > KEPT ? `, last ${KEPT} kept` : ""}`);
  }

  function onEvent(event) {
    seen += 1;
    if (event.event === "lost") lost += event.lost ?? 1;
    waiting.push(event);
    if (waiting.length > KEPT) waiting.shift();
    if (!isDue) {
      isDue = true;
      setTimeout(draw, 60);
    }
  }

  async function follow() {
    let attempt = 0;
    while (!signal.aborted) {
      try {
        await readEvents("events", {
          query: {device: query.device, user: query.user, group: query.group},
          signal,
          onOpen() {
            attempt = 0;
            show(state, pill("ok", "live"));
          },
          onEvent,
        });
      } catch (error) {
        if (signal.aborted) return;
        if (error.scope || error.status === 400) {
          show(state);
          show(view, failed(error));
          return;
        }
        if (error.status === 503 || error.status === 429) show(state, pill("warn", line(error.message)));
      }
      if (signal.aborted) return;
      if (attempt > 0) show(state, pill("bad", "connection lost, reconnecting"));
      await pause(backoff(attempt++), signal).catch(() => {});
    }
  }

  draw();
  follow();
}
