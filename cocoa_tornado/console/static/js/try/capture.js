// In the audio thread: the microphone's samples, at the rate of the context, become messages of a tenth of a second of
// 16 kHz PCM. "end" as a message asks for the rest; null answers it.

import {Resampler, toPcm} from "./resampler.js";

const RATE_HZ = 16_000;
const BLOCK = RATE_HZ / 10;

registerProcessor(
  "capture",
  class extends AudioWorkletProcessor {
    #resampler = new Resampler(sampleRate, RATE_HZ);
    #block = new Float32Array(BLOCK);
    #count = 0;
    #hasEnded = false;

    constructor() {
      super();
      this.port.onmessage = () => {
        this.#take(this.#resampler.flush());
        if (this.#count) this.#send();
        this.port.postMessage(null);
        this.#hasEnded = true;
      };
    }

    /** One channel: the node mixes those that there are. None while there is no input. */
    process([[channel]]) {
      if (channel !== undefined && !this.#hasEnded) this.#take(this.#resampler.push(channel));
      return !this.#hasEnded;
    }

    #take(samples) {
      for (const value of samples) {
        this.#block[this.#count++] = value;
        if (this.#count === BLOCK) this.#send();
      }
    }

    #send() {
      const block = this.#block.subarray(0, this.#count);
      const level = Math.sqrt(block.reduce((sum, value) => sum + value * value, 0) / block.length);
      const pcm = toPcm(block);
      this.port.postMessage({pcm, level}, [pcm]);
      this.#count = 0;
    }
  },
);
