// Values as text.

// Control characters, and those that have no width or turn the direction of what follows. An emoji may need U+200D.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const UNSEEN_IN_TEXT = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const JOINERS = /[\u200c\u200d]/g;
// Letters that are written from right to left, with their marks and the blanks between them; or everything else.
const RIGHT = "\\u0590-\\u08ff\\ufb1d-\\ufdff\\ufe70-\\ufefc\\u{10800}-\\u{10fff}\\u{1e800}-\\u{1efff}";
const RUNS = new RegExp(`[${RIGHT}](?:[${RIGHT}\\p{M}]| +(?=[${RIGHT}]))*|[^${RIGHT}]+`, "gu");
const LONE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

const escaped = (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** An id, on one line, in which every character is seen. No two look the same: a backslash that only looks like the
 * beginning of an escape is one itself. */
export const line = (value) =>
  String(value).replace(/\\(?=u[0-9a-f]{4})/g, escaped).replace(UNSEEN, escaped).replace(JOINERS, escaped).replace(LONE, escaped);

/** The parts of a text that have one direction each. Shown each by itself, from left to right, they leave no doubt about
 * their order: digits and dashes beside Hebrew or Arabic letters would move to their other side. */
export const runs = (text) => text.match(RUNS) ?? [];

/** Text of several lines, without what would disturb those around it. */
export const lines = (value) => String(value).replace(UNSEEN_IN_TEXT, escaped).replace(LONE, escaped);

/** A user id as the admin API reads it: 99 and "99" are two users. */
export const userText = (user) => (typeof user === "string" ? JSON.stringify(user) : String(user));

/** A part of a path. */
export const part = (text) => encodeURIComponent(String(text).replace(LONE, "\ufffd"));

const pad = (number, digits = 2) => String(number).padStart(digits, "0");

/** A local time of day; with the date, unless that is today. */
export function clock(time, {ms = false, date = "auto"} = {}) {
  const now = new Date();
  const day = time.toDateString() === now.toDateString();
  const hours = `${pad(time.getHours())}:${pad(time.getMinutes())}:${pad(time.getSeconds())}`;
  const shown = ms ? `${hours}.${pad(time.getMilliseconds(), 3)}` : hours;
  if (date === "never" || (date === "auto" && day)) return shown;
  return `${time.getFullYear()}-${pad(time.getMonth() + 1)}-${pad(time.getDate())} ${shown}`;
}

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/** A duration in its two largest units: 3 h 12 min. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1) return "0 s";
  const at = UNITS.findIndex(([, size]) => seconds >= size);
  const [unit, size] = UNITS[at];
  const whole = Math.floor(seconds / size);
  const rest = UNITS[at + 1] && whole < 10 ? Math.floor((seconds % size) / UNITS[at + 1][1]) : 0;
  return rest ? `${whole} ${unit} ${rest} ${UNITS[at + 1][0]}` : `${whole} ${unit}`;
}

export const ago = (time) => {
  const seconds = (Date.now() - time.getTime()) / 1000;
  return seconds < 2 ? "now" : `${duration(seconds)} ago`;
};

/** 0.83 ms, 12 ms, 1.4 s */
export function milliseconds(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return "–";
  if (ms >= 10_000) return duration(ms / 1000);
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms >= 10 ? Math.round(ms) : Number(ms.toFixed(ms >= 1 ? 1 : 2))} ms`;
}

export function bytes(count) {
  if (count === null || count === undefined) return "–";
  if (count < 1024) return `${count} B`;
  const unit = count < 1024 ** 2 ? 1 : count < 1024 ** 3 ? 2 : 3;
  const value = count / 1024 ** unit;
  return `${value >= 100 ? Math.round(value) : value.toFixed(1)} ${["", "KiB", "MiB", "GiB"][unit]}`;
}

export const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US"));

/** A rate: 0, 0.5, 12, 3,400 */
export function rate(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return value >= 10 || Number.isInteger(value) ? number(Math.round(value)) : value.toFixed(value >= 0.95 ? 1 : 2);
}

export const plural = (count, word, many = `${word}s`) => `${number(count)} ${count === 1 ? word : many}`;
