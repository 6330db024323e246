// The page's side of worker.js: networks are opened and run there, so that the page stays responsive.

const WARM_UP = 3;
const TIMED = 9; // runs before the first answer
const KEPT = 25; // latest runs, whose median is shown

export class Engine {
  #worker = new Worker("worker.js", { type: "module" });
  #waiting = new Map();
  #number = 0;
  #times = new Map();

  constructor() {
    this.#worker.onmessage = ({ data }) => {
      const { resolve, reject } = this.#waiting.get(data.number);
      this.#waiting.delete(data.number);
      if (data.error) reject(new Error(data.error));
      else resolve(data.result);
    };
    this.#worker.onerror = event => {
      for (const { reject } of this.#waiting.values()) reject(new Error(event.message || "The worker did not start."));
      this.#waiting.clear();
    };
  }

  // runtime: contents.json's; wasm: its bytes.
  start(runtime, wasm) {
    const absolute = url => new URL(url, location.href).href;
    const message = { script: absolute(runtime.script.url), glue: absolute(runtime.glue.url), wasm };
    return this.#ask("start", message, [wasm.buffer]);
  }

  // Opens a network under a name of one's own, and times it.
  async open(key, bytes, length) {
    await this.#ask("open", { key, bytes }, [bytes.buffer]);
    const { milliseconds } = await this.#ask("run", { key, input: new Float32Array(length), times: WARM_UP + TIMED });
    this.#times.set(key, milliseconds.slice(WARM_UP));
  }

  isOpen(key) {
    return this.#times.has(key);
  }

  // The logits for one input.
  async run(key, input) {
    const { logits, milliseconds } = await this.#ask("run", { key, input, times: 1 });
    this.#times.set(key, [...this.#times.get(key), ...milliseconds].slice(-KEPT));
    return logits;
  }

  // Milliseconds of a run.
  median(key) {
    const sorted = [...this.#times.get(key)].sort((a, b) => a - b);
    return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  }

  #ask(task, message, transfer = []) {
    const number = this.#number++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject });
      this.#worker.postMessage({ number, task, ...message }, transfer);
    });
  }
}
