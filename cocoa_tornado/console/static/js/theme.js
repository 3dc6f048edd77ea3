// Light or dark: as the system is, until the button is used. Nothing is stored, so a reload follows the system again.

import {h, show} from "./dom.js";
import {icon} from "./icons.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";

export function themeButton() {
  const button = h("button", {class: "button quiet icon", type: "button"});
  const draw = () => {
    const label = isDark() ? "Light theme" : "Dark theme";
    button.setAttribute("aria-label", label);
    button.title = label;
    show(button, icon(isDark() ? "sun" : "moon"));
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    draw();
  });
  dark.addEventListener("change", draw);
  draw();
  return button;
}
