// What POST explain has answered.

import {h} from "./dom.js";
import {line, number, plural} from "./format.js";
import {deviceLink, missingNote, note, nothing, pill, table} from "./parts.js";

const KINDS = {send: "ok", store: "info", drop: "warn"};
const WORDS = {send: "sent now", store: "stored in boxes", drop: "dropped"};

const COLUMNS = [
  {title: "Device", cell: (row) => deviceLink(row.device_id)},
  {title: "Would", cell: (row) => pill(KINDS[row.would] ?? "", line(row.would))},
  {title: "Why", cell: (row) => line(row.why)},
];

/** The counts in a line, and the devices in a table. */
export function verdict(answer) {
  if (!answer.valid) return [note("bad", h("strong", {}, `${line(answer.message ?? answer.reason)}.`), " It would go to the quarantine, with the reason ", h("code", {}, line(answer.reason)), ".")];
  if (!answer.devices.length) return [missingNote(answer.missing), nothing("No recipient", "Nobody is in that group, or has that user. That is no error: the message would be counted as not connected.")];
  const counts = Object.entries(answer.counts).map(([would, count]) => pill(KINDS[would] ?? "", `${number(count)} ${WORDS[would] ?? would}`));
  return [
    missingNote(answer.missing),
    h("div", {class: "tally body"}, counts, answer.more && pill("", "and more than 1,000 others")),
    table("What would become of it", COLUMNS, answer.devices),
  ];
}

/** How many devices it is for, in words. */
export const recipients = (answer) => `${plural(answer.devices.length, "device")}${answer.more ? " and more" : ""}`;
