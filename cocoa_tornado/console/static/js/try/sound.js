// What a device can say: the microphone, or a file. Both give a tenth of a second of 16 kHz PCM at a time, at the speed of
// speech.

import {toPcm} from "./resampler.js";

const RATE_HZ = 16_000;
const BLOCK_MS = 100;
const LAST_MS = 500;
const MAX_FILE_BYTES = 50 * 1024 * 1024;
const MAX_FILE_S = 60;
const WORKLET = new URL("capture.js", import.meta.url).href;

/** kind: insecure, denied, none, busy, file, long, or other */
export class SoundError extends Error {
  constructor(kind, message = kind) {
    super(message);
    this.kind = kind;
  }
}

const KINDS = {NotAllowedError: "denied", NotFoundError: "none", OverconstrainedError: "none", NotReadableError: "busy", AbortError: "busy"};

/** Whether browsers give this page a microphone at all: https, or this machine. */
export const mayHaveMicrophone = () => isSecureContext && navigator.mediaDevices?.getUserMedia !== undefined;

/** Open the microphone.
 * @param onBlock ({pcm, level}) for each piece; level: root mean square, 0 to 1
 * @param onEnd () if the microphone goes away by itself
 * @returns {label, rateHz, stop}; stop() resolves after the last piece
 */
export async function openMicrophone({onBlock, onEnd, signal}) {
  if (!mayHaveMicrophone()) throw new SoundError("insecure");
  let stream;
  try {
    const audio = {channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true};
    stream = await navigator.mediaDevices.getUserMedia({audio});
  } catch (error) {
    throw new SoundError(KINDS[error.name] ?? "other", error.message);
  }
  const tracks = stream.getTracks();
  const release = () => tracks.forEach((track) => track.stop());
  // With no rate of ours: Firefox connects no microphone to a context of another rate.
  const context = new AudioContext();
  const close = () => {
    release();
    context.close().catch(() => {}); // it may be closed already
  };
  try {
    signal?.throwIfAborted(); // while the browser has asked the person
    await context.audioWorklet.addModule(WORKLET);
    signal?.throwIfAborted();
  } catch (error) {
    close();
    throw signal?.aborted ? error : new SoundError("other", error.message);
  }
  signal?.addEventListener("abort", close, {once: true});
  const node = new AudioWorkletNode(context, "capture", {numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit"});
  const hasEnded = new Promise((resolve) => {
    node.port.onmessage = ({data}) => (data === null ? resolve() : onBlock(data));
  });
  context.createMediaStreamSource(stream).connect(node);
  // It is suspended where the browser has seen nobody press anything.
  if (context.state === "suspended") context.resume();
  for (const track of tracks) track.addEventListener("ended", onEnd, {once: true});
  node.addEventListener("processorerror", onEnd, {once: true});
  return {
    label: tracks[0].label,
    rateHz: context.sampleRate,
    async stop() {
      release();
      node.port.postMessage("end");
      // A context that is suspended, or at its end, does not answer.
      await Promise.race([hasEnded, new Promise((resolve) => setTimeout(resolve, LAST_MS))]);
      close();
    },
  };
}

/** The samples of a sound file that the browser can decode, in one channel. */
export async function readFile(file) {
  if (file.size > MAX_FILE_BYTES) throw new SoundError("long");
  let buffer;
  try {
    buffer = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(await file.arrayBuffer());
  } catch (error) {
    throw new SoundError("file", error.message);
  }
  if (buffer.duration > MAX_FILE_S) throw new SoundError("long");
  const channels = Array.from({length: buffer.numberOfChannels}, (_, which) => buffer.getChannelData(which));
  return Float32Array.from(channels[0], (_, at) => channels.reduce((sum, channel) => sum + channel[at], 0) / channels.length);
}

/** Play samples as a microphone would give them, without a sound. Resolves after the last, or when the signal aborts. */
export function play(samples, {onBlock, signal}) {
  const size = (RATE_HZ * BLOCK_MS) / 1000;
  const began = performance.now();
  let at = 0;
  return new Promise((resolve) => {
    const end = () => {
      clearInterval(timer);
      resolve();
    };
    // By the clock: browsers wake the timers of a page in the background but once a second.
    const step = () => {
      const due = Math.min(samples.length, Math.ceil((performance.now() - began) / BLOCK_MS) * size);
      for (; at < due; at += size) {
        const block = samples.subarray(at, at + size);
        onBlock({pcm: toPcm(block), level: Math.sqrt(block.reduce((sum, value) => sum + value * value, 0) / block.length)});
      }
      if (at >= samples.length) end();
    };
    const timer = setInterval(step, BLOCK_MS / 2);
    signal.addEventListener("abort", end, {once: true});
  });
}
