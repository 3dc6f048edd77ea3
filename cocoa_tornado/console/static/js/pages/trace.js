// A trace: the steps of a message over time, and its outcome at each device.

import {api, path, poll} from "../api.js";
import {h, refresh, show} from "../dom.js";
import {clock, line, lines, milliseconds, number, plural} from "../format.js";
import {kindOf, meaningOf} from "../outcomes.js";
import {deviceLink, failed, field, id, input, loading, missingNote, note, nothing, pageHead, panel, pill, table, time} from "../parts.js";
import {pretty} from "../record.js";
import {go, href} from "../router.js";

export const title = "Trace";

const EVERY_MS = 3000;
const STEPS = {
  produced: "the producer’s timestamp",
  read: "read from the topic",
  addressed: "recipients determined",
  stored: "stored in the boxes of its recipients",
  forwarded: "forwarded to the server that holds the device",
  written: "written to a socket",
  acknowledged: "acknowledged by a device",
};

export function render(main, {parts, signal}) {
  const messageId = parts.join("/");
  const control = input({value: messageId, type: "search", class: "mono", placeholder: "m1, or transcription.results/0/42"});
  const form = h("form", {class: "bar", role: "search"}, field("Message id", control), h("button", {class: "button primary", type: "submit"}, "Trace"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (control.value.trim()) go(["trace", control.value.trim()]);
  });
  const body = h("div", {class: "stack"});
  main.append(pageHead(title, {lead: "What happened to a message, on all servers."}), panel(null, form), body);
  if (messageId === "") {
    show(body, panel(null, nothing("Enter a message id", "The record’s own id, or topic/partition/offset. The ", h("a", {href: href(["tail"])}, "live tail"), " and messages that you ", h("a", {href: href(["send"])}, "send"), " link to their traces."), {bare: true}));
    return;
  }
  document.title = `${line(messageId)} · cocoa console`;
  show(body, loading(5));
  let hasAnswer = false;

  async function load() {
    try {
      draw(await api.get(path("messages", messageId), {signal}));
    } catch (error) {
      if (error.status !== 404) throw error;
      const searched = `${line(error.message)}.`;
      refresh(body, panel(null, nothing("Message not found", searched, " It may not have been read yet. See also the ", h("a", {href: href(["quarantine"])}, "quarantine"), "."), {bare: true}));
    }
    hasAnswer = true;
  }

  function draw(trace) {
    const {steps, devices, counts, missing, summary, notes} = trace;
    const rows = devices.map((row) => ({...row, outcome: row.outcome ?? "unknown", note: notes?.[row.device_id]})).sort((one, other) => urgency(one) - urgency(other));
    const all = Object.values(counts).reduce((sum, count) => sum + count, 0);
    const worst = rows.length ? kindOf(rows[0].outcome) : kindOf(Object.keys(counts)[0]);
    const text = trace.text !== undefined && trace.text !== null ? h("pre", {class: "block", tabindex: 0}, lines(pretty(trace.text))) : trace.length !== undefined && trace.length !== null && h("p", {class: "muted"}, `${plural(trace.length, "byte")}; the text requires the scope admin:text.`);
    refresh(
      body,
      summary && note(worst || "info", h("strong", {}, line(summary))),
      missingNote(missing),
      h(
        "div",
        {class: "grid"},
        panel("Steps", steps.length ? timeline(steps) : nothing("No steps yet"), {bare: !steps.length}),
        h("div", {class: "stack"}, panel("Outcomes", tally(counts)), text && panel("Message", text)),
      ),
      rows.length > 0 && panel("Devices", table("Devices", COLUMNS, rows), {bare: true, side: all > rows.length ? `${number(rows.length)} of ${plural(all, "device")}` : plural(rows.length, "device")}),
    );
  }

  // Whatever becomes of a message mostly does at once, and a search in the topic and the boxes costs the servers something.
  poll(load, {everyMs: EVERY_MS, slower: 1.3, signal, onError: (error) => hasAnswer || show(body, panel(null, failed(error, load), {bare: true}))});
}

const COLUMNS = [
  {title: "Device", cell: (row) => deviceLink(row.device_id)},
  {title: "Outcome", cell: (row) => pill(kindOf(row.outcome), line(row.outcome))},
  {title: "Meaning", cell: (row) => [h("span", {class: "muted"}, meaningOf(row.outcome)), row.note && h("div", {}, line(row.note))]},
];

// What went wrong comes first; the order is kept otherwise.
const URGENCY = ["bad", "warn", "info", "", "ok"];
const urgency = (row) => URGENCY.indexOf(kindOf(row.outcome));

function timeline(steps) {
  const first = steps.find((step) => step.at !== null)?.at;
  const start = Date.parse(first);
  const rows = steps.map(({at: stamp, server, step}, at) => {
    const moment = Number.isNaN(Date.parse(stamp)) ? null : new Date(stamp);
    const since = moment === null ? "" : at === 0 ? clock(moment, {ms: true}) : `+ ${milliseconds(moment.getTime() - start)}`;
    const utc = moment && `${moment.toISOString().replace("T", " ").replace("Z", "")} UTC`;
    return h(
      "li",
      {class: step === "written" || step === "acknowledged" ? "is-ok" : ""},
      moment ? h("time", {datetime: moment.toISOString(), title: utc}, since) : h("span", {class: "at", title: "Time unknown"}, "–"),
      h("div", {}, h("strong", {}, line(step)), STEPS[step] && [" – ", STEPS[step]], server && h("div", {class: "muted small"}, "at ", id(server))),
    );
  });
  return h("ol", {class: "trace"}, rows);
}

function tally(counts) {
  const entries = Object.entries(counts).map(([outcome, count]) => [outcome === "null" ? "unknown" : outcome, count]);
  if (!entries.length) return h("p", {class: "muted"}, "No recipients known yet.");
  return h("dl", {class: "facts"}, entries.map(([outcome, count]) => [h("dt", {}, pill(kindOf(outcome), line(outcome))), h("dd", {}, h("strong", {class: "number"}, number(count)), " ", h("span", {class: "muted"}, meaningOf(outcome)))]));
}
