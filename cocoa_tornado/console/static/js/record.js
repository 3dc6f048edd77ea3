// A record in the making: as a form, or as JSON.

import {parse} from "./api.js";
import {h, show} from "./dom.js";
import {choice, field, input} from "./parts.js";

const KINDS = [["device", "A device"], ["devices", "Several devices"], ["user", "A user"], ["group", "A group"], ["all", "All devices"]];

/** A user id as JSON: 99 is an integer, "99" and ann are strings. */
function userJson(text) {
  if (/^-?(0|[1-9]\d*)$/.test(text)) return text;
  if (text.startsWith('"')) {
    try {
      if (typeof JSON.parse(text) === "string") return text;
    } catch {
      // A name that begins with a quote.
    }
  }
  return JSON.stringify(text);
}

const words = (text) => text.split(/[\s,]+/).filter(Boolean);

/** A form that makes a record.
 * @returns {element, read: () => the JSON text, kind: () => device, ..., or json} */
export function recordForm({query = {}, onChange = () => {}}) {
  let mode = "form";
  let kind = KINDS.some(([name]) => name === query.to) ? query.to : "device";
  const target = {
    device: input({value: query.device ?? "", placeholder: "doll-1"}),
    devices: h("textarea", {rows: 3, placeholder: "doll-1, doll-2", spellcheck: "false"}),
    user: input({value: query.user ?? "", placeholder: '99 or "99"'}),
    group: input({value: query.group ?? "", placeholder: "kitchen"}),
  };
  const hints = {devices: "Separated by commas, spaces or lines; at most 1,000.", user: "99 is the integer, \"99\" the string."};
  const slot = h("div");
  const text = h("textarea", {rows: 3, placeholder: "Hello", value: query.text ?? ""});
  const except = input({placeholder: "doll-3"});
  const priority = h("select", {}, ["normal", "high", "low"].map((value) => h("option", {value}, value)));
  const ttl = input({type: "number", min: 0, inputmode: "numeric", placeholder: "no limit"});
  const collapse = input({placeholder: "none"});
  const own = input({placeholder: "assigned by the gateway"});
  const json = h("textarea", {rows: 12, spellcheck: "false", "aria-label": "Record as JSON"});
  const exceptField = field("Except devices", except);
  const drawTarget = () => {
    show(slot, kind === "all" ? "" : field({device: "Device", devices: "Devices", user: "User", group: "Group"}[kind], target[kind], hints[kind]));
    exceptField.hidden = kind === "device" || kind === "devices";
  };
  const form = h(
    "div",
    {class: "form"},
    h("div", {class: "field"}, h("span", {class: "label"}, "To"), choice("To", "to", KINDS, kind, (value) => {
      kind = value;
      drawTarget();
    })),
    slot,
    field("Text", text),
    h(
      "details",
      {},
      h("summary", {}, "Options"),
      h("div", {class: "form more"}, h("div", {class: "row"}, field("Priority", priority), field("Time to live, seconds", ttl, "0: only open connections get it")), h("div", {class: "row"}, field("Collapse key", collapse, "Replaces older messages with this key"), field("Message id", own, "For traces")), exceptField),
    ),
  );
  const raw = h("div", {hidden: true}, field("Record", json, "The value of a record, as backends write it to the topic."));
  const element = h(
    "div",
    {class: "form", on: {input: onChange, change: onChange}},
    choice("Compose as", "mode", [["form", "Form"], ["json", "JSON"]], mode, (value) => {
      if (value === "json" && json.value.trim() === "") json.value = pretty(build());
      mode = value;
      form.hidden = mode !== "form";
      raw.hidden = mode !== "json";
    }),
    form,
    raw,
  );
  drawTarget();

  function build() {
    const members = [];
    const add = (name, value) => members.push(`${JSON.stringify(name)}:${value}`);
    const device = target.device.value.trim();
    if (kind === "device") add("device_id", JSON.stringify(device));
    if (kind === "devices") add("to", `{"devices":${JSON.stringify(words(target.devices.value))}}`);
    if (kind === "user") add("to", `{"user":${userJson(target.user.value.trim())}}`);
    if (kind === "group") add("to", `{"group":${JSON.stringify(target.group.value.trim())}}`);
    if (kind === "all") add("to", '{"all":true}');
    const excluded = words(except.value);
    if (excluded.length && !exceptField.hidden) add("except", `{"devices":${JSON.stringify(excluded)}}`);
    add("text", JSON.stringify(text.value));
    add("timestamp", JSON.stringify(new Date().toISOString().replace(/\.\d+/, "")));
    add("success", "true");
    if (priority.value !== "normal") add("priority", JSON.stringify(priority.value));
    if (ttl.value !== "") add("ttl", String(Number(ttl.value)));
    if (collapse.value !== "") add("collapse_key", JSON.stringify(collapse.value));
    if (own.value !== "") add("id", JSON.stringify(own.value));
    return `{${members.join(",")}}`;
  }

  return {element, read: () => (mode === "json" ? json.value : build()), kind: () => (mode === "json" ? "json" : kind)};
}

/** JSON with a member a line; a text that is no JSON stays as it is. */
export function pretty(text) {
  try {
    const value = parse(text);
    return hasBig(value) ? text : JSON.stringify(value, null, 2);
  } catch {
    return text;
  }
}

const hasBig = (value) => typeof value === "bigint" || (value !== null && typeof value === "object" && Object.values(value).some(hasBig));
