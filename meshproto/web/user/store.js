// What the page knows, and how it changes. Views read from here and are told by events; only actions change anything.
//
// What the stream tells is taken as a hint for what has changed: the history is then asked, so that there is one
// account of it, whoever sent a message and from where.

import { ask, parsed, seg } from "./api.js";
import { bare, fold, isWaiting } from "./words.js";

const PAGE = 50;
const SPACING_MS = 150; // between two refreshes of the same thing, when a lot happens
const STATUS_SPACING_MS = 1000;
const BEHIND_MS = 250; // until the history is asked again that has not caught up
const DRAFTS = "mesh-drafts";
const UNSENT = "mesh-unsent";

// Runs a task now, or once more after the run that is under way; never two at a time.
export function latest(task, spacing) {
  let running = false;
  let again = false;
  return async () => {
    again = true;
    if (running) return;
    running = true;
    try {
      while (again) {
        again = false;
        await task();
        await new Promise((done) => setTimeout(done, spacing));
      }
    } finally {
      running = false;
    }
  };
}

export class Store extends EventTarget {
  constructor() {
    super();
    this.connection = { state: "connecting" };
    this.status = null;
    this.conversations = new Map(); // by folded name
    this.next = null; // where older conversations are
    this.loaded = false;
    this.read = new Map(); // the position up to which this page has said that all was read
    this.presence = new Map();
    this.changedKeys = [];
    this.outgoing = new Map(unsent().map((item) => [item.id, item])); // by id: what the node has not taken yet
    this.drafts = new Map(JSON.parse(sessionStorage.getItem(DRAFTS) ?? "[]"));
    this.refreshConversations = latest(() => this.attempt(() => this.#loadConversations()), SPACING_MS);
    this.refreshStatus = latest(() => this.attempt(() => this.#loadStatus()), STATUS_SPACING_MS);
    this.on("opened status", latest(() => this.#sendUnsent(), SPACING_MS));
  }

  tell(kind, detail = null) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  on(kinds, hear) {
    for (const kind of kinds.split(" ")) this.addEventListener(kind, (event) => hear(event.detail));
  }

  // What fails is told to the reader, unless the connection's own sign tells it already.
  async attempt(task) {
    try {
      return await task();
    } catch (problem) {
      if (problem.status === undefined) throw problem;
      if (problem.status !== 0 && problem.status !== 401) this.tell("problem", problem);
      return null;
    }
  }

  setConnection(connection) {
    this.connection = connection;
    this.tell("connection");
  }

  // -- conversations ---------------------------------------------------------------------------------------------------

  // Of somebody who was written to while the node did not answer there may be nothing but that, and it stands first.
  get sorted() {
    const known = [...this.conversations.values()].sort((a, b) => (b.last?.pos ?? 0) - (a.last?.pos ?? 0));
    const names = new Map([...this.outgoing.values()].filter(isUnsent).map(({ to }) => [fold(to), to]));
    const begun = [...names].filter(([key]) => !this.conversations.has(key));
    return [...begun.map(([, name]) => ({ name, unread: 0, waiting: 0, last: null })), ...known];
  }

  get unread() {
    return this.sorted.reduce((sum, { unread }) => sum + unread, 0);
  }

  conversation(name) {
    return this.conversations.get(fold(name)) ?? null;
  }

  async #loadConversations() {
    const first = !this.loaded;
    const page = await ask("GET", "history", { limit: PAGE });
    this.#take(page);
    if (first) this.next = page.next;
    if (page.behind > 0) setTimeout(this.refreshConversations, BEHIND_MS);
  }

  async olderConversations() {
    if (this.next === null) return;
    const page = await this.attempt(() => ask("GET", "history", { limit: PAGE, before: this.next }));
    if (page === null) return;
    this.next = page.next;
    this.#take(page);
  }

  #take(page) {
    for (const conversation of page.conversations) {
      const { name, last } = conversation;
      if (last?.pos <= this.read.get(fold(name))) conversation.unread = 0; // it is being said to the node
      this.conversations.set(fold(name), conversation);
    }
    this.loaded = true;
    this.tell("conversations");
  }

  async markRead(name, pos) {
    if (pos <= (this.read.get(fold(name)) ?? 0)) return;
    this.read.set(fold(name), pos);
    const conversation = this.conversation(name);
    if (conversation?.unread) {
      conversation.unread = 0;
      this.tell("conversations");
    }
    await this.attempt(() => ask("PUT", `history/${seg(name)}`, {}, { read: pos }));
  }

  draft(name) {
    return this.drafts.get(fold(name)) ?? "";
  }

  setDraft(name, text) {
    if (text) this.drafts.set(fold(name), text);
    else this.drafts.delete(fold(name));
    sessionStorage.setItem(DRAFTS, JSON.stringify([...this.drafts]));
  }

  // -- this node -------------------------------------------------------------------------------------------------------

  async #loadStatus() {
    this.status = await ask("GET", "status");
    const changed = this.status.contacts.key_changed;
    this.changedKeys = changed ? (await ask("GET", "contacts")).contacts.filter(({ offered }) => offered) : [];
    this.tell("status");
  }

  keyChanged(name) {
    return this.changedKeys.find((contact) => fold(contact.name) === fold(bare(name))) ?? null;
  }

  // -- what the stream tells -------------------------------------------------------------------------------------------

  hear(event) {
    switch (event.event) {
      case "message":
        this.tell("message", event);
        this.refreshConversations();
        break;
      case "outbox":
        if (event.missed) this.tell("opened"); // more has changed than could be told: all is asked for again
        else this.tell("outbox", event);
        this.refreshConversations();
        this.refreshStatus();
        break;
      case "recipient":
        this.tell("recipient", event);
        this.refreshStatus();
        break;
      case "presence":
        this.presence.set(fold(event.name), event);
        this.tell("presence", event);
        break;
    }
  }

  // -- sending ---------------------------------------------------------------------------------------------------------

  // The id is made here, so that a message whose answer was lost can be sent again without coming twice.
  async send(to, message, id = newId()) {
    const item = { id, direction: "out", to, message, at: Date.now(), status: "sending", reason: null };
    this.outgoing.set(id, item);
    this.#changed(item);
    try {
      await ask("POST", "send", {}, { to, message, id, wait: 0 });
      item.status = "queued";
      item.taken = true;
    } catch (problem) {
      if (problem.status === undefined) throw problem;
      item.status = "failed";
      item.reason = problem.detail ? `${problem.title} (${problem.detail})` : problem.title;
      item.refused = problem.status !== 0 && problem.status !== 401;
      if (item.refused) this.refreshStatus(); // it may be that a key has changed
    }
    this.#changed(item);
    this.refreshConversations();
  }

  // What the node has not taken is kept by the tab, so that a reload does not lose it.
  #changed(item) {
    try {
      sessionStorage.setItem(UNSENT, JSON.stringify([...this.outgoing.values()].filter(({ taken }) => !taken)));
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      this.tell("notice", "The browser has no room left to keep what is not sent: do not close or reload this tab before it is.");
    }
    this.tell("outgoing", item);
  }

  // In the order in which it was written, and no more once the node is silent again.
  async #sendUnsent() {
    for (const item of [...this.outgoing.values()].filter((one) => isUnsent(one) && !one.refused)) {
      if (!this.outgoing.has(item.id)) continue; // given up meanwhile
      await this.resend(item);
      const now = this.outgoing.get(item.id);
      if (isUnsent(now) && !now.refused) return;
    }
  }

  resend(item) {
    this.outgoing.delete(item.id);
    return this.send(item.to, item.message, item.status === "failed" ? item.id : undefined);
  }

  discard(item) {
    this.outgoing.delete(item.id);
    this.#changed(item);
  }

  unsentTo(name) {
    return this.outgoingTo(name).filter(isUnsent);
  }

  outgoingTo(name) {
    return [...this.outgoing.values()].filter(({ to }) => fold(to) === fold(name));
  }

  async cancel(item) {
    const path = `outbox/${seg(item.id)}`;
    const answer = await this.attempt(() => ask("DELETE", path, { to: item.to }));
    if (answer) this.tell("outbox", { ...answer, changed_at: Date.now() });
    if (answer && isWaiting(answer.status)) this.tell("notice", "It is under way at this moment: it is given up if that fails.");
  }

  async retry(name = null) {
    await this.attempt(() => ask("POST", "outbox/retry", { to: name }));
    this.refreshStatus();
  }
}

const isUnsent = (item) => item?.status === "failed";

// What an earlier load of this page has left. Nobody knows of a message that was under way whether the node has it.
function unsent() {
  return parsed(sessionStorage.getItem(UNSENT) ?? "[]").map((item) => ({ ...item, status: "failed" }));
}

function newId() {
  const random = crypto.getRandomValues(new Uint8Array(10));
  const time = Date.now().toString(16).padStart(12, "0");
  return time + Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
