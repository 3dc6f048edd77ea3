// The connection of a device: its token, its socket, and another one after each end, until it is told to stop.

import {api, parse, path, pause} from "../api.js";
import {claimsOf} from "../session.js";
import {STABLE_MS, closed, delay, refused} from "./endings.js";

const ACK_MS = 1000;
const UNKNOWN_CURSOR = "Unknown cursor";
// What the gateway says to this page's handshakes, where the status leaves no doubt.
const MESSAGES = {400: UNKNOWN_CURSOR, 409: "Device already connected"};

/** There is no token, and trying again will not help. why: what getToken says; shown to the person */
export class NoToken extends Error {
  constructor(why, isWrong = false) {
    super("no token");
    Object.assign(this, {why, isWrong});
  }
}

function json(text) {
  try {
    return parse(text);
  } catch {
    return undefined;
  }
}

export class Link {
  #options;
  #run = null; // an AbortController: of what was begun by connect()
  #wake = null;
  #socket = null;
  #cursors = new Map(); // by device: in memory, as long as the page
  #acknowledging = null;

  /**
   * @param options.findUrl async () => URL of /ws
   * @param options.getToken async (deviceId, isAgain) => token; isAgain: the last one is no longer accepted
   * @param options.onState (state) with a phase: off, token, connecting, open {protocol, url, token},
   *   waiting {end, at: when it goes on, in ms since 1970}, or stuck {why, isWrong}
   * @param options.onText (way, text, value), way: up or down; value: its JSON, or undefined
   * @param options.onBinary (way, size)
   * @param options.onEnd (end, wasOpen), as endings.js makes it
   */
  constructor(options) {
    this.#options = options;
  }

  get isOpen() {
    return this.#socket !== null;
  }

  /** Bytes that the network has not taken yet. */
  get backlog() {
    return this.#socket?.bufferedAmount ?? 0;
  }

  connect(deviceId) {
    this.disconnect();
    this.#run = new AbortController();
    this.#loop(deviceId, this.#run.signal);
  }

  /** Close the socket with 1000, and stay away. */
  disconnect() {
    if (this.#run === null) return;
    this.#acknowledge();
    this.#run.abort();
    [this.#run, this.#socket] = [null, null];
    this.#options.onState({phase: "off"});
  }

  /** Do not wait any longer. */
  hurry() {
    this.#wake?.();
  }

  /** Send text or an ArrayBuffer; returns whether there was a connection. */
  send(data) {
    if (this.#socket === null) return false;
    this.#socket.send(data);
    if (typeof data === "string") this.#options.onText("up", data, json(data));
    else this.#options.onBinary("up", data.byteLength);
    return true;
  }

  async #loop(deviceId, signal) {
    const {onState, onEnd} = this.#options;
    let [token, isAgain, attempt] = [null, false, 0];
    while (!signal.aborted) {
      let how;
      try {
        if (token === null) {
          onState({phase: "token"});
          token = await this.#options.getToken(deviceId, isAgain, signal);
        }
        if (signal.aborted) return;
        onState({phase: "connecting"});
        how = await this.#talk(deviceId, token, signal);
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof NoToken) {
          this.#run = null;
          onState({phase: "stuck", why: error.why, isWrong: error.isWrong});
          return;
        }
        how = {end: refused(error.status ?? 0, error.message), retryAfterMs: (error.retryAfter ?? 0) * 1000};
      }
      if (signal.aborted) return;
      const {end, lastedMs = 0} = how;
      onEnd(end, lastedMs > 0);
      if (how.isAtOnce) continue;
      if (lastedMs > STABLE_MS) attempt = 0;
      if (end.how === "token") {
        [token, isAgain] = [null, true];
        // The token of a connection that lasted has simply come to its end.
        if (lastedMs > STABLE_MS) continue;
      }
      const waitMs = delay(end, attempt++, how);
      onState({phase: "waiting", end, at: Date.now() + waitMs});
      await this.#rest(waitMs, signal);
    }
  }

  /** Wait until it is time, hurry() is called, or the signal aborts. */
  async #rest(ms, signal) {
    const early = new AbortController();
    const abort = () => early.abort();
    this.#wake = abort;
    signal.addEventListener("abort", abort);
    await pause(ms, early.signal).catch(() => {});
    signal.removeEventListener("abort", abort);
    if (this.#wake === abort) this.#wake = null;
  }

  /** One connection: {end, lastedMs, askedMs, retryAfterMs, isAtOnce}. */
  async #talk(deviceId, token, signal) {
    const url = await this.#options.findUrl();
    if (signal.aborted) return null;
    const cursor = this.#cursors.get(deviceId);
    // Without a mailbox both mean nothing.
    url.search = new URLSearchParams({interim: "true", ...(cursor ? {after: cursor} : {cursors: "1"})});
    const end = await this.#converse(url, deviceId, token, signal);
    if (end.lastedMs > 0 || end.code !== 1006) return {...end, end: closed(end.code, end.reason)};
    return this.#whyRefused(url, deviceId, token, signal);
  }

  #converse(url, deviceId, token, signal) {
    return new Promise((resolve) => {
      let socket;
      try {
        // Browsers let pages set no header. A query would stand in the logs of proxies.
        socket = new WebSocket(url, ["bearer", token]);
      } catch {
        throw new NoToken("This is not a token.", true);
      }
      let [opened, askedMs] = [0, null];
      const leave = () => socket.close(1000);
      signal.addEventListener("abort", leave);
      socket.onopen = () => {
        if (signal.aborted) return;
        opened = performance.now();
        this.#socket = socket;
        this.#options.onState({phase: "open", protocol: socket.protocol, url, token});
      };
      socket.onmessage = ({data}) => {
        if (signal.aborted) return;
        if (typeof data !== "string") {
          this.#options.onBinary("down", data.size);
          return;
        }
        const value = json(data);
        if (value?.type === "reconnect" && Number.isFinite(value.after_ms)) askedMs = Math.max(0, value.after_ms);
        this.#options.onText("down", data, value);
        if (typeof value?.cursor === "string") this.#seen(deviceId, value.cursor);
      };
      socket.onclose = ({code, reason}) => {
        signal.removeEventListener("abort", leave); // a device comes back again and again
        if (this.#socket === socket) {
          clearTimeout(this.#acknowledging?.timer);
          [this.#socket, this.#acknowledging] = [null, null];
        }
        resolve({code, reason, askedMs, lastedMs: opened ? Math.max(1, performance.now() - opened) : 0});
      };
    });
  }

  /** A cursor covers all messages before it; those on their way are acknowledged together. */
  #seen(deviceId, cursor) {
    if (this.#cursors.get(deviceId) === cursor) return;
    this.#cursors.set(deviceId, cursor);
    if (this.#acknowledging === null) this.#acknowledging = {timer: setTimeout(() => this.#acknowledge(), ACK_MS)};
    this.#acknowledging.cursor = cursor;
  }

  #acknowledge() {
    if (this.#acknowledging === null) return;
    clearTimeout(this.#acknowledging.timer);
    const {cursor} = this.#acknowledging;
    this.#acknowledging = null;
    this.send(JSON.stringify({type: "ack", cursor}));
  }

  /** Browsers hide why a handshake was refused. A plain GET of the same URL says it and takes no place. */
  async #whyRefused(url, deviceId, token, signal) {
    const plain = new URL(url);
    plain.protocol = location.protocol;
    if (plain.origin !== location.origin) return this.#lastRefusal(deviceId, token, signal);
    let answer;
    try {
      const headers = {Authorization: `Bearer ${token}`};
      answer = await fetch(plain, {headers, signal, cache: "no-store", credentials: "omit", redirect: "error"});
    } catch {
      return {end: refused(0)};
    }
    const message = (await answer.json().catch(() => null))?.message ?? "";
    return this.#refusal(deviceId, answer.status, message, (Number(answer.headers.get("Retry-After")) || 0) * 1000);
  }

  #refusal(deviceId, status, message, retryAfterMs = 0) {
    const isAtOnce = message === UNKNOWN_CURSOR && this.#cursors.delete(deviceId);
    return {end: refused(status, message), retryAfterMs, isAtOnce};
  }

  /** Where devices have a port of their own the page can't read its answers; but the gateway remembers them. */
  async #lastRefusal(deviceId, token, signal) {
    if (claimsOf(token).exp * 1000 < Date.now()) return {end: refused(401)};
    try {
      const {events, blocked} = await api.get(path("devices", deviceId), {signal});
      const last = events.findLast((event) => event.event === "refused");
      if (last === undefined || Date.now() - Date.parse(last.at) > 10_000) return {end: refused(null)};
      const message = last.code === 403 ? (blocked ? "Device blocked" : "Origin not allowed") : MESSAGES[last.code];
      return this.#refusal(deviceId, last.code, message);
    } catch {
      return {end: refused(null)};
    }
  }
}
