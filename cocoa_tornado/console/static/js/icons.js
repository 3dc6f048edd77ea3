// Line icons of 24 by 24, drawn here.

import {svg} from "./dom.js";

const PATHS = {
  overview: "M4 13h5V4H4zM15 20h5v-9h-5zM4 20h5v-3H4zM15 7h5V4h-5z",
  devices: "M7 3h10a1 1 0 0 1 1 1v16a1 1 0 0 1-1 1H7a1 1 0 0 1-1-1V4a1 1 0 0 1 1-1zM10 18h4M9.5 8.5a3.5 3.5 0 0 1 5 0M11 11.2a1.4 1.4 0 0 1 2 0",
  tail: "M3 12h4l2.5-7 5 14L17 12h4",
  trace: "M6 4v9a4 4 0 0 0 4 4h8M15 14l3 3-3 3M6 4l-2.4 2.6M6 4l2.4 2.6",
  explain: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM9.6 9.2a2.4 2.4 0 1 1 3.5 2.2c-.7.4-1.1.9-1.1 1.8M12 16.6v.1",
  send: "M21 3 3.5 10.2l7 3.3 3.3 7zM10.5 13.5 21 3",
  quarantine: "M12 3 4.5 6v6c0 4.4 3.1 7.6 7.5 9 4.4-1.4 7.5-4.6 7.5-9V6zM12 8v4.6M12 15.8v.1",
  try: "M12 3a3 3 0 0 1 3 3v5a3 3 0 0 1-6 0V6a3 3 0 0 1 3-3zM5.5 11a6.5 6.5 0 0 0 13 0M12 17.5V21M9 21h6",
  sun: "M12 16.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9zM12 2v2.5M12 19.5V22M2 12h2.5M19.5 12H22M4.9 4.9l1.8 1.8M17.3 17.3l1.8 1.8M4.9 19.1l1.8-1.8M17.3 6.7l1.8-1.8",
  moon: "M20 14.5A8.5 8.5 0 1 1 9.5 4a7 7 0 0 0 10.5 10.5z",
  half: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 3v18M12 7h6.5M12 11h8.8M12 15h8.3M12 19h5",
  back: "M15 5l-7 7 7 7",
  menu: "M4 7h16M4 12h16M4 17h16",
  out: "M14 4h4a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2h-4M10 8l-4 4 4 4M6 12h9",
  check: "M5 12.5l4.5 4.5L19 7.5",
  warn: "M12 4 2.8 20h18.4zM12 10v4.5M12 17.2v.1",
  cross: "M6 6l12 12M18 6 6 18",
  lock: "M6.5 11h11a1 1 0 0 1 1 1v7a1 1 0 0 1-1 1h-11a1 1 0 0 1-1-1v-7a1 1 0 0 1 1-1zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  plug: "M9 3v5M15 3v5M6.5 8h11v3a5.5 5.5 0 0 1-11 0zM12 16.5V21",
  inbox: "M4 13l2.6-7.3A1 1 0 0 1 7.5 5h9a1 1 0 0 1 .9.7L20 13v5a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1zM4 13h4.5l1.3 2.5h4.4l1.3-2.5H20",
  copy: "M9 9h10a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1H9a1 1 0 0 1-1-1V10a1 1 0 0 1 1-1zM16 6V4a1 1 0 0 0-1-1H5a1 1 0 0 0-1 1v10a1 1 0 0 0 1 1h1",
  search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM16.2 16.2 21 21",
  pause: "M9 5v14M15 5v14",
  play: "M7 4.5v15l12-7.5z",
  stop: "M7 7h10v10H7z",
  file: "M7 3h7l4 4v13a1 1 0 0 1-1 1H7a1 1 0 0 1-1-1V4a1 1 0 0 1 1-1zM14 3v4h4M9.5 14v2M12 12v6M14.5 13.5v3",
  info: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 11v5.5M12 7.6v.1",
};

/** An icon beside words that say the same. */
export const icon = (name) =>
  svg(
    "svg",
    {viewBox: "0 0 24 24", width: 16, height: 16, fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true"},
    svg("path", {d: PATHS[name]}),
  );
