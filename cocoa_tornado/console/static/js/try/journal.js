// All that a connection sends and receives, the last of it.

import {h, show} from "../dom.js";
import {bytes, clock, line, lines, plural} from "../format.js";
import {nothing} from "../parts.js";

const KEPT = 200;
const LONGEST = 20_000; // characters of a message that are shown
const SUMMARY = 140;

const cut = (text, length) => (text.length > length ? `${text.slice(0, length)}…` : text);

/** Integers that JSON.parse would round have become BigInt; they show as they were. */
const pretty = (value) => JSON.stringify(value, (_, each) => (typeof each === "bigint" ? JSON.rawJSON?.(String(each)) ?? String(each) : each), 2);

/** The one line of a message: what it says or, if it has no words, its fields but the type. */
function glance(kind, text, value) {
  const said = kind === "transcription" && (value.success === false ? value.error : value.text);
  if (typeof said === "string") return said;
  if (kind === "text") return text;
  const fields = Object.entries(value).filter(([name]) => name !== "type");
  return fields.map(([name, each]) => `${name} ${typeof each === "string" ? each : pretty(each)}`).join(", ");
}

export class Journal {
  #list = h("ol");
  #empty = nothing("No messages yet", "Sent and received messages appear here.");
  #frame;
  #audio = null; // the row that counts binary messages

  constructor() {
    this.#frame = h("div", {class: "journal", role: "region", "aria-label": "Messages", tabindex: 0}, this.#empty, this.#list);
    this.element = this.#frame;
  }

  /** A text message. way: "up" or "down"; value: its JSON, or undefined */
  text(way, text, value) {
    const kind = typeof value?.type === "string" ? value.type : "text";
    const isPartial = value?.type === "transcription" && value.final === false;
    const summary = cut(glance(kind, text, value), SUMMARY);
    const whole = value === undefined ? text : pretty(value);
    this.#add(
      way,
      h(
        "details",
        {},
        h("summary", {}, h("span", {class: "chip"}, line(isPartial ? "partial" : kind)), " ", h("bdi", {}, line(summary))),
        h("pre", {class: "block", tabindex: 0}, lines(cut(whole, LONGEST))),
        h("p", {class: "muted small"}, bytes(new TextEncoder().encode(text).length)),
      ),
      isPartial,
    );
  }

  /** A binary message; those in a row share a line. */
  binary(way, size) {
    if (this.#audio?.way !== way) {
      const what = h("span");
      this.#add(way, what, true);
      this.#audio = {way, what, count: 0, size: 0};
    }
    const audio = this.#audio;
    audio.count++;
    audio.size += size;
    show(audio.what, h("span", {class: "chip"}, "binary"), " ", `${plural(audio.count, "message")}, ${bytes(audio.size)}`);
  }

  /** Something that is not a message. kind: ok, warn, bad, info */
  event(kind, ...text) {
    this.#add("event", h("span", {class: `what is-${kind}`}, text));
  }

  /** Whether binary messages and partial results are shown. */
  showChatter(isShown) {
    this.#frame.classList.toggle("is-calm", !isShown);
  }

  clear() {
    show(this.#list);
    this.#audio = null;
    this.#changed();
  }

  #add(way, what, isChatter = false) {
    const isAtEnd = this.#frame.scrollHeight - this.#frame.scrollTop - this.#frame.clientHeight < 30;
    const now = new Date();
    const name = {up: "sent", down: "received", event: ""}[way];
    this.#audio = null;
    this.#list.append(
      h(
        "li",
        {class: isChatter ? `${way} chatter` : way},
        h("time", {datetime: now.toISOString()}, clock(now, {ms: true, date: "never"})),
        h("span", {class: "way"}, h("span", {"aria-hidden": "true"}, {up: "↑", down: "↓", event: "·"}[way]), h("span", {class: "unseen"}, name)),
        h("div", {class: "what"}, what),
      ),
    );
    while (this.#list.children.length > KEPT) this.#list.firstChild.remove();
    this.#changed();
    if (isAtEnd) this.#frame.scrollTop = this.#frame.scrollHeight;
  }

  #changed() {
    this.#empty.hidden = this.#list.hasChildNodes();
  }
}
