// What would happen to a record if it were published now.

import {api} from "../api.js";
import {h, show} from "../dom.js";
import {action, failed, note, nothing, pageHead, panel, scopeHint} from "../parts.js";
import {recordForm} from "../record.js";
import {session} from "../session.js";
import {verdict} from "../verdict.js";

export const title = "Explain";

export function render(main, {query, signal}) {
  const result = h("div", {role: "status"}, nothing("No result yet", "The result applies the router’s rules to the current devices and boxes."));
  const record = recordForm({query});
  const run = action("Explain", async () => {
    try {
      show(result, verdict(await api.post("explain", record.read(), {signal})));
    } catch (error) {
      show(result, failed(error, null, {isPolled: false}));
    }
  }, {kind: "primary", scope: "admin:read"});
  main.append(
    pageHead(title, {lead: "A dry run: which devices would get the record now, which boxes would store it, and why. Nothing is sent."}),
    h("div", {class: "notes"}, session.may("admin:read") ? null : note("info", scopeHint("admin:read"))),
    h("div", {class: "grid"}, panel("Record", [record.element, h("div", {class: "buttons foot"}, run)]), panel("Result", result, {bare: true})),
  );
}
