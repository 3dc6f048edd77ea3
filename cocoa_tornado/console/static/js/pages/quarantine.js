import {nothing, pageHead} from "../parts.js";

export const title = "quarantine";

export function render(main) {
  main.append(pageHead(title), nothing("Not yet"));
}
