import {nothing, pageHead} from "../parts.js";

export const title = "devices";

export function render(main) {
  main.append(pageHead(title), nothing("Not yet"));
}
