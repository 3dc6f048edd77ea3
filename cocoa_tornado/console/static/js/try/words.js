// The words of a device as they are recognized: partial results, each replaced by the next and in the end by the final
// one. Only final ones are announced.

import {h, show} from "../dom.js";
import {lines} from "../format.js";

const KEPT = 50;

export class Words {
  #finals = h("ol", {class: "finals", "aria-live": "polite", "aria-relevant": "additions", "aria-label": "What was said"});
  #partials = h("div", {class: "partials"});
  #open = new Map(); // by session
  #empty;

  constructor(...empty) {
    this.#empty = h("p", {class: "muted"}, empty);
    this.element = h("div", {class: "words"}, this.#empty, this.#finals, this.#partials);
  }

  /** Whether a message is a result of speech; if so, it is shown. */
  take(message) {
    if (message?.type !== "transcription" || typeof message.final !== "boolean") return false;
    const session = String(message.session_id);
    this.#empty.hidden = true;
    if (!message.final) {
      if (!this.#open.has(session)) {
        this.#open.set(session, h("p"));
        this.#partials.append(this.#open.get(session));
      }
      show(this.#open.get(session), h("bdi", {}, lines(message.text ?? "")), h("span", {"aria-hidden": "true"}, " …"));
      return true;
    }
    this.#drop(session);
    const failed = message.success === false;
    const text = failed ? `Not recognized: ${message.error ?? "an error"}` : message.text || "(no words)";
    this.#finals.append(h("li", {class: failed ? "is-bad" : message.text ? null : "muted"}, h("bdi", {}, lines(text))));
    while (this.#finals.children.length > KEPT) this.#finals.firstChild.remove();
    this.element.scrollTop = this.element.scrollHeight;
    return true;
  }

  /** The connection has ended: nothing comes after the partial results. */
  cut() {
    for (const session of [...this.#open.keys()]) this.#drop(session);
  }

  #drop(session) {
    this.#open.get(session)?.remove();
    this.#open.delete(session);
  }
}
