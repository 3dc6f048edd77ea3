// Runs in the browser's audio thread: turns the microphone's floats into signed 16-bit samples, 100 ms at a time.

registerProcessor(
  "microphone",
  class extends AudioWorkletProcessor {
    samples = new Int16Array(1600);
    count = 0;

    process([[channel]]) {
      for (const value of channel ?? []) {
        this.samples[this.count++] = Math.max(-1, Math.min(1, value)) * 32767;
        if (this.count === this.samples.length) {
          // Little-endian, as the gateway expects: all browsers run on such machines.
          this.port.postMessage(this.samples.buffer, [this.samples.buffer]);
          this.samples = new Int16Array(1600);
          this.count = 0;
        }
      }
      return true;
    }
  },
);
