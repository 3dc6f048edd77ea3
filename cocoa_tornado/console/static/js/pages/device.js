// One device: its connections, box, last events and messages, and the actions of an operator.

import {api, path, poll} from "../api.js";
import {h, refresh, show} from "../dom.js";
import {bytes, clock, line, lines, milliseconds, number, plural} from "../format.js";
import {icon} from "../icons.js";
import {kindOf, meaningOf} from "../outcomes.js";
import {action, ask, copyButton, facts, failed, field, groupChips, id, input, loading, missingNote, note, nothing, pageHead, panel, pill, table, time, toast, traceLink, userLink} from "../parts.js";
import {href} from "../router.js";

export const title = "Device";

const EVERY_MS = 3000;

const CLOSE_CODES = {
  1000: "normal", 1001: "going away", 1006: "connection lost", 1008: "no pong, or too many messages",
  1009: "message too big", 1011: "internal error", 1013: "slow consumer", 4401: "token expired", 4409: "replaced by another connection", 4410: "disconnected by an operator",
};
const STATUSES = {400: "unknown cursor, or a bad request", 401: "token not accepted", 403: "origin not allowed, or blocked", 409: "already connected", 426: "not a WebSocket handshake", 503: "full, draining, or not ready"};

const CONNECTIONS = [
  {title: "Server", named: true, cell: (row) => id(row.server)},
  {title: "Connected", cell: (row) => time(row.connected_at)},
  {title: "Last activity", cell: (row) => time(row.last_activity, {relative: true})},
  {title: "Address", whole: true, cell: (row) => id(row.ip)},
  {title: "Firmware", cell: (row) => id(row.version)},
  {title: "Generation", cell: (row) => id(row.generation)},
  {title: "Round trip", end: true, cell: (row) => milliseconds(row.rtt_ms)},
  {title: "Queue", end: true, cell: (row) => (row.queue ? pill("warn", number(row.queue)) : "0")},
];

const MESSAGES = [
  {title: "Message", cell: (row) => traceLink(row.id)},
  {title: "Read", cell: (row) => time(row.at)},
  {title: "Outcome", cell: (row) => h("span", {title: meaningOf(row.outcome ?? "unknown")}, pill(kindOf(row.outcome ?? "unknown"), line(row.outcome ?? "unknown")))},
  {title: "Note", cell: (row) => h("span", {class: "muted"}, row.note && line(row.note))},
];

function eventRow({at, server, event, code}) {
  const kind = {connected: "is-ok", refused: "is-bad", challenged: "is-warn"}[event] ?? (code === 1000 || code === 1001 ? "" : "is-warn");
  const detail = event === "refused" ? STATUSES[code] : event === "closed" ? CLOSE_CODES[code] : event === "challenged" ? "another connection of the device was opened" : "";
  return h("li", {class: kind}, time(at), h("div", {}, h("strong", {}, event, code && code !== 101 ? ` ${code}` : ""), detail && [" – ", detail], h("div", {class: "muted small"}, "at ", id(server))));
}

export function render(main, {parts, signal}) {
  const deviceId = parts[0];
  const at = (...rest) => path("devices", deviceId, ...rest);
  document.title = `${line(deviceId)} · cocoa console`;
  const state = h("span", {role: "status"});
  const buttons = h("div", {class: "buttons"});
  const body = h("div", {class: "stack"}, loading(6));
  main.append(
    pageHead([h("span", {class: "unseen"}, "Device "), id(deviceId)], {actions: buttons, before: h("a", {class: "button quiet icon", href: href(["devices"]), "aria-label": "All devices", title: "All devices"}, icon("back"))}),
    body,
  );
  main.querySelector("h1").after(state);

  async function load() {
    try {
      draw(await api.get(at(), {signal}));
    } catch (error) {
      if (error.status !== 404) throw error;
      drawUnknown();
    }
  }

  function draw(row) {
    const isConnected = row.connections.length > 0;
    show(state, row.blocked ? pill("bad", "blocked") : isConnected ? pill("ok", "connected") : pill("", "not connected"));
    refresh(buttons, actions(row, isConnected));
    const user = row.user_id === null ? [] : [["User", userLink(row.user_id)]];
    refresh(
      body,
      missingNote(row.missing),
      row.blocked && note("bad", "Connections are refused with 403 ", row.blocked_until ? ["until ", time(row.blocked_until, {date: "always"}), "."] : "until it is unblocked."),
      panel("Connections", isConnected ? table("Connections", CONNECTIONS, row.connections) : nothing("Not connected", row.events.length ? "See its last events." : ""), {bare: true, side: isConnected ? plural(row.connections.length, "connection") : null}),
      row.messages?.length > 0 && panel("Last messages", table("Last messages", MESSAGES, row.messages), {bare: true, side: "as far as the servers remember"}),
      h(
        "div",
        {class: "grid"},
        panel("Last events", row.events.length ? h("ol", {class: "events"}, row.events.toReversed().map(eventRow)) : nothing("No events", "The servers remember the last 20 events since they started."), {bare: !row.events.length}),
        h("div", {class: "stack"}, panel("Box", box(row.box), {side: row.box?.messages ? emptyBox() : null}), (user.length || row.groups.length > 0) && panel("Latest token", facts([...user, row.groups.length && ["Groups", groupChips(row.groups)]]))),
      ),
    );
  }

  function drawUnknown() {
    show(state, pill("", "unknown"));
    refresh(buttons, actions({blocked: false}, false));
    refresh(body, panel(null, nothing("No server knows this device", "It is not connected, its box is empty, and it has had no events since the servers started."), {bare: true}));
  }

  function box(found) {
    if (found === null) return h("p", {class: "muted"}, "There is no mailbox, or it is unavailable.");
    return facts([
      ["Waiting", found.messages ? h("strong", {}, plural(found.messages, "message"), `, ${bytes(found.bytes)}`) : "nothing"],
      found.oldest && ["Oldest", time(found.oldest)],
      found.newest && ["Newest", time(found.newest)],
      ["Acknowledged", found.acknowledged === null ? "never" : h("span", {class: "number"}, Object.entries(found.acknowledged).map(([lane, last], which) => `${which ? ", " : ""}${lane} up to ${last}`))],
    ]);
  }

  const emptyBox = () => action("Empty box", async () => {
    const isDone = await ask("Empty this box?", {
      text: ["The messages that wait for ", id(deviceId), " are deleted. This cannot be undone."],
      confirm: "Empty box",
      kind: "danger",
      run: async () => {
        const {deleted} = await api.delete(at("box"));
        toast("ok", `${plural(deleted, "message")} deleted.`);
      },
    });
    if (isDone) await load();
  }, {size: "tiny", kind: "danger", key: "empty"});

  function actions(row, isConnected) {
    return [
      isConnected && action("Disconnect", disconnect, {kind: "danger"}),
      row.blocked ? action("Unblock", unblock) : action("Block", block, {kind: "danger"}),
      h("a", {class: "button", href: href(["send"], {to: "device", device: deviceId}), "data-key": "send"}, icon("send"), "Send"),
      h("a", {class: "button", href: href(["tail"], {device: deviceId}), "data-key": "tail"}, icon("tail"), "Watch"),
      action("Token", mint),
    ];
  }

  async function disconnect() {
    const isDone = await ask("Disconnect this device?", {
      text: ["Queued messages are sent first; then its connections are closed with 4410. The device may reconnect."],
      confirm: "Disconnect",
      kind: "danger",
      content: field("Reconnect after, seconds (optional)", input({type: "number", min: 0, max: 86400, name: "after", inputmode: "numeric"})),
      run: async (form) => {
        const {closed} = await api.delete(at("connections"), {query: {reconnect_after: form.get("after")}});
        toast("ok", `${plural(closed, "connection")} closed.`);
      },
    });
    if (isDone) await load();
  }

  async function block() {
    const until = h("select", {name: "minutes"}, [["", "until it is unblocked"], ["10", "for 10 minutes"], ["60", "for an hour"], ["1440", "for a day"], ["10080", "for a week"]].map(([value, text]) => h("option", {value}, text)));
    const isDone = await ask("Block this device?", {
      text: [id(deviceId), " is disconnected and refused with 403 on all servers, also after restarts."],
      confirm: "Block",
      kind: "danger",
      content: field("Duration", until),
      run: async (form) => {
        const minutes = Number(form.get("minutes"));
        await api.put(at("block"), minutes ? {until: new Date(Date.now() + minutes * 60_000).toISOString()} : {});
        toast("ok", "Blocked.");
      },
    });
    if (isDone) await load();
  }

  async function unblock() {
    await api.delete(at("block"));
    toast("ok", "Unblocked.");
    await load();
  }

  async function mint() {
    const {token, expires_in: seconds} = await api.post("device-token", {device_id: deviceId});
    const until = clock(new Date(Date.now() + seconds * 1000));
    await ask("Device token", {
      text: [`Valid until ${until}, with user 0 and no groups. Anyone who has it can connect as this device.`],
      confirm: "Done",
      content: h("div", {class: "field"}, h("pre", {class: "block", tabindex: 0}, lines(token)), h("div", {}, copyButton(token))),
    });
  }

  let hasRow = false;
  poll(async () => {
    await load();
    hasRow = true;
  }, {everyMs: EVERY_MS, signal, onError: (error) => hasRow || show(body, panel(null, failed(error), {bare: true}))});
}
