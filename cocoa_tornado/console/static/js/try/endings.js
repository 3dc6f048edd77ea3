// What the end of a connection means, and when to connect again, as docs/protocol.rst has it. Pure.

const [BASE_MS, CAP_MS, SLOW_MS] = [1000, 60_000, [60_000, 300_000]];

/** A connection that lasted so long resets the backoff. */
export const STABLE_MS = 60_000;

// [what has happened, what it means, how to go on]
const SOON = "soon"; // with backoff
const SLOW = "slow"; // every few minutes: an early attempt cannot succeed
const TOKEN = "token"; // with a new token

const CLOSES = {
  1000: ["Closed", "The connection was closed normally.", SOON],
  1001: ["Server going away", "The server is stopping or restarting.", SOON],
  1002: ["Protocol error", "The gateway received an invalid frame.", SLOW],
  1006: ["Connection lost", "The connection ended without a close code: the network, a proxy or the server failed.", SOON],
  1007: ["Not UTF-8", "The gateway received text that is not UTF-8.", SLOW],
  1008: ["Policy violation", "No pong arrived in time, or too many messages were sent.", SOON],
  1009: ["Message too big", "A message was larger than the gateway or the broker accepts.", SOON],
  1013: ["Slow consumer", "The device read or sent too slowly.", SOON],
  4401: ["Token expired", "The token of this connection has expired. The device needs a new one.", TOKEN],
  4409: ["Replaced", "Another connection of this device has replaced it.", SLOW],
  4410: ["Disconnected by an operator", "An operator closed this connection.", SOON],
};

const REFUSALS = {
  400: ["Refused", "The request was malformed.", SLOW],
  401: ["Token not accepted", "The gateway does not accept the token.", TOKEN],
  403: ["Not permitted", "The device is blocked, or the origin of this page is not allowed.", SLOW],
  404: ["Not found", "There is no gateway at this address.", SLOW],
  409: ["Already connected", "Another connection of this device is open.", SOON],
  426: ["Connection lost", "The connection could not be opened. The gateway would accept it now.", SOON],
  429: ["Too many attempts", "Too many attempts in a short time.", SOON],
  503: ["Unavailable", "The gateway is full, stopping, or not ready.", SOON],
};

const UNSEEN = "The gateway refused the connection, or is not responding. The page cannot tell which, because devices have a port of their own.";

/** The end of a connection that was open: {title, text, detail, how}. */
export function closed(code, reason = "") {
  const [title, text, how] = CLOSES[code] ?? ["Closed", "The gateway closed the connection.", SOON];
  return {title, text, detail: reason ? `${code}, “${reason}”` : String(code), how, code};
}

/** An attempt that the gateway answered with a status instead; 0: there was no answer, null: the page can't see it. */
export function refused(status, message = "") {
  if (status === null) return {title: "No connection", text: UNSEEN, detail: "", how: SOON, code: null};
  const [title, text, how] = REFUSALS[status] ?? ["No connection", "The gateway is not responding at this address.", SOON];
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
