// What a page looks like, in numbers: targets that are hard to hit, and colours that are hard to tell apart.
(() => {
  const TARGETS = "a[href], button, input, select, textarea, summary, [role=button], [role=checkbox], [role=tab]";
  const isSeen = (element) => element.checkVisibility({visibilityProperty: true}) && element.getBoundingClientRect().width > 1;
  const name = (element) => {
    const label = (element.getAttribute("aria-label") || element.textContent || element.name || "").trim().slice(0, 30);
    return `${element.tagName.toLowerCase()}.${element.getAttribute("class") ?? ""} "${label}"`;
  };

  /** Whether a link stands between words of the same line: its height is that of the text. */
  function isInSentence(element) {
    if (getComputedStyle(element).display !== "inline") return false;
    let around = element.parentElement;
    while (getComputedStyle(around).display === "inline") around = around.parentElement;
    return [...around.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && /\p{L}{2}/u.test(node.data));
  }

  /** Targets below 24 by 24 CSS pixels (WCAG 2.2, 2.5.8). A label is a part of its checkbox. */
  const smallTargets = () =>
    [...document.querySelectorAll(TARGETS)].filter(isSeen).flatMap((element) => {
      const boxes = [element, element.closest("label")].map((each) => each?.getBoundingClientRect()).filter(Boolean);
      const [width, height] = ["width", "height"].map((side) => Math.max(...boxes.map((box) => box[side])));
      const isEnough = width >= 24 && height >= 24;
      return isEnough || isInSentence(element) ? [] : [`${name(element)} ${Math.round(width)}x${Math.round(height)}`];
    });

  const pen = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});

  /** [red, green, blue, alpha], alpha from 0 to 1 */
  function channels(colour) {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = pen.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  }

  const over = (front, back) => back.map((value, at) => front[at] * front[3] + value * (1 - front[3]));

  /** What is behind the text of an element; null: something that lies below it by its position only. */
  function behind(element) {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      const style = getComputedStyle(each);
      const colour = channels(style.backgroundColor);
      if (style.backgroundImage !== "none") return null;
      layers.push(colour);
      if (colour[3] === 1) break;
      if (/absolute|fixed/.test(style.position) && each.tagName !== "INPUT") return null;
    }
    return layers.reduceRight((back, front) => over(front, back), [255, 255, 255]);
  }

  function luminance(rgb) {
    const [red, green, blue] = rgb.map((each) => each / 255).map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  function ratio(one, other) {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  }

  const found = (element, what, colour, back, least) => {
    if (back === null) return [`${name(element)} ${what}: nothing certain is behind it`];
    const value = ratio(over(channels(colour), back), back);
    return value >= least ? [] : [`${name(element)} ${what} ${value.toFixed(2)}:1`];
  };

  function texts() {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const elements = new Set();
    while (walker.nextNode()) if (walker.currentNode.data.trim()) elements.add(walker.currentNode.parentElement);
    return [...elements].filter((each) => isSeen(each) && !each.closest(":disabled, option, .unseen"));
  }

  /** Text below 4.5:1, or 3:1 if it is large; edges of fields, lines, icons and dots below 3:1 (1.4.3 and 1.4.11). */
  function faint() {
    const all = texts().flatMap((element) => {
      const {color, fontSize, fontWeight} = getComputedStyle(element);
      const size = parseFloat(fontSize);
      const isLarge = size >= 24 || (size >= 18.66 && fontWeight >= 700);
      return found(element, "text", color, behind(element), isLarge ? 3 : 4.5);
    });
    for (const field of [...document.querySelectorAll("input, textarea, select")].filter(isSeen)) {
      if (field.disabled || field.readOnly || getComputedStyle(field).opacity === "0") continue;
      if (!/checkbox|radio/.test(field.type)) all.push(...found(field, "edge", getComputedStyle(field).borderTopColor, behind(field), 3));
      if (field.placeholder) all.push(...found(field, "placeholder", getComputedStyle(field, "::placeholder").color, behind(field), 4.5));
    }
    for (const shape of document.querySelectorAll("svg :is(path, rect, line)")) {
      // The grid of a chart and the area below its line say nothing that the line does not.
      if (shape.matches(".area, line:not(.at)") || !isSeen(shape.closest("svg")) || shape.closest(":disabled")) continue;
      const {fill, stroke} = getComputedStyle(shape);
      const ink = stroke === "none" ? fill : stroke;
      if (ink !== "none") all.push(...found(shape.closest("svg").parentElement, "drawing", ink, behind(shape.closest("svg").parentElement), 3));
    }
    for (const item of document.querySelectorAll(".events li, .trace li")) all.push(...found(item, "dot", getComputedStyle(item, "::before").backgroundColor, behind(item), 3));
    return all;
  }

  globalThis.measure = () => ({
    targets: [...new Set(smallTargets())],
    faint: [...new Set(faint())],
    wide: Math.max(0, document.documentElement.scrollWidth - innerWidth),
    unlabelled: [...document.querySelectorAll("input, select, textarea")].filter((each) => isSeen(each) && !each.labels?.length && !each.ariaLabel).map(name),
  });
})();
