// How loud it is: the last seconds as bars or, for those who prefer no motion, one bar that moves twice a second.

import {h, show, svg} from "../dom.js";

const BARS = 60;
const [WIDTH, HEIGHT, STEP] = [360, 56, 6];
const FLOOR_DB = -55;
const QUIET_DB = -48;
const CALM_MS = 500;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** 0 (silence) to 1 (as loud as it can be) */
const share = (level) => Math.max(0, Math.min(1, 1 - (20 * Math.log10(level + 1e-9)) / FLOOR_DB));

export class Level {
  #bars = Array.from({length: BARS}, (_, at) => svg("rect", {x: at * STEP + 1, width: STEP - 2, rx: 1.5}));
  #single = svg("rect", {x: 0, y: HEIGHT / 2 - 6, height: 12, rx: 3, width: 0});
  #shares = new Array(BARS).fill(0);
  #drawing = svg("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true"});
  #drawn = 0;
  #loudest = 0;
  #count = 0;

  constructor() {
    this.element = h("div", {class: "level", role: "meter", "aria-label": "Level", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0}, this.#drawing);
    this.reset();
  }

  /** A tenth of a second. */
  push(level) {
    this.#loudest = Math.max(this.#loudest, level);
    this.element.classList.remove("is-idle");
    this.#count++;
    this.#shares = [...this.#shares.slice(1), share(level)];
    this.#draw(false);
  }

  /** How many tenths of a second there were. */
  get count() {
    return this.#count;
  }

  /** Whether there was nothing but silence for so many seconds from the beginning. */
  isSilent(seconds) {
    return this.#count >= seconds * 10 && 20 * Math.log10(this.#loudest + 1e-9) < QUIET_DB;
  }

  reset() {
    this.#shares.fill(0);
    this.element.classList.add("is-idle");
    [this.#loudest, this.#count] = [0, 0];
    this.#draw(true);
  }

  #draw(isAtOnce) {
    const now = performance.now();
    if (calm.matches && !isAtOnce && now - this.#drawn < CALM_MS) return;
    this.#drawn = now;
    const newest = calm.matches ? Math.max(...this.#shares.slice(-5)) : this.#shares.at(-1);
    this.element.setAttribute("aria-valuenow", Math.round(newest * 100));
    const wanted = calm.matches ? [this.#single] : this.#bars;
    if (this.#drawing.firstChild !== wanted[0]) show(this.#drawing, wanted);
    if (calm.matches) {
      this.#single.setAttribute("width", (newest * WIDTH).toFixed(1));
      return;
    }
    this.#bars.forEach((bar, at) => {
      const height = Math.max(3, this.#shares[at] * HEIGHT);
      bar.setAttribute("y", ((HEIGHT - height) / 2).toFixed(1));
      bar.setAttribute("height", height.toFixed(1));
    });
  }
}
