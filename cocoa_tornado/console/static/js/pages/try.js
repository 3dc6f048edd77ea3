// A device to try things with: connect, speak into the microphone, watch the words arrive.
//
// The boundary: render(main, {parts, query, signal}) fills main (an empty element below the banner) and ends everything
// when the signal aborts: sockets, tracks, the AudioContext. dom.js makes elements, parts.js the rest; api.post(
// "device-token", {device_id}) returns {token} (scope admin:write); samples.latest?.servers[0]?.device_port is the port
// of /ws if that is not the page's own. An AudioWorklet is a file of its own beside this one: the policy allows 'self'.

import {nothing, pageHead} from "../parts.js";

export const title = "Try it";

export function render(main) {
  main.append(pageHead(title), nothing("Not yet"));
}
