// Publish a record.

import {api} from "../api.js";
import {h, show} from "../dom.js";
import {action, ask, failed, note, nothing, pageHead, panel, scopeHint, time, traceLink} from "../parts.js";
import {recordForm} from "../record.js";
import {session} from "../session.js";
import {recipients, verdict} from "../verdict.js";

export const title = "Send";

const WIDE = new Set(["user", "group", "all", "devices", "json"]);

export function render(main, {query, signal}) {
  const result = h("div", {role: "status"}, nothing("Nothing sent yet", "The record is published to the results topic, like the records of backends."));
  const record = recordForm({query});
  const sent = h("ul", {class: "sent"});
  const hint = h("p", {class: "muted small"}, "None. This list is cleared when you leave the page.");

  async function publish(body) {
    const answer = await api.post("messages", body, {signal});
    show(result, h("div", {class: "body"}, note("ok", h("strong", {}, "Published. "), "Message id: ", traceLink(answer.id))));
    show(hint, "This list is cleared when you leave the page.");
    sent.prepend(h("li", {}, time(new Date().toISOString()), " ", traceLink(answer.id)));
  }

  async function send() {
    const body = record.read();
    if (!WIDE.has(record.kind())) return publish(body).catch((error) => show(result, failed(error, null, {isPolled: false})));
    let about = null;
    if (session.may("admin:read")) {
      try {
        about = await api.post("explain", body, {signal});
      } catch (error) {
        return show(result, failed(error, null, {isPolled: false}));
      }
      if (!about.valid) return show(result, verdict(about));
    }
    await ask(about ? `Send this to ${recipients(about)}?` : "Send this?", {
      text: about ? ["Devices that connect before you confirm may get it too."] : ["The number of devices is unknown: your token lacks the scope admin:read."],
      confirm: "Send",
      run: () => publish(body),
    });
  }

  const explain = action("Explain first", async () => {
    try {
      show(result, verdict(await api.post("explain", record.read(), {signal})));
    } catch (error) {
      show(result, failed(error, null, {isPolled: false}));
    }
  }, {scope: "admin:read"});
  main.append(
    pageHead(title, {lead: "Publish a record for devices, a user, a group or all devices."}),
    h("div", {class: "notes"}, session.may("admin:write") ? null : note("info", scopeHint("admin:write"))),
    h("div", {class: "grid"}, panel("Record", [record.element, h("div", {class: "buttons foot"}, action("Send", send, {kind: "primary"}), explain)]), h("div", {class: "stack"}, panel("Result", result, {bare: true}), panel("Sent messages", [sent, hint]))),
  );
}
