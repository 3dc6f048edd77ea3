// The frame around the pages: who is signed in, where one is, and whether the server answers.

import {connection} from "./api.js";
import {h, show} from "./dom.js";
import {clock, line} from "./format.js";
import {icon} from "./icons.js";
import * as device from "./pages/device.js";
import * as devices from "./pages/devices.js";
import * as explain from "./pages/explain.js";
import * as overview from "./pages/overview.js";
import * as quarantine from "./pages/quarantine.js";
import * as send from "./pages/send.js";
import * as tail from "./pages/tail.js";
import * as trace from "./pages/trace.js";
import * as tryIt from "./pages/try.js";
import {failed, nothing, note, pageHead} from "./parts.js";
import {here, href} from "./router.js";
import {follow, samples} from "./samples.js";
import {onChange, session, signIn, signOut, takeFromFragment} from "./session.js";
import {themeButton} from "./theme.js";

// A page is a module with title and render(main, {parts, query, signal}): it fills main, and ends what it has begun
// when the signal aborts. A second part in the fragment is a page of its own where "below" names one.
const PAGES = {
  "": {page: overview, name: "Overview", icon: "overview"},
  devices: {page: devices, below: device, name: "Devices", icon: "devices"},
  tail: {page: tail, name: "Live tail", icon: "tail"},
  trace: {page: trace, name: "Trace", icon: "trace", group: "Messages"},
  send: {page: send, name: "Send", icon: "send"},
  explain: {page: explain, name: "Explain", icon: "explain"},
  quarantine: {page: quarantine, name: "Quarantine", icon: "quarantine"},
  try: {page: tryIt, name: "Try it", icon: "try", group: "Testing"},
};

let leave = new AbortController();

// -- signed in

function makeFrame() {
  const main = h("main", {id: "main", tabindex: -1});
  const banner = h("div", {id: "banner", role: "status"});
  const content = h("div", {class: "stack"});
  const nav = h("nav", {class: "nav", id: "nav", "aria-label": "Pages"});
  const menu = h("button", {class: "button quiet icon menu", type: "button", "aria-label": "Menu", "aria-expanded": "false", "aria-controls": "nav"}, icon("menu"));
  const openMenu = (isOpen) => {
    nav.classList.toggle("is-open", isOpen);
    menu.setAttribute("aria-expanded", String(isOpen));
  };
  menu.addEventListener("click", () => openMenu(!nav.classList.contains("is-open")));
  nav.addEventListener("click", (event) => event.target.closest("a") && openMenu(false));
  nav.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      openMenu(false);
      menu.focus();
    }
  });
  const expires = session.expires;
  const head = h(
    "header",
    {class: "head"},
    menu,
    h("a", {class: "brand", href: "#/"}, h("img", {src: "console/icon.svg", alt: "", width: 28, height: 28}), h("span", {}, "cocoa ", h("span", {}, "console"))),
    h(
      "div",
      {class: "who", title: `Scopes: ${session.scopes.join(", ") || "none"}`},
      session.subject && h("span", {class: "name"}, h("bdi", {}, line(session.subject))),
      expires && h("span", {class: "until"}, "until ", h("time", {datetime: expires.toISOString(), title: `${expires.toISOString()} (UTC)`}, clock(expires))),
    ),
    themeButton(),
    h("button", {class: "button quiet icon", type: "button", "aria-label": "Sign out", title: "Sign out", on: {click: () => signOut()}}, icon("out")),
  );
  main.append(banner, content);
  const skip = h("a", {class: "skip", href: "#main", on: {click: (event) => {
    event.preventDefault();
    main.focus();
  }}}, "Skip to content");
  return {whole: h("div", {class: "frame"}, skip, head, nav, main), banner, content, nav};
}

function drawNav(nav, current) {
  const items = Object.entries(PAGES).flatMap(([name, entry]) => {
    const link = h("a", {href: href(name === "" ? [] : [name]), "aria-current": name === current && "page"}, icon(entry.icon), entry.name);
    return [entry.group && h("li", {class: "group"}, entry.group), h("li", {}, link)];
  });
  show(nav, h("ul", {}, items));
}

function drawBanner(banner) {
  const failures = connection.failures;
  // One lost answer may be a restart behind a proxy.
  const text = failures > 1 && note("bad", h("strong", {}, "Connection lost. "), "The page may be out of date. Reconnecting…");
  const isShown = banner.hasChildNodes();
  if (Boolean(text) !== isShown) show(banner, text);
}

function visit(frame) {
  if (takeFromFragment()) return;
  leave.abort();
  leave = new AbortController();
  const {parts, query} = here();
  const [name = "", ...rest] = parts;
  const entry = Object.hasOwn(PAGES, name) ? PAGES[name] : null;
  drawNav(frame.nav, entry === null ? null : name);
  show(frame.content);
  const page = entry === null ? lostPage : rest.length && entry.below ? entry.below : entry.page;
  document.title = `${page.title} · cocoa console`;
  try {
    page.render(frame.content, {parts: rest, query, signal: leave.signal});
  } catch (error) {
    show(frame.content, pageHead(page.title), failed(error));
    console.error(error);
  }
  scrollTo(0, 0);
  return frame.content.querySelector("h1");
}

const lostPage = {
  title: "Page not found",
  render: (main) => main.append(pageHead("Page not found"), nothing("The console has no such page", h("a", {class: "button", href: "#/"}, "Go to the overview"))),
};

// -- signed out

function door(reason) {
  const problem = h("p", {class: "problem", role: "alert", id: "problem"}, reason);
  const token = h("input", {
    type: "password",
    id: "token",
    class: "mono",
    autocomplete: "off",
    spellcheck: "false",
    "aria-describedby": "problem",
    required: true,
    placeholder: "eyJ…",
  });
  const form = h(
    "form",
    {novalidate: true},
    h("img", {src: "console/icon.svg", alt: "", width: 44, height: 44}),
    h("div", {}, h("h1", {}, "cocoa console"), h("p", {}, "Sign in with an admin token. The page keeps it in memory only; reloading or closing the tab discards it.")),
    h("div", {class: "field"}, h("label", {for: "token"}, "Admin token"), token, problem),
    h("button", {class: "button primary", type: "submit"}, "Sign in"),
    h(
      "details",
      {},
      h("summary", {}, "How to get a token"),
      h("p", {class: "muted"}, "On a machine that has the gateway’s keys, run:"),
      h("pre", {tabindex: 0}, "cocoa mint-token --admin --subject ann"),
      h("p", {class: "muted"}, "In development, ", h("code", {}, "make run"), " prints a link that signs you in."),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (token.value.trim()) signIn(token.value);
    else {
      show(problem, "Paste an admin token.");
      token.focus();
    }
  });
  show(document.body, h("main", {class: "door"}, form), toasts());
  document.title = "Sign in · cocoa console";
  token.focus();
}

const toasts = () => h("div", {id: "toasts", role: "status", "aria-live": "polite"});

// -- both

let frame = null;

function change(reason) {
  leave.abort();
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
  follow(session.isSignedIn);
  if (!session.isSignedIn) {
    frame = null;
    door(reason === "Invalid JWT token" ? "The gateway does not accept this token. It has expired, or it is not an admin token for this gateway." : reason);
    return;
  }
  frame = makeFrame();
  show(document.body, frame.whole, toasts());
  visit(frame);
}

addEventListener("hashchange", () => {
  if (frame === null) takeFromFragment();
  else visit(frame)?.focus({preventScroll: true});
});
connection.onChange(() => frame && drawBanner(frame.banner));
samples.onChange(() => frame && samples.error?.status === 429 && drawBanner(frame.banner));
onChange(change);
if (!takeFromFragment()) change("");
