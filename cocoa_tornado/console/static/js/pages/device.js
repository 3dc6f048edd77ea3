import {nothing, pageHead} from "../parts.js";

export const title = "device";

export function render(main) {
  main.append(pageHead(title), nothing("Not yet"));
}
