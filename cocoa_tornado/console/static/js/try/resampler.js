// Samples at another rate: a low-pass filter below half of the lower rate, evaluated where the new samples are. Pure; it
// runs in the audio thread, too.

const ATTENUATION_DB = 80;
const PASSED = 0.875; // of half the lower rate: all to 7 kHz where that is 16 kHz, and nothing from 8 kHz on

/** The modified Bessel function I0, by its series. */
function bessel(x) {
  let [sum, term] = [1, 1];
  for (let k = 1; term > sum * 1e-12; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

const gcd = (a, b) => (b === 0 ? a : gcd(b, a % b));

/** One stream of mono samples (Float32Array). n seconds go in, and n seconds come out: nothing is shifted. */
export class Resampler {
  #phases = [];
  #held = new Float32Array(4096);
  #length; // of what is held
  #taps;
  #up;
  #down;
  #phase = 0; // of the next sample, in parts of 1/up of a sample of the input
  #taken = 0;
  #given = 0;

  constructor(fromHz, toHz = 16_000) {
    [fromHz, toHz] = [Math.round(fromHz), Math.round(toHz)];
    const common = gcd(fromHz, toHz);
    [this.#up, this.#down] = [toHz / common, fromHz / common];
    const nyquist = Math.min(fromHz, toHz) / 2 / fromHz; // in cycles per sample of the input
    // Kaiser's formulas for a window that has this attenuation, and for the length that gives this transition.
    const beta = 0.1102 * (ATTENUATION_DB - 8.7);
    const half = Math.ceil((ATTENUATION_DB - 7.95) / (2.285 * 2 * Math.PI * nyquist * (1 - PASSED)) / 2);
    const cutoff = (nyquist * (1 + PASSED)) / 2;
    const kernel = (at) => {
      if (Math.abs(at) >= half) return 0;
      const sinc = at === 0 ? 2 * cutoff : Math.sin(2 * Math.PI * cutoff * at) / (Math.PI * at);
      return sinc * bessel(beta * Math.sqrt(1 - (at / half) ** 2));
    };
    this.#taps = 2 * half;
    for (let phase = 0; phase < this.#up; phase++) {
      const row = Float64Array.from({length: this.#taps}, (_, tap) => kernel(tap - (half - 1) - phase / this.#up));
      const sum = row.reduce((total, each) => total + each, 0);
      this.#phases.push(Float32Array.from(row, (each) => each / sum));
    }
    this.#length = half - 1; // the first sample has silence before it
  }

  /** Give samples, get those that are complete. */
  push(samples) {
    this.#taken += samples.length;
    this.#hold(samples);
    const ready = this.#length - this.#taps;
    const count = ready < 0 ? 0 : Math.floor(((ready + 1) * this.#up - 1 - this.#phase) / this.#down) + 1;
    return this.#make(Math.max(0, count));
  }

  /** The stream has ended: get the rest. Then another can begin only with another resampler. */
  flush() {
    this.#hold(new Float32Array(this.#taps));
    return this.#make(Math.ceil((this.#taken * this.#up) / this.#down) - this.#given);
  }

  #hold(samples) {
    if (this.#length + samples.length > this.#held.length) {
      const larger = new Float32Array(2 * (this.#length + samples.length));
      larger.set(this.#held.subarray(0, this.#length));
      this.#held = larger;
    }
    this.#held.set(samples, this.#length);
    this.#length += samples.length;
  }

  #make(count) {
    const made = new Float32Array(count);
    let at = Math.floor(this.#phase / this.#up);
    this.#phase %= this.#up;
    for (let n = 0; n < count; n++) {
      const row = this.#phases[this.#phase];
      let sum = 0;
      for (let tap = 0; tap < this.#taps; tap++) sum += row[tap] * this.#held[at + tap];
      made[n] = sum;
      this.#phase += this.#down;
      at += Math.floor(this.#phase / this.#up);
      this.#phase %= this.#up;
    }
    // After a large step the next sample may lie beyond what is held.
    const used = Math.min(at, this.#length);
    this.#held.copyWithin(0, used, this.#length);
    this.#length -= used;
    this.#phase += (at - used) * this.#up;
    this.#given += count;
    return made;
  }
}

/** Signed 16-bit little-endian: an ArrayBuffer. */
export function toPcm(samples) {
  const view = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((value, at) => view.setInt16(2 * at, Math.round(Math.max(-1, Math.min(1, value)) * 32_767), true));
  return view.buffer;
}
