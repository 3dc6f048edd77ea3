// Small line charts, drawn as SVG.

import {h, show, svg} from "./dom.js";
import {clock} from "./format.js";

const WIDTH = 300;
const HEIGHT = 84;
const TOP = 17; // the label of the upper end stands above the lines

/** The next round number above. */
function ceiling(value) {
  if (!(value > 0)) return 1;
  const base = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * base).find((round) => round >= value * 1.04) ?? base * 20;
}

/** Parts of a path, one for each unbroken run of numbers. */
function runs(values) {
  let [found, run] = [[], []];
  values.forEach((value, at) => {
    if (Number.isFinite(value)) run.push([at, value]);
    else if (run.length) [found, run] = [[...found, run], []];
  });
  return run.length ? [...found, run] : found;
}

/** A chart that is drawn again by update(points), each {at: ms, values: [number or null, ...]}; the first value is the
 * main one.
 * @param format value -> text; @param size how many points fit; @param least smallest upper end of the scale */
export function chart(label, {format, names = [""], size = 60, least = 0}) {
  const drawing = svg("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true"});
  const top = h("span", {class: "top"});
  const readout = h("span", {class: "readout", hidden: true});
  const figure = h("figure", {class: "chart", role: "img", "aria-label": label}, drawing, top, readout);
  let points = [];
  let pointer = null;

  const x = (at) => ((at + size - points.length) / (size - 1)) * WIDTH;

  function draw() {
    const main = points.flatMap((point) => point.values).filter(Number.isFinite);
    const max = ceiling(Math.max(least, ...main));
    const y = (value) => HEIGHT - 1 - (value / max) * (HEIGHT - TOP - 2);
    const paths = names.flatMap((_, series) =>
      runs(points.map((point) => point.values[series])).flatMap((run) => {
        const line = run.map(([at, value], step) => `${step ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
        const base = `L${x(run.at(-1)[0]).toFixed(1)} ${HEIGHT}L${x(run[0][0]).toFixed(1)} ${HEIGHT}Z`;
        const shape = svg("path", {d: line, class: series ? "second" : null});
        return series ? [shape] : [svg("path", {d: line + base, class: "area"}), shape];
      }),
    );
    const grid = [max, max / 2].map((value) => svg("line", {x1: 0, x2: WIDTH, y1: y(value), y2: y(value)}));
    const at = pointer === null ? -1 : Math.round(pointer * (size - 1)) - size + points.length;
    const point = points[at];
    const mark = point && svg("line", {class: "at", x1: x(at), x2: x(at), y1: 0, y2: HEIGHT});
    show(drawing, grid, paths, mark);
    show(top, main.length ? format(max) : "");
    readout.hidden = !point;
    if (point) {
      const shown = point.values.map((value, series) => `${names[series]} ${Number.isFinite(value) ? format(value) : "–"}`.trim());
      show(readout, `${clock(new Date(point.at), {date: "never"})}  ${shown.join("  ")}`);
    }
    const last = points.at(-1)?.values[0];
    figure.setAttribute("aria-label", Number.isFinite(last) ? `${label}: now ${format(last)}, scale up to ${format(max)}` : `${label}: no values yet`);
  }

  figure.addEventListener("pointermove", (event) => {
    const box = figure.getBoundingClientRect();
    pointer = (event.clientX - box.left) / box.width;
    draw();
  });
  figure.addEventListener("pointerleave", () => {
    pointer = null;
    draw();
  });
  draw();
  return {
    figure,
    update(next) {
      points = next.slice(-size);
      draw();
    },
  };
}
