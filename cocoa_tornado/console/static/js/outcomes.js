// What became of a message at a device, in marks and words.

export const OUTCOMES = {
  acknowledged: ["ok", "the device has acknowledged it, or a later message of its lane"],
  written: ["ok", "a socket of the device has taken it"],
  waiting: ["info", "in the device’s box; without a mailbox, in the queue of its connection"],
  not_connected: ["warn", "the device was not connected and nothing keeps its messages, or it has left the group or user"],
  expired: ["warn", "its time to live ended first"],
  overflow: ["bad", "dropped from a full box or queue"],
  collapsed: ["", "a newer message with its collapse_key has replaced it"],
  superseded: ["warn", "it reached a server that no longer held the device"],
  slow_consumer: ["bad", "the connection was closed because the device read too slowly"],
  quarantined: ["bad", "the record is invalid and went to the quarantine"],
  fault: ["bad", "an internal error; the log has it"],
  unknown: ["", "not known: under way, or longer ago than the servers remember"],
  others: ["", "devices that have no row of their own"],
};

export const kindOf = (outcome) => OUTCOMES[outcome]?.[0] ?? "";
export const meaningOf = (outcome) => OUTCOMES[outcome]?.[1] ?? "";
