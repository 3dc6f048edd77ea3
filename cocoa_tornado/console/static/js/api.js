// The admin API, with the operator's token. Throws ApiError for everything but a 2xx.

import {part} from "./format.js";
import {session, signOut} from "./session.js";

const BASE = new URL("api/v1/admin/", location.origin + location.pathname);
const events = new EventTarget();
let failures = 0;

/** status: 0 if there was no answer. scope: the one that the token lacks. */
export class ApiError extends Error {
  constructor(status, message, {scope = "", retryAfter = 0} = {}) {
    super(message);
    Object.assign(this, {status, scope, retryAfter});
  }
}

/** How often in a row there was no answer. */
export const connection = {
  get failures() {
    return failures;
  },
  onChange: (listener) => events.addEventListener("change", listener),
};

function note(hasAnswered) {
  const before = failures;
  failures = hasAnswered ? 0 : failures + 1;
  if (before !== failures) events.dispatchEvent(new Event("change"));
}

/** JSON, in which integers beyond 2^53 keep all their digits: user ids may be that long. */
export function parse(text) {
  return JSON.parse(text, (_, value, context) => {
    const source = context?.source;
    const isCut = typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(source ?? "");
    return isCut ? BigInt(source) : value;
  });
}

/** The path devices/<id>/box of path("devices", id, "box"). Browsers remove "." and ".." from paths, encoded or not: such
 * an id is in the query. */
export function path(...parts) {
  const removed = parts.find((each) => each === "." || each === "..");
  const way = parts.map((each) => (each === removed ? "-" : part(each))).join("/");
  return removed === undefined ? way : `${way}?id=${removed}`;
}

async function failure(response) {
  let message = response.statusText || `status ${response.status}`;
  try {
    message = (await response.json()).message ?? message;
  } catch {
    // A proxy's page.
  }
  const scope = /^Missing scope (\S+)$/.exec(message)?.[1] ?? "";
  return new ApiError(response.status, message, {scope, retryAfter: Number(response.headers.get("Retry-After")) || 0});
}

/** fetch() of something below the admin API. */
export async function open(method, target, {query = {}, body, signal, headers = {}} = {}) {
  const url = new URL(BASE + target);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  const used = session.token;
  let response;
  try {
    response = await fetch(url, {
      method,
      body,
      signal,
      headers: {Authorization: `Bearer ${used}`, ...headers},
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    note(false);
    throw new ApiError(0, "The server is not responding");
  }
  note(true);
  if (response.ok) return response;
  const error = await failure(response);
  if (error.status === 401 && used === session.token) signOut(error.message);
  throw error;
}

async function json(method, target, options) {
  const response = await open(method, target, options);
  const text = await response.text();
  return text === "" ? null : parse(text);
}

/** api.get(path("devices", id), {query, signal}). A body is text, or a value that becomes JSON. */
export const api = {
  get: (target, options = {}) => json("GET", target, options),
  delete: (target, options = {}) => json("DELETE", target, options),
  put: (target, body, options = {}) => json("PUT", target, {...options, body: asText(body)}),
  post: (target, body, options = {}) => json("POST", target, {...options, body: asText(body)}),
};

const asText = (body) => (typeof body === "string" || body === undefined ? body : JSON.stringify(body));

/** Wait, or throw if the signal aborts. */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort); // a page that stays open waits thousands of times
      resolve();
    }, ms);
    signal?.addEventListener("abort", abort, {once: true});
  });
}

/** After how long to try again: 1, 2, 4 ... 15 s, and a part of that at random. */
export const backoff = (attempt) => Math.min(15_000, 1000 * 2 ** Math.min(attempt, 4)) * (0.75 + Math.random() / 2);

/** Call load again and again until the signal aborts, not while the page is hidden. onError gets what it throws;
 * there is no other attempt after a 403. Each wait is slower times as long as the one before, up to half a minute. */
export async function poll(load, {everyMs, slower = 1, signal, onError = () => {}}) {
  let attempt = 0;
  while (!signal.aborted) {
    let wait = everyMs;
    everyMs = Math.max(everyMs, Math.min(30_000, everyMs * slower));
    try {
      await load();
      attempt = 0;
    } catch (error) {
      if (signal.aborted) return;
      onError(error);
      if (error.status === 403) return;
      wait = Math.max(backoff(attempt++), (error.retryAfter ?? 0) * 1000, everyMs);
    }
    try {
      await pause(wait, signal);
      while (document.hidden) await pause(500, signal);
    } catch {
      return;
    }
  }
}
