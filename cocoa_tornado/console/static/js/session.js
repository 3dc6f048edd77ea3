// Who is signed in. The token is in this module's memory and nowhere else: a reload forgets it.

const SCOPES = ["admin:read", "admin:write", "admin:text"];
const events = new EventTarget();
let token = "";
let claims = {};

/** What stands in a token; {} if that can't be read. */
export function claimsOf(text) {
  try {
    const payload = text.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const data = Uint8Array.from(atob(payload), (char) => char.charCodeAt(0));
    const found = JSON.parse(new TextDecoder().decode(data));
    return found !== null && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

/** Take a token out of #token=..., and the token out of the address. Returns whether there was one. */
export function takeFromFragment() {
  const found = /^#token=([^&]*)/.exec(location.hash);
  if (found === null) return false;
  history.replaceState(null, "", `${location.pathname}${location.search}#/`);
  signIn(decoded(found[1]));
  return true;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Use this token from now on; the server judges it. */
export function signIn(text) {
  token = text.replace(/^\s*Bearer\s/i, "").replace(/\s/g, "");
  if (!/^[\x21-\x7e]+$/.test(token)) {
    // No header can have it.
    signOut("This is not a token.");
    return;
  }
  claims = claimsOf(token);
  events.dispatchEvent(new CustomEvent("change"));
}

/** Forget the token.
 * @param reason why, for the person who has to sign in again */
export function signOut(reason = "") {
  token = "";
  claims = {};
  events.dispatchEvent(new CustomEvent("change", {detail: reason}));
}

export const onChange = (listener) => events.addEventListener("change", (event) => listener(event.detail ?? ""));

export const session = {
  get token() {
    return token;
  },
  get isSignedIn() {
    return token !== "";
  },
  get subject() {
    return typeof claims.sub === "string" ? claims.sub : "";
  },
  /** Date, or null if the token does not say, or names a time that no calendar has */
  get expires() {
    const moment = new Date(typeof claims.exp === "number" ? claims.exp * 1000 : NaN);
    return Number.isNaN(moment.getTime()) ? null : moment;
  },
  get scopes() {
    const words = typeof claims.scope === "string" ? claims.scope.split(" ") : claims.scope;
    return Array.isArray(words) ? SCOPES.filter((scope) => words.includes(scope)) : [];
  },
  /** What the token says; the server decides. */
  may(scope) {
    return this.scopes.includes(scope);
  },
};
