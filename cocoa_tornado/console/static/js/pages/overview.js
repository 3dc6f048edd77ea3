// How the gateway does, at a glance.

import {api, poll} from "../api.js";
import {chart} from "../charts.js";
import {h, refresh, show} from "../dom.js";
import {bytes, duration, milliseconds, number, plural, rate} from "../format.js";
import {deviceLink, failed, id, loading, missingNote, note, nothing, pageHead, panel, pill, table, time, traceLink} from "../parts.js";
import {href} from "../router.js";
import {samples} from "../samples.js";

export const title = "Overview";

const QUIET = new Set(["off", "local", "ready"]);

const KEPT = "Messages that no device has acknowledged, of all boxes: also those that were written already, until they are acknowledged or expire";

/** What a server has counted within the last hour; one of an earlier release: since its start. */
const recent = (row) => row.recent ?? row;

function stat(name, label, chartOptions, read) {
  const value = h("div", {class: "value"});
  const drawing = chart(label, chartOptions);
  const box = h("section", {class: "stat"}, h("h2", {}, name), value, drawing.figure);
  return {
    box,
    update(points) {
      const last = points.at(-1);
      const {main, beside, title} = read(last, points);
      show(value, h("strong", {}, main), beside && h("span", {title}, beside));
      drawing.update(points.map((point) => ({at: point.at, values: chartOptions.values(point)})));
    },
  };
}

const STATS = [
  [
    "Connected devices",
    "Connections",
    {format: number, least: 5, values: (point) => [point.connections]},
    (last) => ({main: number(last.devices), beside: last.connections === 0 ? "none" : last.connections === last.devices ? "one connection each" : plural(last.connections, "connection")}),
  ],
  [
    "Delivered",
    "Messages delivered per second",
    {format: (value) => `${rate(value)}/s`, least: 5, values: (point) => [point.rates?.delivered]},
    (last) => ({main: `${rate(last.rates?.delivered)}/s`, beside: last.rates ? `${rate(Math.max(0, last.rates.read - (last.rates.canaries ?? 0)))}/s records read` : "measuring"}),
  ],
  [
    "Delivery latency",
    "Latency of delivery, median and 99 %",
    {format: milliseconds, names: ["50 %", "99 %"], least: 5, values: (point) => [point.latency.p50, point.latency.p99]},
    (last, points) => {
      const latest = points.findLast((point) => point.latency.p50 !== null)?.latency;
      return {main: milliseconds(latest?.p50), beside: latest ? `99 %: ${milliseconds(latest.p99)}` : points.length > 1 ? "nothing delivered meanwhile" : "measuring"};
    },
  ],
  [
    "Not delivered",
    "Messages dropped, lost or for devices that are not connected, per second",
    {format: (value) => `${rate(value)}/s`, least: 5, values: (point) => [undelivered(point.rates)]},
    (last) => ({main: `${rate(undelivered(last.rates))}/s`, beside: last.waiting === null ? "no mailbox" : `${plural(last.waiting, "message")} kept in boxes`, title: last.waiting === null ? null : KEPT}),
  ],
];

const undelivered = (rates) => (rates ? rates.not_connected + rates.dropped + rates.lost : undefined);

/** What a part is doing, in a mark. */
function partMark(name, part) {
  const kind = !part.ok ? "bad" : QUIET.has(part.state) ? (part.state === "ready" ? "ok" : "") : "info";
  return pill(kind, part.state === "ready" ? name : `${name}: ${part.state}`);
}

function attention(answer) {
  const rows = answer.servers;
  const lately = (name) => rows.reduce((sum, row) => sum + (recent(row).counters[name] ?? 0), 0);
  const found = [missingNote(answer.missing)];
  for (const [name, at] of samples.gone) found.push(note("warn", h("strong", {}, id(name)), " has left: it answered last at ", time(new Date(at).toISOString()), ". It was stopped, or it has died; its devices connect to the others."));
  for (const row of rows) {
    if (row.failing.length) found.push(note("bad", h("strong", {}, id(row.server), " is not ready: "), row.failing.join(", "), "."));
    const warnings = Object.entries(row.parts).filter(([name, part]) => !part.ok && !row.failing.includes(name));
    for (const [name, part] of warnings) found.push(note("warn", h("strong", {}, id(row.server), `: ${name} is ${part.state}`), part.message ? `. ${part.message}` : "."));
  }
  if (lately("leaked")) found.push(note("bad", h("strong", {}, "In the last hour messages leaked: "), plural(lately("leaked"), "message"), " reached a canary that they were not for. The log of its server has the event ", h("code", {}, "message leaked"), "."));
  if (lately("quarantined")) {
    found.push(note("warn", "In the last hour ", plural(lately("quarantined"), "record"), " could not be delivered as written and went to the quarantine. ", h("a", {href: href(["quarantine"])}, "Look at them")));
  }
  if (lately("lost")) found.push(note("warn", "In the last hour ", plural(lately("lost"), "message"), " left the mailbox unacknowledged: expired, or dropped from a full box. Devices without cursors may have received theirs. ", h("a", {href: href(["trace"])}, "Trace one")));
  for (const row of rows.filter((each) => recent(each).counters.fenced)) {
    found.push(note("warn", h("strong", {}, id(row.server)), ` has lost its lease in Redis, and with it its devices: fenced ${plural(recent(row).counters.fenced, "time")} in the last hour.`));
  }
  if (lately("declared_dead")) {
    found.push(note("warn", "In the last hour ", plural(lately("declared_dead"), "server"), " stopped answering and lost the lease in Redis. The log line ", h("code", {}, "server fenced"), " names it. What it had counted is not below."));
  }
  if (lately("canaries_lost")) found.push(note("warn", "In the last hour ", plural(lately("canaries_lost"), "canary message"), " did not arrive within a minute."));
  if (lately("other_key")) found.push(note("info", "In the last hour ", plural(lately("other_key"), "record"), " had a key that names neither the device nor the session. They are delivered, for the value decides, but perhaps not in order."));
  if (rows.some((row) => (row.lag ?? 0) > 1000)) found.push(note("warn", "Records wait to be read: the gateway is behind its topic by ", number(Math.max(...rows.map((row) => row.lag ?? 0))), "."));
  return found;
}

const SERVER_COLUMNS = [
  {title: "Server", cell: (row) => id(row.server)},
  {title: "State", cell: (row) => (row.failing.length ? pill("bad", `not ready: ${row.failing.join(", ")}`) : pill("ok", "ready"))},
  {title: "Up for", cell: (row) => h("span", {title: `since ${row.started_at}`}, duration(Math.max(0, (Date.now() - Date.parse(row.started_at)) / 1000)))},
  {title: "Version", cell: (row) => row.version},
  {title: "Connections", end: true, cell: (row) => number(row.connections)},
  {title: "Delivered", end: true, cell: (row) => `${rate(row.rates?.delivered)}/s`},
  {title: "Behind by", end: true, cell: (row) => (row.lag === null ? "–" : plural(row.lag, "record"))},
];

const TOTALS = [
  ["read", "records read"],
  ["delivered", "messages delivered"],
  ["kept", "kept for later"],
  ["not_connected", "for no connected device"],
  ["dropped", "dropped"],
  ["quarantined", "quarantined"],
  ["from_devices", "messages from devices"],
  ["accepted", "connections accepted"],
  ["refused", "refused"],
];

const CLOSE_CODES = {
  lost: "without a close code", 1000: "normal", 1001: "going away, or drained", 1002: "protocol error", 1003: "data of a type not accepted", 1005: "no code given", 1007: "invalid UTF-8",
  1008: "no pong, or too many messages", 1009: "message too big", 1011: "internal error", 1012: "service restarts", 1013: "read too slowly", 4401: "token expired", 4409: "replaced by another",
  4410: "by an operator", other: "another code",
};
const REFUSALS = {
  missing: "no token", expired: "token expired", signature: "token signed by another key", unknown_key: "token of an unknown key", malformed: "not a token", duplicate: "connected already",
  ambiguous: "several tokens that differ", too_long: "token too long", critical: "token with an unknown critical header", algorithm: "token of an algorithm not allowed", key_removed: "key removed",
  not_yet: "token not valid yet", lifetime: "token lives too long", device_id: "no valid device id in the token", device_version: "invalid claim in the token", user_id: "invalid claim in the token",
  groups: "invalid claim in the token", exp: "invalid claim in the token", nbf: "invalid claim in the token", iat: "invalid claim in the token", jti: "invalid claim in the token",
  issuer: "token of another issuer", subject: "token of another subject", audience: "token for another audience",
  not_websocket: "not a WebSocket request", bad_version: "another WebSocket version", bad_key: "invalid Sec-WebSocket-Key", interim: "invalid value of interim", vanished: "left before the answer",
  blocked: "blocked by an operator", origin: "origin not allowed", full: "no place left", draining: "draining", presence: "presence not ready", mailbox: "mailbox not ready", cursor: "unknown or invalid cursor",
};

/** Counts by reason, the largest first. */
function reasons(answer, field, words) {
  const [all, latest] = [(row) => row, recent].map((read) => {
    const sums = {};
    for (const row of answer.servers) for (const [name, count] of Object.entries(read(row)[field] ?? {})) sums[name] = (sums[name] ?? 0) + count;
    return sums;
  });
  const found = Object.entries(all).sort((one, other) => other[1] - one[1]);
  if (!found.length) return h("p", {class: "body muted"}, "None since the start.");
  const why = (name) => [h("code", {}, name), words[name] && h("span", {class: "muted"}, ` ${words[name]}`)];
  return table(`Connections ${field}, by reason`, countColumns("Reason", ([name]) => why(name), ([name]) => latest[name] ?? 0, ([, count]) => count), found, {isNarrow: true});
}

const countColumns = (title, name, latest, all) => [
  {title, cell: name},
  {title: "Last hour", end: true, cell: (row) => number(latest(row))},
  {title: "Since the start", end: true, cell: (row) => number(all(row))},
];

function totals(answer) {
  const sum = (name, read) => answer.servers.reduce((found, row) => found + (read(row).counters[name] ?? 0), 0);
  const count = (name, read) => (name === "read" ? Math.max(0, sum("read", read) - sum("canaries", read)) : sum(name, read));
  const mailbox = answer.servers.find((row) => row.waiting !== null);
  return [
    table("Totals", countColumns("All servers", ([, label]) => label, ([name]) => count(name, recent), ([name]) => count(name, (row) => row)), TOTALS, {isNarrow: true}),
    mailbox && h("p", {class: "body muted", title: KEPT}, `Kept in boxes, written ones included: ${plural(mailbox.waiting, "message")}, ${bytes(mailbox.waiting_bytes)}.`),
  ];
}

const WATCHED = [
  ["queues", "Slow readers", "messages their sockets have not taken", (row) => [deviceLink(row.device_id), plural(row.queue, "message")]],
  ["reconnects", "Coming back again and again", "refused, or connected for less than five minutes", (row) => [deviceLink(row.device_id), `${number(row.count)} times`]],
  ["loops", "Going round in circles", "they get the same message again, and never acknowledge it", (row) => [deviceLink(row.device_id), `${number(row.count)} times`]],
  ["full_boxes", "Full boxes", "messages that were dropped from them within the last day", (row) => [deviceLink(row.device_id), plural(row.count, "message")]],
  ["read_again", "Read again", "records that were read more than once, as far as the servers remember", (row) => [h("span", {}, traceLink(row.id), row.records > 1 && h("span", {class: "muted"}, ` and ${plural(row.records - 1, "more", "more")}`)), `${number(row.count)} times`]],
  ["round_trips", "Longest round trips", "a tenth of a second or more for the last ping", (row) => [deviceLink(row.device_id), milliseconds(row.rtt_ms)]],
];

function watched(top) {
  const slow = top.round_trips?.filter((row) => row.rtt_ms >= 100);
  top = {...top, round_trips: slow};
  const found = WATCHED.filter(([name]) => top[name]?.length);
  if (!found.length) return nothing("Nothing stands out", "Devices that read slowly, come back again and again, get the same message in a loop, or whose boxes are full are listed here.");
  return found.map(([name, label, why, row]) =>
    h("div", {class: "watched"}, h("h3", {}, label), h("p", {class: "muted small"}, why), h("ol", {}, top[name].map((each) => {
      const [link, figure] = row(each);
      return h("li", {}, link, h("span", {class: "number"}, figure));
    }))),
  );
}

export function render(main, {signal}) {
  const state = h("span");
  const body = h("div", {class: "stack"}, loading(6));
  main.append(pageHead(title, {actions: state}), body);
  let drawn = null;

  function build() {
    const stats = STATS.map((options) => stat(...options));
    const slots = {notes: h("div", {class: "notes"}), servers: h("div"), parts: h("div"), totals: h("div"), refused: h("div"), closed: h("div"), watched: h("div", {}, loading(3))};
    show(
      body,
      slots.notes,
      h("div", {class: "stats"}, stats.map((each) => each.box)),
      panel("Servers", slots.servers, {bare: true}),
      h("div", {class: "grid"}, h("div", {class: "stack"}, panel("Parts", slots.parts), panel("Devices to look at", slots.watched), panel("Connections refused", slots.refused, {bare: true})), h("div", {class: "stack"}, panel("Counted", slots.totals, {bare: true}), panel("Connections closed", slots.closed, {bare: true}))),
    );
    const showTop = async () => refresh(slots.watched, watched(await api.get("top", {query: {limit: 5}, signal})));
    poll(showTop, {everyMs: 10_000, signal, onError: (error) => slots.watched.querySelector("ol") || show(slots.watched, failed(error))});
    return {stats, slots};
  }

  function draw() {
    if (samples.error && samples.error.status !== 0 && !samples.points.length) {
      show(body, failed(samples.error));
      drawn = null;
      return;
    }
    const answer = samples.latest;
    if (answer === null) return;
    drawn ??= build();
    const {stats, slots} = drawn;
    const failing = answer.servers.filter((row) => row.failing.length);
    show(state, samples.error ? pill("warn", "out of date") : failing.length ? pill("bad", "not ready") : answer.missing.length ? pill("warn", "servers missing") : pill("ok", "all ready"));
    refresh(slots.notes, attention(answer));
    stats.forEach((each) => each.update(samples.points));
    refresh(slots.servers, table("Servers", SERVER_COLUMNS, answer.servers));
    refresh(slots.parts, h("div", {class: "stack"}, answer.servers.map((row) => h("div", {}, answer.servers.length > 1 && h("h3", {}, id(row.server)), h("div", {class: "parts"}, Object.entries(row.parts).map(([name, part]) => partMark(name, part)))))));
    refresh(slots.totals, totals(answer));
    refresh(slots.refused, reasons(answer, "refused", REFUSALS));
    refresh(slots.closed, reasons(answer, "closed", CLOSE_CODES));
  }

  samples.onChange(draw, signal);
  draw();
}
