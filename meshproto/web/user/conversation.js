// A conversation: its messages, and where one writes.

import { avatar, button, command, el, emptyState, icon } from "./dom.js";
import { List } from "./list.js";
import { messageElement, messageSign } from "./message.js";
import { Thread } from "./thread.js";
import { bare, curlLine, dayName, fold, isWaiting, plural, presenceWords, sameDay, whole } from "./words.js";
import { seg, token } from "./api.js";

const LINES_MAX = 8; // of what one writes
const JOINED_MS = 5 * 60e3; // what follows sooner belongs together

export class ConversationView {
  constructor(store, name, at, find) {
    this.store = store;
    this.name = name;
    this.find = () => find(name);
    this.marked = at; // the hit of a search
    this.sought = at; // until it was shown
    this.thread = new Thread(store, name);
    this.unreadAt = null; // the first message that was new when the conversation was opened
    this.fresh = 0; // came while the reader was further up
    this.atEnd = false;
    this.element = this.#build();
    this.#listen();
    this.#open(at);
  }

  get title() {
    return this.name;
  }

  #build() {
    this.subtitle = el("p", { class: "quiet" });
    this.face = el("span");
    const heading = el("a", { class: "title", href: `#/contact/${seg(this.name)}`, title: "Key and address (i)" },
      this.face, el("span", {}, el("h2", {}, this.name), this.subtitle));
    const header = el("header", { class: "bar" },
      el("a", { class: "round backward", href: "#/", "aria-label": "Back to all conversations" }, icon("back")),
      heading,
      el("button", { type: "button", class: "round", "aria-label": `Search in the messages with ${this.name}`, title: "Search here (f)", onclick: this.find }, icon("search")),
      el("a", { class: "round", href: `#/contact/${seg(this.name)}`, "aria-label": `Key and address of ${this.name}` }, icon("shield")));
    this.warning = el("div");
    this.log = el("div", { class: "scroll log", role: "log", "aria-live": "off", tabindex: 0, "aria-label": `Messages with ${this.name}` });
    this.list = new List(this.log, {
      older: () => this.thread.older(),
      newer: () => this.thread.newer(),
      atEnd: (is) => this.#reached(is),
    });
    this.down = button("", () => this.toEnd(), { sign: "down", kind: "down" });
    this.down.hidden = true;
    return el("div", { class: "view conversation" }, header, this.warning, el("div", { class: "middle" }, this.log, this.down), this.#composer());
  }

  #composer() {
    this.input = el("textarea", {
      id: "composer", rows: 1, placeholder: `Write to ${this.name}`, "aria-label": `Message to ${this.name}`,
      "aria-keyshortcuts": "Enter", oninput: () => this.#typed(),
      onkeydown: (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.#send();
      },
    });
    this.input.value = this.store.draft(this.name);
    this.#typed();
    const send = el("button", { type: "submit", class: "main round", "aria-label": "Send", title: "Send (Enter)" }, icon("send"));
    return el("form", { class: "composer", onsubmit: (event) => (event.preventDefault(), this.#send()) }, this.input, send);
  }

  #listen() {
    const { store, thread } = this;
    this.off = new AbortController();
    const on = (kinds, hear) => {
      for (const kind of kinds.split(" ")) store.addEventListener(kind, (event) => hear(event.detail), { signal: this.off.signal });
    };
    on("message", (event) => fold(event.from.name) === fold(this.name) && thread.refresh());
    on("outbox", (event) => thread.hear(event));
    on("recipient", ({ to }) => fold(to) === fold(bare(this.name)) && thread.recheck());
    on("opened", () => thread.recheck());
    on("outgoing", () => (this.#draw("outgoing"), thread.refresh()));
    on("presence status", () => this.#head());
    thread.addEventListener("change", (event) => this.#draw(event.detail));
    document.addEventListener("visibilitychange", () => this.#read(), { signal: this.off.signal });
  }

  close() {
    this.off.abort();
    this.thread.closed = true;
  }

  async #open(at) {
    this.#head();
    this.#draw("outgoing"); // what is not sent is there, though the node may not answer
    await this.thread.open(at === null ? {} : { around: at });
  }

  focus() {
    if (this.sought === null && !matchMedia("(pointer: coarse)").matches) this.input.focus({ preventScroll: true });
  }

  toEnd() {
    if (this.thread.after === null) this.list.toEnd();
    else this.thread.open();
  }

  toBeginning() {
    return this.thread.open({ after: 0 });
  }

  // -- what is shown ---------------------------------------------------------------------------------------------------

  #head() {
    const presence = this.store.presence.get(fold(this.name)) ?? { online: null };
    const count = this.thread.loaded && plural(this.thread.total, "message");
    this.subtitle.textContent = [presence.online !== null && presenceWords(presence), count].filter(Boolean).join(" · ");
    this.face.replaceChildren(avatar(this.name, presence.online));
    const changed = this.store.keyChanged(this.name);
    this.warning.replaceChildren();
    if (changed) {
      this.warning.append(el("p", { class: "warning" }, icon("alert"),
        el("span", {}, `${this.name} answers with another key than before. Nothing is delivered until you have compared it. `,
          el("a", { href: `#/contact/${seg(this.name)}` }, "Compare the keys"))));
    }
  }

  #draw(kind) {
    const { thread, list } = this;
    if (!thread.loaded && !this.store.unsentTo(this.name).length) return;
    if (kind === "opened") this.#firstUnread();
    if (kind === "newer" && !this.atEnd) this.#countFresh();
    const outgoing = thread.after === null ? this.store.outgoingTo(this.name) : [];
    const items = [...thread.items, ...outgoing.filter(({ id }) => !thread.items.some((item) => item.id === id && item.direction === "out"))];
    if (kind === "outgoing") list.stuck ||= thread.after === null && outgoing.length > 0;
    if (kind === "opened") list.stuck = this.sought === null && thread.after === null;
    list.show(items.length ? this.#rows(items) : [this.#nothing()]);
    if (kind === "opened") this.#place();
    this.#head();
    this.#read();
  }

  #place() {
    if (this.sought !== null) {
      this.list.reset(String(this.sought))?.focus({ preventScroll: true });
      this.sought = null;
    } else if (this.thread.after !== null) this.log.scrollTop = 0;
    else if (this.unreadAt !== null && this.thread.items.at(-1)?.pos !== this.unreadAt) this.list.reset("unread");
  }

  #firstUnread() {
    const unread = this.store.conversation(this.name)?.unread ?? 0;
    const incoming = this.thread.items.filter(({ direction }) => direction === "in");
    const known = this.unreadAt !== null || unread === 0 || unread > incoming.length || this.thread.after !== null;
    if (!known) this.unreadAt = incoming.at(-unread).pos;
    this.freshAfter = this.thread.newest;
  }

  #rows(items) {
    const rows = [];
    let last = null;
    for (const [at, item] of items.entries()) {
      if (!last || !sameDay(last.at, item.at)) {
        rows.push({ key: `day ${item.pos ?? item.id}`, sign: dayName(item.at), make: () => el("h3", { class: "day" }, el("span", {}, dayName(item.at))) });
        last = null;
      }
      if (item.pos === this.unreadAt) {
        rows.push({ key: "unread", sign: "", make: () => el("p", { class: "unread" }, el("span", {}, "New")) });
        last = null;
      }
      const next = items[at + 1];
      const look = {
        joined: last?.direction === item.direction && item.at - last.at < JOINED_MS,
        repeated: isWaiting(item.status) && isWaiting(next?.status) && next.reason === item.reason,
        found: item.pos === this.marked,
      };
      rows.push({ key: String(item.pos ?? item.id), sign: messageSign(item, look), make: () => messageElement(item, look, this.#actions) });
      last = item;
    }
    return rows;
  }

  #nothing() {
    const own = this.store.status?.name;
    const make = () => emptyState("chats", `No messages with ${this.name} yet`,
      el("p", {}, "Write the first one below, or let a program do it:"),
      command(curlLine(this.name, token.get())),
      own && el("p", { class: "quiet" }, `What ${this.name} sends to ${own} appears here by itself.`));
    return { key: "nothing", sign: String(own), make };
  }

  get #actions() {
    return {
      retry: (item) => this.store.retry(item.to),
      cancel: (item) => this.store.cancel(item),
      resend: (item) => this.store.resend(item),
      discard: (item) => this.store.discard(item),
    };
  }

  // -- reading and writing ---------------------------------------------------------------------------------------------

  #reached(atEnd) {
    this.atEnd = atEnd && this.thread.after === null;
    if (this.atEnd) {
      this.fresh = 0;
      this.freshAfter = this.thread.newest;
      this.#read();
    }
    this.down.hidden = this.atEnd || !this.thread.loaded;
    this.#label();
  }

  #countFresh() {
    this.fresh = this.thread.items.filter(({ pos, direction }) => direction === "in" && pos > (this.freshAfter ?? 0)).length;
    this.#label();
  }

  #label() {
    this.down.lastChild.textContent = this.fresh ? `${whole(this.fresh)} new` : "Latest";
  }

  // Read is what stood at the end of the list while somebody could see it.
  #read() {
    if (this.atEnd && this.thread.newest && document.visibilityState === "visible") this.store.markRead(this.name, this.thread.newest);
  }

  // Kept at once; and as many lines are shown as there are, where the browser does not do that by itself.
  #typed() {
    this.store.setDraft(this.name, this.input.value);
    this.input.rows = Math.min(LINES_MAX, this.input.value.split("\n").length);
  }

  #send() {
    const text = this.input.value;
    if (!text.trim()) return;
    this.input.value = "";
    this.#typed();
    this.list.stuck = true;
    if (this.thread.after !== null) this.thread.open();
    this.store.send(this.name, text);
  }

  // Up and down from message to message.
  onkey(key) {
    const messages = [...this.log.querySelectorAll(".message")];
    const at = messages.findIndex((message) => message.contains(document.activeElement));
    const step = { ArrowUp: -1, ArrowDown: 1 }[key];
    const inLog = this.log.contains(document.activeElement);
    if (step && inLog) {
      const to = at < 0 ? messages.length - 1 : at + step;
      messages[Math.max(0, Math.min(messages.length - 1, to))]?.focus();
    } else if (key === "End" && inLog) this.toEnd();
    else if (key === "Home" && inLog) this.toBeginning();
    else if (key === "r" && at >= 0) messages[at].querySelector(".retry")?.click();
    else if (key === "x" && at >= 0) messages[at].querySelector(".cancel")?.click();
    else if (key === "i") location.hash = `#/contact/${seg(this.name)}`;
    else if (key === "c") this.input.focus();
    else if (key === "f") this.find();
    else if (key === "m") messages.at(-1)?.focus();
    else return false;
    return true;
  }
}
