// The state of all servers at a glance.

import {api, poll} from "../api.js";
import {chart} from "../charts.js";
import {h, refresh, show} from "../dom.js";
import {bytes, duration, milliseconds, number, plural, rate} from "../format.js";
import {deviceLink, failed, id, loading, missingNote, note, nothing, pageHead, panel, pill, table, time, traceLink} from "../parts.js";
import {href} from "../router.js";
import {samples} from "../samples.js";

export const title = "Overview";

const QUIET = new Set(["off", "local", "ready"]);

const KEPT = "Unacknowledged messages in all boxes, including those already written to a socket";

const LEAKED = "A message has reached the wrong canary. This state remains until the server is restarted.";

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
    "Delivery latency, median and 99th percentile",
    {format: milliseconds, names: ["50 %", "99 %"], least: 5, values: (point) => [point.latency.p50, point.latency.p99]},
    (last, points) => {
      const latest = points.findLast((point) => point.latency.p50 !== null)?.latency;
      return {main: milliseconds(latest?.p50), beside: latest ? `99 %: ${milliseconds(latest.p99)}` : points.length > 1 ? "no recent deliveries" : "measuring"};
    },
  ],
  [
    "Not delivered",
    "Messages dropped, lost or without a connected device, per second",
    {format: (value) => `${rate(value)}/s`, least: 5, values: (point) => [undelivered(point.rates)]},
    (last) => ({main: `${rate(undelivered(last.rates))}/s`, beside: last.waiting === null ? "no mailbox" : `${plural(last.waiting, "message")} in boxes`, title: last.waiting === null ? null : KEPT}),
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
  for (const [name, at] of samples.gone) found.push(note("warn", h("strong", {}, id(name)), " is gone. It last answered at ", time(new Date(at).toISOString()), ". Its devices reconnect to other servers."));
  for (const row of rows) {
    if (row.failing.length) found.push(note("bad", h("strong", {}, id(row.server), " is not ready: "), row.failing.join(", "), "."));
    const warnings = Object.entries(row.parts).filter(([name, part]) => !part.ok && !row.failing.includes(name));
    for (const [name, part] of warnings) found.push(note("warn", h("strong", {}, id(row.server), `: ${name} is ${part.state}. `), part.state === "leaked" ? LEAKED : part.message));
  }
  if (lately("leaked")) found.push(note("bad", h("strong", {}, "Messages leaked. "), "In the last hour ", plural(lately("leaked"), "message"), " reached the wrong canary. Stop the server, and keep its log: the event ", h("code", {}, "message leaked"), " has the details."));
  if (lately("quarantined")) {
    found.push(note("warn", "Quarantined as invalid in the last hour: ", plural(lately("quarantined"), "record"), ". ", h("a", {href: href(["quarantine"])}, "Show quarantine")));
  }
  if (lately("lost")) found.push(note("warn", "In the last hour ", plural(lately("lost"), "message"), " expired, were dropped from full boxes, or were lost with Redis, before their devices received them. ", h("a", {href: href(["trace"])}, "Trace a message")));
  for (const row of rows.filter((each) => recent(each).counters.fenced)) {
    found.push(note("warn", h("strong", {}, id(row.server)), ` lost its lease in Redis ${plural(recent(row).counters.fenced, "time")} in the last hour, and with it its devices.`));
  }
  if (lately("declared_dead")) {
    found.push(note("warn", "In the last hour ", plural(lately("declared_dead"), "server"), " stopped answering and lost the lease in Redis. The log line ", h("code", {}, "server fenced"), " names it. What it had counted is not below."));
  }
  if (lately("canaries_lost")) found.push(note("warn", "In the last hour ", plural(lately("canaries_lost"), "canary message"), " did not arrive within a minute."));
  if (lately("other_key")) found.push(note("info", "In the last hour ", plural(lately("other_key"), "record"), " had a key other than the device id or the session id. Such records are delivered, but perhaps out of order."));
  if (rows.some((row) => (row.lag ?? 0) > 1000)) found.push(note("warn", "The consumer is ", plural(Math.max(...rows.map((row) => row.lag ?? 0)), "record"), " behind the results topic."));
  return found;
}

const SERVER_COLUMNS = [
  {title: "Server", cell: (row) => id(row.server)},
  {title: "State", cell: (row) => (row.failing.length ? pill("bad", `not ready: ${row.failing.join(", ")}`) : pill("ok", "ready"))},
  {title: "Uptime", cell: (row) => h("span", {title: `since ${row.started_at}`}, duration(Math.max(0, (Date.now() - Date.parse(row.started_at)) / 1000)))},
  {title: "Version", cell: (row) => row.version},
  {title: "Connections", end: true, cell: (row) => number(row.connections)},
  {title: "Delivered", end: true, cell: (row) => `${rate(row.rates?.delivered)}/s`},
  {title: "Lag", end: true, cell: (row) => (row.lag === null ? "–" : plural(row.lag, "record"))},
];

const TOTALS = [
  ["read", "records read"],
  ["delivered", "messages delivered"],
  ["kept", "stored in boxes"],
  ["not_connected", "device not connected"],
  ["dropped", "dropped"],
  ["quarantined", "quarantined"],
  ["from_devices", "messages from devices"],
  ["accepted", "connections accepted"],
  ["refused", "connections refused"],
];

const CLOSE_CODES = {
  lost: "no close code", 1000: "normal", 1001: "going away", 1002: "protocol error", 1003: "unsupported data", 1005: "no code in the close frame", 1007: "invalid UTF-8",
  1008: "no pong, or too many messages", 1009: "message too big", 1011: "internal error", 1012: "service restart", 1013: "slow consumer", 4401: "token expired", 4409: "replaced by another connection",
  4410: "disconnected by an operator", other: "other codes",
};
const REFUSALS = {
  missing: "no token", expired: "token expired", signature: "wrong signature", unknown_key: "unknown key", malformed: "not a token", duplicate: "already connected",
  ambiguous: "several different tokens", too_long: "token too long", critical: "unknown critical header in the token", algorithm: "algorithm not allowed", key_removed: "key removed",
  not_yet: "token not valid yet", lifetime: "token lifetime too long", device_id: "invalid device id in the token", device_version: "invalid claim in the token", user_id: "invalid claim in the token",
  groups: "invalid claim in the token", exp: "invalid claim in the token", nbf: "invalid claim in the token", iat: "invalid claim in the token", jti: "invalid claim in the token",
  issuer: "wrong issuer", subject: "wrong subject", audience: "wrong audience",
  not_websocket: "not a WebSocket request", bad_version: "unsupported WebSocket version", bad_key: "invalid Sec-WebSocket-Key", interim: "invalid query field interim", vanished: "client disconnected",
  blocked: "blocked by an operator", origin: "origin not allowed", full: "server full", draining: "server draining", presence: "presence not ready", mailbox: "mailbox not ready", cursor: "unknown or invalid cursor",
};

/** Counts by reason, the largest first. */
function reasons(answer, field, words) {
  const [all, latest] = [(row) => row, recent].map((read) => {
    const sums = {};
    for (const row of answer.servers) for (const [name, count] of Object.entries(read(row)[field] ?? {})) sums[name] = (sums[name] ?? 0) + count;
    return sums;
  });
  const found = Object.entries(all).sort((one, other) => other[1] - one[1]);
  if (!found.length) return h("p", {class: "body muted"}, "None since the servers started.");
  const why = (name) => [h("code", {}, name), words[name] && h("span", {class: "muted"}, ` ${words[name]}`)];
  return table(`Connections ${field}, by reason`, countColumns("Reason", ([name]) => why(name), ([name]) => latest[name] ?? 0, ([, count]) => count), found, {isNarrow: true});
}

const countColumns = (title, name, latest, all) => [
  {title, cell: name},
  {title: "Last hour", end: true, cell: (row) => number(latest(row))},
  {title: "Since start", end: true, cell: (row) => number(all(row))},
];

function totals(answer) {
  const sum = (name, read) => answer.servers.reduce((found, row) => found + (read(row).counters[name] ?? 0), 0);
  const count = (name, read) => (name === "read" ? Math.max(0, sum("read", read) - sum("canaries", read)) : sum(name, read));
  const mailbox = answer.servers.find((row) => row.waiting !== null);
  return [
    table("Totals", countColumns("All servers", ([, label]) => label, ([name]) => count(name, recent), ([name]) => count(name, (row) => row)), TOTALS, {isNarrow: true}),
    mailbox && h("p", {class: "body muted", title: KEPT}, `In boxes: ${plural(mailbox.waiting, "message")}, ${bytes(mailbox.waiting_bytes)}.`),
  ];
}

const WATCHED = [
  ["queues", "Slow readers", "queued messages that the socket has not taken", (row) => [deviceLink(row.device_id), plural(row.queue, "message")]],
  ["reconnects", "Frequent reconnects", "refused, or connected for less than five minutes", (row) => [deviceLink(row.device_id), `${number(row.count)} times`]],
  ["loops", "Delivery loops", "sent the same message again and again, because the device never acknowledges it", (row) => [deviceLink(row.device_id), `${number(row.count)} times`]],
  ["full_boxes", "Full boxes", "messages dropped before they were received, within the last day", (row) => [deviceLink(row.device_id), plural(row.count, "message")]],
  ["read_again", "Records read again", "more than once, as far as the servers remember", (row) => [h("span", {}, traceLink(row.id), row.records > 1 && h("span", {class: "muted"}, ` and ${plural(row.records - 1, "more", "more")}`)), `${number(row.count)} times`]],
  ["round_trips", "Longest round trips", "100 ms or more at the last ping", (row) => [deviceLink(row.device_id), milliseconds(row.rtt_ms)]],
];

function watched(top) {
  const slow = top.round_trips?.filter((row) => row.rtt_ms >= 100);
  top = {...top, round_trips: slow};
  const found = WATCHED.filter(([name]) => top[name]?.length);
  if (!found.length) return nothing("No problems found", "This list has slow readers, frequent reconnects, delivery loops and full boxes.");
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
      h("div", {class: "grid"}, h("div", {class: "stack"}, panel("Readiness", slots.parts), panel("Needs attention", slots.watched), panel("Connections refused", slots.refused, {bare: true})), h("div", {class: "stack"}, panel("Totals", slots.totals, {bare: true}), panel("Connections closed", slots.closed, {bare: true}))),
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
