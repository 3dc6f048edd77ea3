// Elements without markup. Every string becomes text, so nothing that a device or a backend says is parsed, and every
// character of it that is invisible or turns the direction is written out.

import {lines} from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["checked", "disabled", "hidden", "open", "readOnly", "required", "selected", "value"]);

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (PROPERTIES.has(name)) {
      element[name] = value;
    } else if (/^(on|style|srcdoc)/.test(name)) {
      throw new TypeError(`${name} is code or style`);
    } else if (value !== false) {
      element.setAttribute(name, value === true ? "" : lines(value));
    }
  }
  append(element, children);
  return element;
}

/** Add children: nodes, texts, numbers, and lists of these. Nothing is added for null, undefined and false. */
export function append(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(lines(child)));
  }
  return element;
}

/** h("a", {class: "id", href: "#/", on: {click}}, "text", node, ...) */
export const h = (tag, props = {}, ...children) => fill(document.createElement(tag), props, children);

export const svg = (tag, props = {}, ...children) => fill(document.createElementNS(SVG, tag), props, children);

/** Replace everything in an element. */
export function show(element, ...children) {
  element.replaceChildren();
  return append(element, ...children);
}

/** Make these the children of an element, and change only what differs: the focus, the selection and what is scrolled or
 * open stay as they are. A focused element that has to be replaced gives its focus to the one with the same data-key or
 * address. Listeners of what stays are those of the first time. */
export function refresh(element, ...children) {
  const active = document.activeElement;
  const key = active && element.contains(active) ? keyOf(active) : null;
  patch(element, append(document.createDocumentFragment(), ...children));
  if (key !== null && !element.contains(document.activeElement)) {
    const again = [...element.querySelectorAll("[data-key], a[href]")].find((each) => keyOf(each) === key);
    again?.focus({preventScroll: true});
  }
  return element;
}

const keyOf = (element) => element.closest("[data-key]")?.dataset.key ?? element.getAttribute("href");

function patch(element, fresh) {
  const before = [...element.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, at) => {
    const old = before[at];
    if (old === undefined) element.append(node);
    else if (old.nodeType === Node.TEXT_NODE && node.nodeType === Node.TEXT_NODE) {
      if (old.data !== node.data) old.data = node.data;
    } else if (isAlike(old, node)) patch(old, node);
    else old.replaceWith(node);
  });
  before.slice(after.length).forEach((node) => node.remove());
}

/** Whether two elements differ in their children at most. The reader opens and closes details. */
function isAlike(one, other) {
  if (one.nodeType !== Node.ELEMENT_NODE || one.nodeName !== other.nodeName) return false;
  const names = (element) => element.getAttributeNames().filter((name) => name !== "open");
  return names(one).length === names(other).length && names(other).every((name) => one.getAttribute(name) === other.getAttribute(name));
}
