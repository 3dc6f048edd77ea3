// From now on every text in every answer is hostile: what devices and backends choose, and what only a broken server
// would say. The test puts a string in place of HOSTILE.
(() => {
  const bad = HOSTILE, now = new Date().toISOString();
  const connection = {server: bad, generation: bad, connected_at: now, ip: bad, version: bad, rtt_ms: 3, queue: 9, last_activity: bad};
  const device = {device_id: bad, user_id: bad, groups: [bad, bad], connections: [connection, connection], blocked: true, blocked_until: bad,
    box: {oldest: bad, newest: now, acknowledged: {[bad]: bad}, messages: 3, bytes: 9},
    messages: [{id: bad, at: bad, outcome: bad, note: bad}, {id: bad, at: now, outcome: null, note: ""}],
    events: [{at: bad, server: bad, event: bad, code: bad}, {at: now, server: bad, event: "closed", code: 1000}]};
  const parts = {[bad]: {ok: false, state: bad, message: bad}, mailbox: {ok: true, state: bad}};
  const server = {server: bad, version: bad, started_at: bad, connections: 1, devices: 1, failing: [bad], parts, lag: 1, waiting: 2,
    waiting_bytes: 3, counters: {quarantined: 2, lost: 1, fenced: 1, other_key: 1}, refused: {[bad]: 2}, closed: {[bad]: 1}, latency: [1, 2], device_port: null,
    recent: {since: bad, counters: {quarantined: 2, lost: 1, fenced: 1, declared_dead: 1, other_key: 1, leaked: 1, canaries_lost: 1}, refused: {[bad]: 1}, closed: {}}};
  const repeat = {device_id: bad, count: 3, since: bad, last: bad};
  const rejected = {partition: 0, offset: 1, timestamp: bad, reason: bad, topic: bad, source_partition: bad, source_offset: bad, key: bad,
    value_bytes: 9, value: bad, is_cut: true, headers: [{name: bad, value: bad}], dropped: {[bad]: 3}, requeued: false};
  const event = (name) => ({event: name, at: now, server: bad, device_id: bad, user_id: bad, code: 1, id: bad, priority: bad, interim: true,
    length: 9, age_ms: 3, text: name === "message" ? JSON.stringify({text: bad}) : bad, lost: 1});
  const answers = [
    [/overview$/, {servers: [server], latency_bounds_ms: [1], missing: [bad]}],
    [/top$/, {queues: [{device_id: bad, server: bad, queue: 3}], round_trips: [], reconnects: [repeat], loops: [repeat], full_boxes: [repeat], read_again: [{id: bad, records: 3, count: 2, servers: [bad], last: bad}]}],
    [/devices$/, {devices: [device], next: bad, missing: [bad]}],
    [/devices\/[^/]+$/, {...device, missing: [bad]}],
    [/messages\/.+$/, {id: bad, steps: [{at: bad, server: bad, step: bad}], devices: [{device_id: bad, outcome: bad}], counts: {[bad]: 1},
      missing: [bad], summary: bad, notes: {[bad]: bad}, length: 3, text: bad}],
    [/explain$/, {valid: true, devices: [{device_id: bad, would: bad, why: bad}], counts: {[bad]: 1}, more: true, missing: [bad]}],
    [/quarantine$/, {records: [rejected], missing: [bad]}],
    [/messages$/, {id: bad}],
  ];
  globalThis.fetch = async (url) => {
    const path = new URL(url).pathname;
    if (globalThis.isFailing) return new Response(JSON.stringify({message: bad}), {status: 400, statusText: "no"});
    if (path.endsWith("/events")) {
      const lines = ["message", "connected", "refused", "lost", bad].map((name) => `event: x\ndata: ${JSON.stringify(event(name))}\n\n`);
      return new Response(new ReadableStream({start: (stream) => stream.enqueue(new TextEncoder().encode(lines.join("")))}));
    }
    const [, answer] = answers.find(([pattern]) => pattern.test(path)) ?? [null, {}];
    return new Response(JSON.stringify(answer));
  };
})()
