// Pages by the fragment: #/devices/doll-1?tab=x. What stands there reaches no server.

import {part} from "./format.js";

/** The link to a page: href(["devices", id], {after}) */
export function href(parts, query = {}) {
  const fields = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = fields.map(([name, value]) => `${part(name)}=${part(value)}`).join("&");
  return `#/${parts.map(part).join("/")}${text ? `?${text}` : ""}`;
}

/** Go to a page. replace: the back button does not return to the present one. */
export function go(parts, query = {}, {replace = false} = {}) {
  const target = href(parts, query);
  if (replace) {
    history.replaceState(null, "", target);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else if (location.hash === target) {
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = target;
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** The parts and the query of the present fragment. */
export function here() {
  const [way, ...rest] = location.hash.replace(/^#\/?/, "").split("?");
  const query = {};
  for (const field of rest.join("?").split("&").filter(Boolean)) {
    const [name, ...value] = field.split("=");
    query[decoded(name)] = decoded(value.join("="));
  }
  return {parts: way.split("/").filter(Boolean).map(decoded), query};
}
