// The part of a conversation that is loaded: a window over its history, which moves by pages and stays bounded.

import { ask, seg } from "./api.js";
import { latest } from "./store.js";
import { bare, fold, isWaiting } from "./words.js";

const PAGE = 50;
const WINDOW = 200; // messages that are kept, and drawn
const SPACING_MS = 60;
const RECHECK_MS = 300;
const BEHIND_MS = 250;

export class Thread extends EventTarget {
  constructor(store, name) {
    super();
    this.store = store;
    this.name = name;
    this.items = [];
    this.total = 0;
    this.before = this.after = null; // where older and newer ones are; null: there are none
    this.loaded = false;
    this.refresh = latest(() => store.attempt(() => this.#catchUp()), SPACING_MS);
    this.recheck = latest(() => store.attempt(() => this.#look()), RECHECK_MS);
    this.older = latest(() => store.attempt(() => this.#older()), 0);
    this.newer = latest(() => store.attempt(() => this.#newer()), 0);
  }

  get newest() {
    return this.items.at(-1)?.pos ?? 0;
  }

  #page(query) {
    return ask("GET", `history/${seg(this.name)}`, { limit: PAGE, ...query });
  }

  #tell(kind) {
    if (!this.closed) this.dispatchEvent(new CustomEvent("change", { detail: kind }));
  }

  // Begins anew: at the end, at the beginning, or around a message.
  async open(query = {}) {
    const page = await this.store.attempt(() => this.#page(query));
    if (page === null) return;
    this.items = page.messages;
    this.before = page.before;
    this.after = page.after;
    this.loaded = true;
    this.#counted(page, "opened");
  }

  async #older() {
    if (this.before === null || !this.loaded) return;
    const page = await this.#page({ before: this.before });
    this.items = [...page.messages, ...this.items];
    this.before = page.before;
    if (this.items.length > WINDOW) {
      this.items = this.items.slice(0, WINDOW);
      this.after = this.newest;
    }
    this.#counted(page, "older");
  }

  async #newer() {
    if (this.after === null || !this.loaded) return;
    this.#append(await this.#page({ after: this.after }));
  }

  // What has come since. A window that does not reach to the end stays where it is.
  async #catchUp() {
    if (!this.loaded) return this.open();
    if (this.after === null) this.#append(await this.#page({ after: this.newest }));
  }

  #append(page) {
    const known = this.newest;
    this.items = [...this.items, ...page.messages.filter(({ pos }) => pos > known)];
    this.after = page.after;
    if (this.items.length > WINDOW) {
      this.items = this.items.slice(-WINDOW);
      this.before = this.items[0].pos;
    }
    this.#counted(page, "newer");
  }

  #counted(page, kind) {
    this.total = page.total;
    const here = new Set(this.items.map(({ id, direction }) => direction === "out" && id));
    for (const item of this.store.outgoingTo(this.name)) {
      if (item.taken && here.has(item.id)) this.store.outgoing.delete(item.id);
    }
    if (page.behind > 0) setTimeout(this.refresh, BEHIND_MS);
    this.#tell(kind);
  }

  // What waits may have come further, and nobody has told of it one by one.
  async #look() {
    const first = this.items.find(({ status }) => isWaiting(status));
    if (!first) return this.refresh();
    let at = first.pos - 1;
    const states = new Map();
    while (at < this.newest) {
      const page = await this.#page({ after: at });
      if (!page.messages.length) break;
      for (const item of page.messages) states.set(item.pos, item);
      at = page.messages.at(-1).pos;
    }
    this.items = this.items.map((item) => states.get(item.pos) ?? item);
    this.#tell("states");
    return this.refresh();
  }

  // A message of one's own has come further. One that is not here yet was sent by another program: it is asked for.
  hear({ id, to, status, changed_at, reason }) {
    if (fold(bare(to)) !== fold(bare(this.name))) return;
    const at = this.items.findLastIndex((item) => item.id === id && item.direction === "out");
    if (at < 0) {
      this.refresh();
      return;
    }
    this.items = this.items.with(at, { ...this.items[at], status, changed_at, reason });
    this.#tell("states");
  }
}
