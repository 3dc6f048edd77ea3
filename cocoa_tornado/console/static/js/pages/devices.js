// The connected devices of all servers, and the members of a user or a group.

import {api, path, poll} from "../api.js";
import {h, refresh, show} from "../dom.js";
import {line, milliseconds, number, plural} from "../format.js";
import {action, ask, choice, deviceLink, failed, field, groupChips, id, input, loading, missingNote, nothing, pageHead, panel, pill, table, time, toast, userLink} from "../parts.js";
import {go, href} from "../router.js";

export const title = "Devices";

const EVERY_MS = 5000;
const LIMIT = 50;

const newest = (row) => row.connections.at(-1);
const of = (read) => (row) => (newest(row) ? read(newest(row), row) : "");

const MOST_GROUPS = 6;

/** The first groups; the others are on the device's page. */
function groups(row) {
  const rest = row.groups.length - MOST_GROUPS;
  if (rest <= 1) return row.groups.length ? groupChips(row.groups) : "";
  const more = h("a", {class: "chip", href: href(["devices", row.device_id]), title: "All groups of the device"}, `${number(rest)} more`);
  return groupChips(row.groups.slice(0, MOST_GROUPS), more);
}

const COLUMNS = [
  {title: "Device", cell: (row) => [deviceLink(row.device_id), row.connections.length > 1 && [" ", h("span", {class: "chip"}, plural(row.connections.length, "connection"))]]},
  {title: "User", named: true, cell: (row) => userLink(row.user_id)},
  {title: "Groups", cell: groups},
  {title: "Server", named: true, cell: (row) => (newest(row) ? id(newest(row).server) : pill("", "not connected"))},
  {title: "Address", whole: true, minor: true, cell: of((one) => id(one.ip))},
  {title: "Firmware", named: true, minor: true, cell: of((one) => id(one.version))},
  {title: "Round trip", end: true, minor: true, cell: of((one) => milliseconds(one.rtt_ms))},
  {title: "Queue", end: true, cell: of((one) => (one.queue ? pill("warn", number(one.queue)) : "0"))},
  {title: "Connected", minor: true, cell: of((one) => time(one.connected_at))},
  {title: "Last activity", cell: of((one) => time(one.last_activity, {relative: true}))},
];

export function render(main, {query, signal}) {
  const fields = {
    prefix: input({value: query.prefix ?? "", type: "search", placeholder: "doll-"}),
    user: input({value: query.user ?? "", placeholder: '99 or "99"'}),
    group: input({value: query.group ?? "", placeholder: "kitchen"}),
  };
  const target = query.user && !query.group ? ["users", query.user] : query.group && !query.user ? ["groups", query.group] : null;
  const listsMembers = query.members === "1" && target !== null && !query.prefix;
  const form = h(
    "form",
    {class: "bar", role: "search"},
    field("Id prefix", fields.prefix),
    field("User", fields.user),
    field("Group", fields.group),
    h("button", {class: "button primary", type: "submit"}, "Find"),
    (query.prefix || query.user || query.group) && h("a", {class: "button", href: href(["devices"])}, "Clear"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go(["devices"], Object.fromEntries(Object.entries(fields).map(([name, control]) => [name, control.value.trim()])));
  });
  const members = target && !query.prefix && choice("Which devices", "members", [["0", "Connected"], ["1", "All members"]], listsMembers ? "1" : "0", (value) => go(["devices"], {...query, after: "", members: value === "1" ? "1" : ""}));
  const side = h("span", {role: "status"});
  const notes = h("div", {class: "notes"});
  const list = h("div", {}, loading(6));
  const pager = h("div", {class: "body buttons", hidden: true});
  const kick = target && action("Disconnect all", () => disconnect(target), {kind: "danger"});
  main.append(
    pageHead(title, {actions: kick}),
    panel(null, form),
    h("div", {class: "buttons toolbar"}, members),
    notes,
    panel(listsMembers ? "Members" : "Connected", [list, pager], {side, bare: true}),
  );

  async function load() {
    const filter = {after: query.after, limit: LIMIT};
    const answer = listsMembers
      ? await api.get(path(...target, "devices"), {query: filter, signal})
      : await api.get("devices", {query: {...filter, prefix: query.prefix, user: query.user, group: query.group}, signal});
    draw(answer);
  }

  function draw({devices, next, connected, missing}) {
    show(notes, missingNote(missing));
    refresh(list, devices.length ? table("Devices", COLUMNS, devices) : empty());
    const isWhole = !next && !query.after;
    show(side, isWhole ? plural(devices.length, "device") : [`${plural(devices.length, "device")} on this page`, connected !== null && connected !== undefined && `${number(connected)} connected`].filter(Boolean).join(", "));
    pager.hidden = isWhole;
    refresh(
      pager,
      query.after && h("a", {class: "button", "data-key": "first", href: href(["devices"], {...query, after: ""})}, "First page"),
      next && h("a", {class: "button", "data-key": "next", href: href(["devices"], {...query, after: next})}, "Next page"),
    );
  }

  function empty() {
    if (listsMembers) return nothing("No members", "No connected device has it in its token. With a mailbox, devices that are not connected are listed for member_ttl.");
    if (query.prefix && !query.user && !query.group) return nothing("No matching device", "For a device that is not connected, open its page: ", h("a", {href: href(["devices", query.prefix])}, id(query.prefix)), ".");
    if (query.prefix || query.user || query.group) return nothing("No matching device", "User 99 is the integer, \"99\" the string.");
    return nothing("No connected devices", "Devices connect to /ws with a token. ", h("a", {href: href(["try"])}, "Connect this browser"), " as a device, or watch the ", h("a", {href: href(["tail"])}, "live tail"), ".");
  }

  let hasList = false;
  poll(async () => {
    await load();
    hasList = true;
  }, {everyMs: EVERY_MS, signal, onError: (error) => hasList || show(list, failed(error, load))});
}

async function disconnect([kind, name]) {
  let closed = 0;
  const after = input({type: "number", min: 0, max: 86400, name: "after", inputmode: "numeric"});
  const isDone = await ask(`Disconnect all devices of ${line(name)}?`, {
    text: ["Queued messages are sent first; then the connections are closed with 4410. The devices may reconnect."],
    confirm: "Disconnect all",
    kind: "danger",
    content: field("Reconnect after, seconds (optional)", after),
    run: async (form) => {
      closed = (await api.delete(path(kind, name, "connections"), {query: {reconnect_after: form.get("after")}})).closed;
    },
  });
  if (isDone) toast("ok", `${plural(closed, "connection")} closed.`);
}
