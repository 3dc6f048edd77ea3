// What pages are made of: panels, tables, states, dialogs.

import {append, h, show} from "./dom.js";
import {ago, clock, line, lines, runs, userText} from "./format.js";
import {icon} from "./icons.js";
import {href} from "./router.js";
import {session} from "./session.js";

// -- values

/** An id, whatever it is made of. */
export function id(text) {
  const shown = line(text);
  const parts = runs(shown);
  return parts.length > 1 ? h("bdi", {class: "id", dir: "ltr"}, parts.map((part) => h("bdi", {}, part))) : h("bdi", {class: "id"}, shown);
}

export const deviceLink = (deviceId) => h("a", {href: href(["devices", deviceId])}, id(deviceId));

export const traceLink = (messageId) => h("a", {href: href(["trace", messageId])}, id(messageId));

export const userLink = (user) =>
  user === null || user === undefined
    ? h("span", {class: "muted"}, "–")
    : h("a", {href: href(["devices"], {user: userText(user)}), title: "Devices of this user"}, id(userText(user)));

export const groupChips = (groups, ...more) =>
  h(
    "span",
    {class: "chips"},
    groups.map((name) => h("a", {class: "chip", href: href(["devices"], {group: name}), title: "Devices of this group"}, id(name))),
    more,
  );

/** A local time; the UTC shows on hover. */
export function time(stamp, {ms = false, relative = false, date = "auto"} = {}) {
  if (stamp === null || stamp === undefined) return h("span", {class: "muted"}, "–");
  const moment = new Date(stamp);
  if (Number.isNaN(moment.getTime())) return h("span", {}, line(stamp));
  const utc = moment.toISOString();
  return h("time", {datetime: utc, title: `${utc.replace("T", " ").replace("Z", "")} UTC`}, relative ? ago(moment) : clock(moment, {ms, date}));
}

/** Text of a message or, without admin:text, its length. */
export function message(text, length) {
  if (text === null || text === undefined) {
    return h("span", {class: "muted", title: "The text requires the scope admin:text"}, icon("lock"), ` ${length ?? "?"} bytes`);
  }
  return h("bdi", {class: "text"}, lines(text));
}

/** kind: ok, warn, bad, info, or nothing */
export const pill = (kind, text) => {
  const mark = {ok: "check", warn: "warn", bad: "cross", info: "info"}[kind];
  return h("span", {class: `pill ${kind}`}, mark && icon(mark), text);
};

// -- frames

export function pageHead(title, {lead = null, actions = null, before = null} = {}) {
  return h(
    "div",
    {class: "page-head"},
    before,
    h("h1", {tabindex: -1}, title),
    actions && h("div", {class: "actions buttons"}, actions),
    lead && h("p", {class: "lead"}, lead),
  );
}

/** A framed section. side: what stands right of its title. */
export function panel(title, body, {side = null, bare = false} = {}) {
  const head = title === null ? null : h("header", {}, h("h2", {}, title), side && h("div", {class: "side"}, side));
  return h("section", {class: "panel"}, head, bare ? body : h("div", {class: "body"}, body));
}

export const facts = (rows) =>
  h("dl", {class: "facts"}, rows.filter(Boolean).map(([name, ...value]) => [h("dt", {}, name), h("dd", {}, value)]));

/** A table whose rows are cards on a phone.
 * @param columns [{title, cell: (row) => node, end: numbers to the right, whole: never wrapped, named: names that wrap, but not at once, minor: on wide screens only}];
 *   the first cell names the row
 * @param isNarrow whether the rows fit a phone as they are */
export function table(caption, columns, rows, {isNarrow = false} = {}) {
  const head = columns.map(({title, end, minor}) => h("th", {scope: "col", class: [end && "end", minor && "minor"].filter(Boolean).join(" ") || null}, title));
  const body = rows.map((row) =>
    h(
      "tr",
      {},
      columns.map(({title, cell, end, whole, named, minor}, at) => {
        const classes = [end && "end", whole && "whole", named && "named", minor && "minor"].filter(Boolean).join(" ");
        return at === 0 ? h("th", {scope: "row", class: named && "named"}, cell(row)) : h("td", {"data-label": title, class: classes || null}, cell(row));
      }),
    ),
  );
  return h(
    "div",
    {class: "scroll", role: "region", "aria-label": caption, tabindex: 0},
    h("table", {class: isNarrow ? null : "cards"}, h("caption", {class: "unseen"}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)),
  );
}

// -- states

export const loading = (rows = 4) =>
  h("div", {class: "skeleton", role: "status"}, h("span", {class: "unseen"}, "Loading"), Array.from({length: rows}, () => h("i")));

export const nothing = (title, ...text) => h("div", {class: "state"}, icon("inbox"), h("strong", {}, title), text.length ? h("p", {}, text) : null);

/** What to do about a token without a scope: one that has it, and those of the present one. */
export const scopeHint = (scope) => {
  const scopes = [...new Set(["admin:read", ...session.scopes, scope])];
  const command = `cocoa mint-token --admin ${scopes.map((each) => `--scope ${line(each)}`).join(" ")}`;
  return ["Your token lacks the scope ", h("code", {}, line(scope)), ". Get one that has it: ", h("code", {class: "command"}, command)];
};

/** What an error looks like; retry: what its button does; isPolled: whether the page asks again without that. */
export function failed(error, retry, {isPolled = true} = {}) {
  if (error.scope) {
    return h("div", {class: "state", role: "alert"}, icon("lock"), h("strong", {}, "Not permitted"), h("p", {}, scopeHint(error.scope)));
  }
  const title = error.status === 0 ? "The server is not responding" : error.status === 404 ? "Not found" : "Request failed";
  return h(
    "div",
    {class: "state", role: "alert"},
    icon(error.status === 0 ? "plug" : "warn"),
    h("strong", {}, title),
    error.status === 0 ? h("p", {}, isPolled ? "The console retries automatically." : "Try again when the server is back.") : h("p", {}, line(error.message), error.status ? ` (${error.status})` : ""),
    retry && h("button", {class: "button", type: "button", on: {click: retry}}, "Try again"),
  );
}

export const note = (kind, ...text) =>
  h("div", {class: `note ${kind}`}, icon({ok: "check", warn: "warn", bad: "warn", info: "info"}[kind]), h("div", {}, text));

/** The servers whose part of an answer is missing. */
export function missingNote(names) {
  if (!names?.length) return null;
  const known = names.filter((name) => name !== "unknown");
  const text = known.length
    ? ["Some servers did not answer within a second: ", known.map((name, at) => [at ? ", " : "", id(name)]), "."]
    : ["This server does not know the other servers yet."];
  return note("warn", text, " The page is incomplete.");
}

// -- what happens once

/** Say that something has happened. kind: ok, warn, bad, info */
export function toast(kind, ...text) {
  const region = document.getElementById("toasts");
  const close = h("button", {class: "button quiet tiny", type: "button", "aria-label": "Dismiss", on: {click: () => box.remove()}}, icon("cross"));
  const box = h("div", {class: `note ${kind}`}, icon({ok: "check", bad: "warn", warn: "warn", info: "info"}[kind]), h("div", {}, text), close);
  region.append(box);
  while (region.children.length > 3) region.firstChild.remove();
  if (kind !== "bad") setTimeout(() => box.remove(), 7000);
}

/** Say that something has failed. */
export const toastError = (error) =>
  error.scope ? toast("bad", "Not permitted: your token lacks the scope ", h("code", {}, line(error.scope)), ".") : toast("bad", line(error.message));

/** A button that does something on the server: not twice at once, and only if the token permits it. */
export function action(label, run, {kind = "", scope = "admin:write", size = "", key = label} = {}) {
  const may = scope === null || session.may(scope);
  const button = h("button", {class: `button ${kind} ${size}`, type: "button", "data-key": key, disabled: !may, title: may ? null : `Requires the scope ${scope}`}, label);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await run();
    } catch (error) {
      toastError(error);
    } finally {
      button.disabled = false;
      if (document.activeElement === null || document.activeElement === document.body) focusAgain(key);
    }
  });
  return button;
}

/** The focus is lost with what had it: give it to what took its place, or to the page's title. */
function focusAgain(key) {
  const buttons = [...document.querySelectorAll("[data-key]")];
  (buttons.find((each) => each.dataset.key === key && !each.disabled) ?? document.querySelector("main h1"))?.focus();
}

/** Ask before doing something. The focus returns to where it was.
 * @param options confirm: label of the button; content: more of the form; run: async, gets FormData; an error stays in the dialog
 * @returns whether it was done */
export function ask(title, {text = [], confirm = "OK", kind = "primary", content = [], run = async () => {}}) {
  return new Promise((resolve) => {
    const problem = h("p", {class: "problem", role: "alert"});
    const button = h("button", {class: `button ${kind}`, type: "submit"}, confirm);
    const heading = h("h2", {id: "dialog-title"}, title);
    const form = h(
      "form",
      {novalidate: true},
      heading,
      append(h("p", {}), text),
      content,
      problem,
      h("div", {class: "buttons"}, h("button", {class: "button", type: "button", on: {click: () => dialog.close()}}, "Cancel"), button),
    );
    const dialog = h("dialog", {"aria-labelledby": "dialog-title", on: {close: () => end()}}, form);
    let isDone = false;
    const end = () => {
      dialog.remove();
      resolve(isDone);
    };
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      button.disabled = true;
      try {
        await run(new FormData(form));
        isDone = true;
        dialog.close();
      } catch (error) {
        show(problem, error.scope ? scopeHint(error.scope) : line(error.message));
      } finally {
        button.disabled = false;
      }
    });
    document.body.append(dialog);
    dialog.showModal();
    (form.querySelector("[autofocus], input, textarea, select") ?? form.querySelector(".buttons .button")).focus();
  });
}

let lastId = 0;

/** A labelled input, select or textarea. */
export function field(label, control, hint = null) {
  const name = `f${++lastId}`;
  control.id = name;
  if (hint) control.setAttribute("aria-describedby", `${name}-hint`);
  return h("div", {class: "field"}, h("label", {for: name}, label), control, hint && h("span", {class: "hint", id: `${name}-hint`}, hint));
}

export const input = (props = {}) => h("input", {type: "text", autocomplete: "off", spellcheck: "false", autocapitalize: "none", ...props});

/** Radio buttons in a row. options: [[value, label]] */
export function choice(label, name, options, value, onChange = () => {}) {
  return h(
    "div",
    {class: "choice", role: "radiogroup", "aria-label": label},
    options.map(([each, text]) =>
      h("label", {}, h("input", {type: "radio", name, value: each, checked: each === value, on: {change: () => onChange(each)}}), text),
    ),
  );
}

/** A button that puts a text on the clipboard. */
export function copyButton(text, label = "Copy") {
  const button = h("button", {class: "button tiny", type: "button"}, icon("copy"), label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      toast("ok", "Copied.");
    } catch {
      toast("warn", "The browser denied access to the clipboard. Select the text and copy it.");
    }
  });
  return button;
}
