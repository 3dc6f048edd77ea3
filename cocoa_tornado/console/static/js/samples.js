// What GET overview has answered, every two seconds, and the rates that follow: for the overview, and kept while other
// pages are open.

import {api, poll} from "./api.js";

const EVERY_MS = 2000;
const KEPT = 60;
const REMEMBERED_MS = 15 * 60_000;
const events = new EventTarget();
let before = null;
const answered = new Map(); // when each server has answered last
let stop = null;

export const samples = {
  /** [{at, connections, devices, rates: {delivered: per second, ...}, latency: {p50, p99} in ms}] */
  points: [],
  /** the last answer, or null */
  latest: null,
  /** the last error, or null */
  error: null,
  /** servers that have answered in the last quarter of an hour, and are no longer there: [name, ms] */
  get gone() {
    const present = [...(samples.latest?.missing ?? []), ...(samples.latest?.servers ?? []).map((row) => row.server)];
    return [...answered].filter(([name, at]) => !present.includes(name) && Date.now() - at < REMEMBERED_MS);
  },
  onChange(listener, signal) {
    events.addEventListener("change", listener, {signal});
  },
};

/** Per server, what has been counted since the last answer. A server that is new, or has begun anew, counts from now. */
function growth(row, old) {
  const isSame = old !== undefined && old.started_at === row.started_at;
  const counters = Object.entries(row.counters).map(([name, value]) => [name, isSame ? Math.max(0, value - (old.counters[name] ?? 0)) : 0]);
  const latency = row.latency.map((count, at) => (isSame ? Math.max(0, count - (old.latency[at] ?? 0)) : 0));
  return {counters: Object.fromEntries(counters), latency};
}

/** The upper end of the bucket in which a share of all observations ends, refined within it; null: none. */
function quantile(share, counts, bounds) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total === 0) return null;
  let left = share * total;
  for (let at = 0; at < counts.length; at++) {
    if (left <= counts[at]) {
      const low = at ? bounds[at - 1] : 0;
      return at < bounds.length ? low + ((bounds[at] - low) * left) / counts[at] : low;
    }
    left -= counts[at];
  }
  return bounds.at(-1);
}

function add(answer) {
  const at = performance.now();
  const rows = answer.servers;
  const point = {at: Date.now(), connections: 0, devices: 0, waiting: null, rates: null, latency: {p50: null, p99: null}};
  for (const row of rows) {
    point.connections += row.connections;
    point.devices += row.devices;
    if (row.waiting !== null) point.waiting = Math.max(point.waiting ?? 0, row.waiting);
  }
  if (before !== null) {
    const seconds = (at - before.at) / 1000;
    const grown = rows.map((row) => growth(row, before.rows.get(row.server)));
    const totals = {};
    const latency = [];
    rows.forEach((row, which) => {
      row.rates = Object.fromEntries(Object.entries(grown[which].counters).map(([name, value]) => [name, value / seconds]));
      for (const [name, value] of Object.entries(row.rates)) totals[name] = (totals[name] ?? 0) + value;
      grown[which].latency.forEach((count, bucket) => (latency[bucket] = (latency[bucket] ?? 0) + count));
    });
    point.rates = totals;
    point.latency = {p50: quantile(0.5, latency, answer.latency_bounds_ms), p99: quantile(0.99, latency, answer.latency_bounds_ms)};
  }
  for (const row of rows) answered.set(row.server, point.at);
  before = {at, rows: new Map(rows.map((row) => [row.server, row]))};
  samples.points = [...samples.points.slice(1 - KEPT), point];
  samples.latest = answer;
  samples.error = null;
}

const changed = () => events.dispatchEvent(new Event("change"));

/** Begin to ask, or stop and forget everything. */
export function follow(isSignedIn) {
  stop?.abort();
  stop = null;
  if (!isSignedIn) {
    answered.clear();
    [before, samples.points, samples.latest, samples.error] = [null, [], null, null];
    return;
  }
  stop = new AbortController();
  const {signal} = stop;
  poll(
    async () => {
      add(await api.get("overview", {signal}));
      changed();
    },
    {
      everyMs: EVERY_MS,
      signal,
      onError(error) {
        samples.error = error;
        changed();
      },
    },
  );
}
