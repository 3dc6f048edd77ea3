// What POST explain has answered.

import {h} from "./dom.js";
import {line, number, plural} from "./format.js";
import {deviceLink, missingNote, note, nothing, pill, table} from "./parts.js";

const KINDS = {send: "ok", store: "info", drop: "warn"};

const COLUMNS = [
  {title: "Device", cell: (row) => deviceLink(row.device_id)},
  {title: "Result", cell: (row) => pill(KINDS[row.would] ?? "", line(row.would))},
  {title: "Reason", cell: (row) => line(row.why)},
];

/** The counts in a line, and the devices in a table. */
export function verdict(answer) {
  if (!answer.valid) return [note("bad", h("strong", {}, `${line(answer.message ?? answer.reason)}.`), " The record would be quarantined with the reason ", h("code", {}, line(answer.reason)), ".")];
  if (!answer.devices.length) return [missingNote(answer.missing), nothing("No recipients", "The record addresses no known device. It would count as not connected.")];
  const counts = Object.entries(answer.counts).map(([would, count]) => pill(KINDS[would] ?? "", `${line(would)}: ${number(count)}`));
  return [
    missingNote(answer.missing),
    h("div", {class: "tally body"}, counts, answer.more && pill("", "more devices not listed")),
    table("Result by device", COLUMNS, answer.devices),
  ];
}

/** How many devices it is for, in words. */
export const recipients = (answer) => `${plural(answer.devices.length, "device")}${answer.more ? " and more" : ""}`;
