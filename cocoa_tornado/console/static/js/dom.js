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

/** Replace everything in an element, and put the focus back where it was: on the element with the same data-key. */
export function refresh(element, ...children) {
  const active = document.activeElement;
  const key = active && element.contains(active) ? active.closest("[data-key]")?.dataset.key : undefined;
  show(element, ...children);
  if (key !== undefined) {
    const again = [...element.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key);
    again?.focus({preventScroll: true});
  }
  return element;
}
