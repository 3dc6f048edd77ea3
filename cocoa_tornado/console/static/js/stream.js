// Server-sent events over fetch(), which can send a token; EventSource cannot.

import {open, parse} from "./api.js";

/** Read events until the stream ends or the signal aborts.
 * @param onOpen is called once the answer has begun
 * @param onEvent gets the data of each event, parsed */
export async function readEvents(target, {query, signal, onOpen, onEvent}) {
  const response = await open("GET", target, {query, signal, headers: {Accept: "text/event-stream"}});
  onOpen();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const blocks = (left + value).split("\n\n");
    left = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((each) => each.startsWith("data:")).map((each) => each.slice(5).trimStart());
      if (data.length) onEvent(parse(data.join("\n")));
    }
  }
}
