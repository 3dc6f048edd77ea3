// What the end of a connection means, and when to connect again, as docs/protocol.rst has it. Pure.

const [BASE_MS, CAP_MS, SLOW_MS] = [1000, 60_000, [60_000, 300_000]];

/** A connection that lasted so long resets the backoff. */
export const STABLE_MS = 60_000;

// [what has happened, what it means, how to go on]
const SOON = "soon"; // with backoff
const SLOW = "slow"; // every few minutes: an early attempt cannot succeed
const TOKEN = "token"; // with a new token

const CLOSES = {
  1000: ["Closed", "The connection was closed in the usual way.", SOON],
  1001: ["Server going away", "The server stops or restarts and has asked its devices to come back.", SOON],
  1002: ["Protocol error", "The gateway could not read a frame.", SLOW],
  1006: ["Connection lost", "The connection ended without a word: the network, a proxy or the server is gone.", SOON],
  1007: ["Not UTF-8", "The gateway received text that is not UTF-8.", SLOW],
  1008: ["Against the rules", "No pong came back in time, or too many messages were sent.", SOON],
  1009: ["Message too big", "A message was larger than the gateway, or its broker, accepts.", SOON],
  1013: ["Too slow", "This device did not read, or send, as fast as it must; its place was needed.", SOON],
  4401: ["Token expired", "The gateway no longer accepts the token of this connection. A new one is needed.", TOKEN],
  4409: ["Taken over", "Another connection of the same device took the place of this one.", SLOW],
  4410: ["Disconnected by an operator", "An operator closed this connection.", SOON],
};

const REFUSALS = {
  400: ["Refused", "The request was malformed.", SLOW],
  401: ["Token not accepted", "The gateway does not accept the token.", TOKEN],
  403: ["Not permitted", "The device is blocked, or pages of this address may not connect.", SLOW],
  404: ["Not found", "There is no gateway at this address.", SLOW],
  409: ["Already connected", "Another connection of this device is open, and answers.", SOON],
  426: ["Connection lost", "The connection could not be opened, but nothing is wrong now.", SOON],
  429: ["Too many attempts", "The gateway asks for patience.", SOON],
  503: ["Not available", "The gateway is full, stopping, or not ready yet.", SOON],
};

const UNSEEN = "The gateway refuses, or does not answer. Which of the two is hidden from this page, for devices have a port of their own.";

/** The end of a connection that was open: {title, text, detail, how}. */
export function closed(code, reason = "") {
  const [title, text, how] = CLOSES[code] ?? ["Closed", "The gateway closed the connection.", SOON];
  return {title, text, detail: reason ? `${code}, “${reason}”` : String(code), how, code};
}

/** An attempt that the gateway answered with a status instead; 0: there was no answer, null: the page can't see it. */
export function refused(status, message = "") {
  if (status === null) return {title: "No connection", text: UNSEEN, detail: "", how: SOON, code: null};
  const [title, text, how] = REFUSALS[status] ?? ["No connection", "The gateway does not answer at this address.", SOON];
  return {title, text, detail: status ? (message ? `${status}, “${message}”` : String(status)) : "", how, code: status};
}

/** How long to wait after an end, in ms.
 * @param attempt how many ended shortly before
 * @param askedMs what the message "reconnect" said: exactly that, for the server spreads its devices; null: nothing
 * @param retryAfterMs a minimum
 * @param random () => 0 to 1
 */
export function delay(end, attempt, {askedMs = null, retryAfterMs = 0, random = Math.random} = {}) {
  if (askedMs !== null) return askedMs;
  const [low, high] = end.how === SLOW ? SLOW_MS : [0, Math.min(CAP_MS, BASE_MS * 2 ** Math.min(attempt, 10))];
  return retryAfterMs + low + random() * (high - low);
}
