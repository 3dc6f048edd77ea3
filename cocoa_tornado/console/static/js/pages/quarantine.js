// Rejected records: inspect, correct and requeue them.

import {api, backoff, path, pause} from "../api.js";
import {h, show} from "../dom.js";
import {bytes, line, lines, plural} from "../format.js";
import {icon} from "../icons.js";
import {action, ask, failed, field, id, loading, note, nothing, pageHead, panel, pill, time, toast, traceLink} from "../parts.js";
import {pretty} from "../record.js";
import {session} from "../session.js";

export const title = "Quarantine";

const STEP = 50;
const MOST = 1000;

const REASONS = {
  empty: "the record is empty", too_large: "the record is too large", not_utf8: "the value is not UTF-8", too_deep: "the JSON is nested too deeply", not_json: "the value is not JSON",
  not_object: "the JSON is not an object", duplicate_device: "device_id occurs twice", headers: "the headers cannot be read", to: "invalid field to", except: "invalid field except",
  priority: "invalid field priority", ttl: "invalid field ttl", collapse_key: "invalid field collapse_key", id: "two ids, or an invalid one", no_device: "no valid device_id", not_unicode: "unpaired surrogate",
};

export function render(main, {signal}) {
  let limit = STEP;
  let attempt = 0;
  let again = new AbortController();
  const list = h("div", {}, loading(6));
  const side = h("span", {role: "status"});
  const more = h("button", {class: "button", type: "button", hidden: true}, "Show more");
  more.addEventListener("click", () => {
    limit = Math.min(MOST, limit * 4);
    load();
  });
  main.append(
    pageHead(title, {lead: "Invalid records are copied to the quarantine topic and not delivered. Each can be requeued once, corrected or unchanged.", actions: action("Refresh", load, {scope: null})}),
    panel("Rejected records", [list, h("div", {class: "body", hidden: false}, more)], {bare: true, side}),
  );

  async function load() {
    again.abort();
    again = new AbortController();
    const {signal: waiting} = again;
    try {
      const {records} = await api.get("quarantine", {query: {limit}, signal});
      attempt = 0;
      show(list, records.length ? records.map(rejected) : nothing("No rejected records", "The quarantine topic is empty."));
      show(side, `${plural(records.length, "record")}, newest first`);
      more.hidden = records.length < limit || limit >= MOST;
      more.parentElement.hidden = more.hidden;
    } catch (error) {
      if (signal.aborted || waiting.aborted) return;
      show(list, failed(error, load));
      // There is nothing to lose yet, and nobody wants to press a button until the server is back.
      if (error.status === 0) pause(backoff(attempt++), waiting).then(load, () => {});
    }
  }

  function rejected(record) {
    const state = h("span", {role: "status"}, record.requeued && pill("ok", "requeued"));
    const buttons = h("span", {class: "side buttons"});
    const note409 = h("div", {role: "alert"});
    const settle = (text, kind = "ok", ...more) => {
      show(state, pill(kind, text), more);
      show(buttons);
    };
    const requeue = async (body) => {
      const {id: messageId} = await api.post(path("quarantine", record.partition, record.offset, "requeue"), body);
      settle("requeued", "ok", " as ", traceLink(messageId));
      toast("ok", "Requeued as ", traceLink(messageId), ".");
    };
    const guarded = async (body) => {
      try {
        await requeue(body);
      } catch (error) {
        if (error.status === 409) {
          settle("already requeued", "warn");
          show(note409, note("warn", "This record has already been requeued. It is not published again."));
        } else if (error.status === 404) {
          settle("deleted", "warn");
          show(note409, note("warn", "The topic no longer has this record."));
        } else throw error;
      }
    };
    if (!record.requeued) {
      show(buttons, action("Correct…", () => correct(record, guarded), {size: "tiny"}), action("Requeue unchanged", () => guarded(undefined).catch((error) => {
        if (error.status !== 400) throw error;
        show(note409, note("bad", h("strong", {}, `${line(error.message)}. `), "The record would be rejected again. Correct it first."));
      }), {size: "tiny"}));
    }
    const origin = record.topic === null ? "" : [id(`${record.topic}/${record.source_partition ?? "?"}/${record.source_offset ?? "?"}`)];
    return h(
      "article",
      {class: "rejected"},
      h("header", {}, pill("bad", line(record.reason ?? "unknown")), h("span", {}, REASONS[record.reason] ?? ""), state, buttons),
      h("p", {class: "muted small"}, time(record.timestamp), " · ", origin, record.key !== null && [" · key ", id(record.key)], ` · ${bytes(record.value_bytes)}`, dropped(record.dropped)),
      value(record),
      record.headers.length > 0 && h("p", {class: "small"}, h("span", {class: "muted"}, "headers "), record.headers.map((each, at) => [at ? " · " : "", id(each.name), ": ", each.value === null ? h("span", {class: "muted"}, icon("lock")) : id(each.value)])),
      note409,
    );
  }

  signal.addEventListener("abort", () => again.abort());
  load();
}

const dropped = (parts) => Object.entries(parts).map(([name, size]) => ` · ${line(name)} omitted (${bytes(size)}): too large for the topic`);

function value(record) {
  if (record.value !== null) return h("pre", {class: "block", tabindex: 0, role: "group", "aria-label": "Value"}, lines(record.value), record.is_cut && h("span", {class: "muted"}, " … truncated"));
  if (record.value_bytes === 0) return null;
  const why = session.may("admin:text") ? "not shown: the page has reached its limit" : "the text requires the scope admin:text";
  return h("p", {class: "muted small"}, icon("lock"), ` ${bytes(record.value_bytes)}: ${why}`);
}

async function correct(record, requeue) {
  const isWhole = record.value !== null && !record.is_cut;
  const text = h("textarea", {name: "value", rows: 12, spellcheck: "false", value: isWhole ? pretty(record.value) : ""});
  await ask("Correct this record", {
    text: ["The gateway checks the value and publishes it with the key of the record. The cocoa.* headers are removed."],
    confirm: "Requeue",
    content: [isWhole ? null : note("warn", "The console does not have the whole value. Enter it again."), field("Value", text, REASONS[record.reason] ? `Rejected: ${REASONS[record.reason]}.` : null)],
    run: (form) => requeue(form.get("value")),
  });
}
