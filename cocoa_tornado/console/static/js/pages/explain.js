// What would become of a record if it were published now.

import {api} from "../api.js";
import {h, show} from "../dom.js";
import {action, failed, nothing, pageHead, panel} from "../parts.js";
import {recordForm} from "../record.js";
import {verdict} from "../verdict.js";

export const title = "Explain";

export function render(main, {query, signal}) {
  const result = h("div", {role: "status"}, nothing("Nothing explained yet", "The router’s own rules answer, for the devices and boxes as they are now."));
  const record = recordForm({query});
  const run = action("Explain", async () => {
    try {
      show(result, verdict(await api.post("explain", record.read(), {signal})));
    } catch (error) {
      show(result, failed(error, null, {isPolled: false}));
    }
  }, {kind: "primary", scope: "admin:read"});
  main.append(
    pageHead(title, {lead: "What would become of a record if it were published now: which devices get it, which boxes keep it, and why. Nothing is sent."}),
    h("div", {class: "grid"}, panel("Record", [record.element, h("div", {class: "buttons foot"}, run)]), panel("Result", result, {bare: true})),
  );
}
