// The connection to the node: follows the stream, and comes back by itself when it breaks.

import { stream } from "./api.js";

const BACKOFF_MS = 500; // doubled after each try in vain
const BACKOFF_MS_MAX = 15000;
const SILENCE_MS = 35000; // the node says something every 15 s
const NAMES_MAX = 100; // whose presence is followed
const ALONE_MS = 400; // names that turn up together are asked for together

export class Link {
  constructor(store) {
    this.store = store;
    this.cursor = null; // the last message that was heard of
    this.names = [];
    this.failures = 0;
    this.wake = null;
    store.on("conversations", () => this.#follow());
    addEventListener("online", () => this.now());
    document.addEventListener("visibilitychange", () => this.#seen());
    // A browser has six connections for a node: one page that is looked at must not wait for pages that nobody sees.
    this.others = new BroadcastChannel("mesh-page");
    this.others.addEventListener("message", () => document.hidden && this.abort?.abort("resting"));
    addEventListener("pagehide", () => this.abort?.abort("resting"));
    addEventListener("pageshow", () => this.#seen());
  }

  #seen() {
    if (document.hidden) return;
    this.others.postMessage("seen");
    this.now();
  }

  // Does not wait any longer for the next try.
  now() {
    this.wake?.();
  }

  async run() {
    for (;;) {
      const ended = await this.#listen();
      if (ended === "renamed") continue;
      if (ended === "resting") {
        this.store.setConnection({ state: "resting" });
        await this.#pause(null);
        continue;
      }
      const backoff = Math.min(BACKOFF_MS_MAX, BACKOFF_MS * 2 ** this.failures++) * (0.75 + Math.random() / 2);
      const state = ended.status === 401 ? "locked" : "lost";
      this.store.setConnection({ state, reason: ended.message, retryAt: Date.now() + backoff });
      await this.#pause(state === "locked" ? null : backoff);
      this.store.setConnection({ state: "connecting" });
    }
  }

  #pause(ms) {
    return new Promise((done) => {
      const timer = ms === null ? null : setTimeout(done, ms);
      this.wake = () => {
        clearTimeout(timer);
        done();
      };
    }).finally(() => (this.wake = null));
  }

  // Until the stream ends; why it did.
  async #listen() {
    const abort = (this.abort = new AbortController());
    let silence;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => abort.abort(new Error("nothing was heard of it")), SILENCE_MS);
    };
    heard();
    try {
      const query = { events: "message,outbox,presence", after: this.cursor, names: this.names.join(",") || null };
      for await (const event of stream(query, abort.signal)) {
        heard();
        if (event.event === "end") return new Error(event.detail);
        if (event.event === "open") this.#opened(event);
        if (event.event === "message") this.cursor = event.cursor;
        this.store.hear(event);
      }
      return new Error("the node ended the connection");
    } catch (error) {
      return abort.signal.aborted ? abort.signal.reason : error;
    } finally {
      clearTimeout(silence);
      abort.abort("over");
    }
  }

  #opened(event) {
    this.failures = 0;
    this.cursor ??= event.cursor;
    this.store.setConnection({ state: "live" });
    this.store.tell("opened");
  }

  // Whose presence is shown: the stream begins anew when somebody joins.
  #follow() {
    const names = this.store.sorted.slice(0, NAMES_MAX).map(({ name }) => name);
    if (names.every((name) => this.names.includes(name))) return;
    this.names = names;
    clearTimeout(this.renaming);
    this.renaming = setTimeout(() => this.abort?.abort("renamed"), ALONE_MS);
  }
}
