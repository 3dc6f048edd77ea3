// The outcomes of a message at a device: their marks and meanings.

export const OUTCOMES = {
  acknowledged: ["ok", "the device acknowledged it, or a later message of the same lane"],
  written: ["ok", "written to a socket of the device"],
  waiting: ["info", "in the device’s box or, without a mailbox, in the queue of its connection"],
  not_connected: ["warn", "the device was not connected and has no box, or it is no longer addressed"],
  expired: ["warn", "its time to live ended before delivery"],
  overflow: ["bad", "dropped from a full box or queue"],
  collapsed: ["", "replaced by a newer message with the same collapse_key"],
  superseded: ["warn", "forwarded to a server that no longer held the device"],
  slow_consumer: ["bad", "the connection was closed because the device read too slowly"],
  quarantined: ["bad", "the record is invalid and was copied to the quarantine"],
  fault: ["bad", "an internal error; see the log"],
  unknown: ["", "in progress, or too old for the servers to remember"],
  others: ["", "devices without a row of their own"],
};

export const kindOf = (outcome) => OUTCOMES[outcome]?.[0] ?? "";
export const meaningOf = (outcome) => OUTCOMES[outcome]?.[1] ?? "";
