import {nothing, pageHead} from "../parts.js";

export const title = "explain";

export function render(main) {
  main.append(pageHead(title), nothing("Not yet"));
}
