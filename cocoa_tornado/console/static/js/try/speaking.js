// The panel in which one speaks: microphone or file, level, and words.

import {h, show} from "../dom.js";
import {line} from "../format.js";
import {icon} from "../icons.js";
import {note, panel} from "../parts.js";
import {Level} from "./level.js";
import {mayHaveMicrophone, openMicrophone, play, readFile} from "./sound.js";
import {Words} from "./words.js";

const MAX_BACKLOG = 64 * 1024; // two seconds: what comes too late is worth less than silence
const SILENT_S = 3;

// What is wrong, and what one can do about it.
const TROUBLE = {
  insecure: ["The microphone requires https", () => ["Browsers allow the microphone over https or on localhost only. This page is from ", h("code", {}, location.origin), ". You can send a sound file instead."]],
  denied: ["Microphone blocked", () => ["Allow the microphone for this site in the browser or in the system settings, and press Speak again."]],
  none: ["No microphone found", () => ["Connect one and press Speak again, or send a sound file."]],
  busy: ["Cannot open the microphone", () => ["Another program may be using it. Close that program, and press Speak again."]],
  file: ["Cannot decode this file", () => ["Use WAV. Most browsers also decode MP3, Ogg, FLAC and MP4."]],
  long: ["File too long", () => ["The limit is 60 seconds."]],
  other: ["Something went wrong", (error) => [line(error.message)]],
};

const QUIET = {
  nothing: ["No audio. ", "The microphone is open but delivers no audio. Firefox also needs an audio output device."],
  silence: ["Silence. ", "Check that the right microphone is selected and switched on."],
};

const minutes = (ms) => `${Math.floor(ms / 60_000)}:${String(Math.floor(ms / 1000) % 60).padStart(2, "0")}`;

/** @param link of the device; signal: ends everything; isSpeechOff: () => boolean */
export function speakingPanel({link, signal, isSpeechOff}) {
  const level = new Level();
  const words = new Words("Recognized words appear here.");
  const speak = h("button", {class: "button primary large", type: "button", "data-key": "speak"});
  const chooser = h("input", {type: "file", accept: "audio/*,.wav", hidden: true, "aria-label": "Sound file"});
  const file = h("button", {class: "button large", type: "button", on: {click: () => chooser.click()}}, icon("file"), "Send a sound file");
  const status = h("p", {class: "small muted number", role: "status"});
  const notes = h("div", {class: "notes", role: "alert"});
  const hint = h("span", {class: "escape", hidden: true}, h("kbd", {class: "kbd"}, "Esc"), " to stop");
  // What is being sent, or about to be: {what, isOpening, stop, sent: pieces on this connection, farewell: text}
  let source = null;
  let tick = null;
  let dropped = 0;
  let isOff = false;

  function draw() {
    const isOpen = link.isOpen;
    const isSpeaking = source?.what === "microphone";
    show(speak, icon(source ? "stop" : "try"), source ? "Stop" : "Speak");
    speak.classList.toggle("is-live", isSpeaking && !source.isOpening);
    speak.disabled = !isOpen || (!source && !mayHaveMicrophone());
    hint.hidden = source === null;
    file.disabled = !isOpen || source !== null;
    if (!source && !isOpen) show(status, "Connect the device first.");
  }

  const troubleNote = (kind, error) => {
    const [title, text] = TROUBLE[kind] ?? TROUBLE.other;
    return note(kind === "insecure" ? "warn" : "bad", h("strong", {}, `${title}. `), text(error));
  };
  const trouble = (error) => show(notes, troubleNote(error.kind, error));

  /** Before anything is tried. */
  function preface() {
    isOff = isSpeechOff();
    const off = isOff && note("warn", h("strong", {}, "Speech recognition is off. "), "This gateway ignores audio. To enable it, use the setting ", h("code", {}, "speech"), ".");
    show(notes, off, !mayHaveMicrophone() && troubleNote("insecure"));
  }

  function onBlock({pcm, level: loudness}) {
    level.push(loudness);
    if (link.backlog > MAX_BACKLOG) dropped++;
    else if (link.send(pcm) && source !== null) source.sent++;
  }

  function begin(what) {
    const mine = {what, isOpening: true, stop: () => {}, sent: 0, farewell: null};
    [source, dropped] = [mine, 0];
    level.reset();
    preface();
    return mine;
  }

  /** Audio flows from now on. */
  function flows(mine, name) {
    mine.isOpening = false;
    const began = performance.now();
    let warned = null;
    const say = () => {
      const lasted = performance.now() - began;
      show(status, `${minutes(lasted)} · `, name, dropped ? ` · ${dropped} chunks dropped: the network is too slow` : null);
      if (mine.what !== "microphone") return;
      const quiet = level.count === 0 && lasted > SILENT_S * 1000 ? "nothing" : level.isSilent(SILENT_S) ? "silence" : null;
      if (quiet === warned) return;
      warned = quiet;
      preface();
      if (quiet) notes.append(note("warn", h("strong", {}, QUIET[quiet][0]), QUIET[quiet][1]));
    };
    status.removeAttribute("role"); // a clock is not worth an announcement
    tick = setInterval(say, 500);
    say();
    draw();
  }

  function end(mine, text) {
    if (source !== mine) return;
    source = null;
    clearInterval(tick);
    status.setAttribute("role", "status");
    show(status, mine.farewell ?? text);
    level.reset();
    // The gateway would wait for silence. Where it has heard nothing, this would be an ordinary message.
    if (mine.sent && !isOff) link.send('{"type":"audio_end"}');
    draw();
  }

  async function startMicrophone() {
    const mine = begin("microphone");
    show(status, "Opening the microphone. The browser may ask for permission.");
    draw();
    try {
      const gone = new AbortController();
      mine.stop = () => gone.abort();
      const microphone = await openMicrophone({onBlock, onEnd: () => stop("The microphone was disconnected."), signal: AbortSignal.any([signal, gone.signal])});
      if (source !== mine) return void microphone.stop();
      mine.stop = microphone.stop;
      flows(mine, `${line(microphone.label || "Microphone")}, ${microphone.rateHz / 1000} kHz to 16 kHz`);
    } catch (error) {
      if (source !== mine || signal.aborted) return;
      source = null;
      show(status);
      trouble(error);
      draw();
    }
  }

  async function sendFile(chosen) {
    const mine = begin("file");
    const cancel = new AbortController();
    mine.stop = () => cancel.abort();
    show(status, "Decoding…");
    draw();
    try {
      const samples = await readFile(chosen);
      if (source !== mine) return;
      flows(mine, line(chosen.name));
      await play(samples, {onBlock, signal: AbortSignal.any([signal, cancel.signal])});
      end(mine, "Sent.");
    } catch (error) {
      if (source !== mine || signal.aborted) return;
      source = null;
      show(status);
      trouble(error);
      draw();
    }
  }

  async function stop(text = "") {
    const mine = source;
    if (mine === null) return;
    mine.farewell ??= text;
    await mine.stop();
    end(mine, text);
  }

  speak.addEventListener("click", () => (source ? stop() : startMicrophone()));
  chooser.addEventListener("change", () => {
    const [chosen] = chooser.files;
    chooser.value = "";
    if (chosen && source === null) sendFile(chosen);
  });
  addEventListener("keydown", (event) => event.key === "Escape" && !event.defaultPrevented && stop(), {signal});
  addEventListener("pagehide", () => stop(), {signal});
  signal.addEventListener("abort", () => {
    clearInterval(tick);
    source?.stop();
    source = null;
  });
  preface();
  draw();

  return {
    element: panel(
      "Speak",
      h("div", {class: "speaking"}, h("div", {class: "buttons"}, speak, file, chooser), notes, level.element, status, words.element),
      {side: hint},
    ),
    /** A message has come. */
    take: (message) => words.take(message),
    /** The gateway may have said whether speech is on. */
    learned() {
      if (isSpeechOff() !== isOff) preface();
    },
    /** The connection has come, or gone. */
    changed() {
      if (!link.isOpen) words.cut();
      if (!link.isOpen && source !== null) {
        source.sent = 0;
        stop(source.what === "microphone" ? "Connection ended; the microphone is off." : "Connection ended.");
      } else if (link.isOpen && source === null) {
        show(status, isOff ? "" : "Ready.");
      }
      draw();
    },
  };
}
