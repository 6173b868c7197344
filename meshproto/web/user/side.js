// The column beside everything: the conversations, or what a search has found.

import { ask, seg, token } from "./api.js";
import { avatar, button, byId, command, el, emptyState, icon } from "./dom.js";
import { briefly, curlLine, few, fold, inBrief, isWaiting, plural, presenceWords } from "./words.js";

const HITS = 40;
const TYPING_MS = 120; // a pause in which one has stopped typing
const BEHIND_MS = 500;
const NAMES_SHOWN = 5;

export class Side {
  constructor(store) {
    this.store = store;
    this.list = byId("list");
    this.input = byId("search");
    this.chosen = null;
    this.query = "";
    this.within = null; // a search in one conversation only
    this.items = new Map();
    store.on("conversations presence status outgoing", () => this.#draw());
    store.on("status", () => this.#alerts());
    this.input.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.search(this.input.value, this.within), TYPING_MS);
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.input.value) {
        this.clear();
        event.stopPropagation();
      } else if (event.key === "ArrowDown") this.links[0]?.focus();
      else if (event.key === "Enter" && !event.isComposing) this.#openFirst();
      else return;
      event.preventDefault();
    });
    this.list.addEventListener("scroll", () => this.#scrolled(), { passive: true });
  }

  get links() {
    return [...this.list.querySelectorAll("a")];
  }

  choose(name) {
    this.chosen = name && fold(name);
    for (const [key, item] of this.items) this.#mark(key, item);
  }

  // The conversation before or after the chosen one.
  neighbour(step) {
    const keys = [...this.items.keys()];
    const at = keys.indexOf(this.chosen);
    return keys[at < 0 ? 0 : Math.max(0, Math.min(keys.length - 1, at + step))] ?? null;
  }

  // -- conversations ---------------------------------------------------------------------------------------------------

  #draw() {
    if (this.query) return;
    const { store } = this;
    if (!store.loaded) return;
    const shown = store.sorted;
    if (!shown.length) {
      this.items.clear();
      this.list.replaceChildren(this.#nobody());
      return;
    }
    const list = this.#listElement();
    const before = this.items;
    this.items = new Map();
    for (const conversation of shown) {
      const key = fold(conversation.name);
      const presence = store.presence.get(key) ?? { online: null };
      const { unread, waiting, last } = conversation;
      const sign = [unread, waiting, store.unsentTo(key).length, last?.pos, last?.status, last && briefly(last.at), presence.online].join();
      const old = before.get(key);
      this.items.set(key, old?.sign === sign ? old : { sign, element: this.#item(conversation, presence, old?.element) });
    }
    const wanted = [...this.items.values()].map(({ element }) => element);
    wanted.forEach((element, at) => list.children[at] !== element && list.insertBefore(element, list.children[at] ?? null));
    while (list.children.length > wanted.length) list.lastChild.remove();
    for (const [key, item] of this.items) this.#mark(key, item);
  }

  #listElement() {
    const there = this.list.querySelector(":scope > ul.conversations");
    if (there) return there;
    const made = el("ul", { class: "conversations", "aria-label": "Conversations" });
    this.list.replaceChildren(made);
    this.items.clear();
    return made;
  }

  // The element stays, so that whoever has the focus there keeps it.
  #item(conversation, presence, element = el("li", {}, el("a", { href: `#/with/${seg(conversation.name)}` }))) {
    const { name, unread, waiting, last } = conversation;
    const own = last?.direction === "out";
    const text = last ? inBrief(last.message) : "";
    const stuck = own && !isWaiting(last.status) && last.status !== "delivered";
    const unsent = this.store.unsentTo(name).length;
    const words = el("span", { class: "words" },
      el("span", { class: "line" }, el("b", {}, name), last && el("time", { datetime: new Date(last.at).toISOString() }, briefly(last.at))),
      el("span", { class: "line" },
        el("span", { class: "brief" }, own && el("span", { class: "you" }, "You: "), text),
        unsent > 0 && el("span", { class: "waits stuck unsent", title: `${plural(unsent, "message")} not sent` }, icon("alert"), few(unsent), el("span", { class: "unseen" }, " not sent")),
        waiting > 0 && el("span", { class: "waits", title: `${plural(waiting, "message")} waiting` }, icon("clock"), few(waiting), el("span", { class: "unseen" }, " waiting")),
        stuck && el("span", { class: "waits stuck" }, icon("alert"), el("span", { class: "unseen" }, last.status)),
        unread > 0 && el("b", { class: "badge" }, few(unread), el("span", { class: "unseen" }, " unread"))));
    const known = presence.online !== null && el("span", { class: "unseen" }, `, ${presenceWords(presence)}`);
    element.firstChild.replaceChildren(...[avatar(name, presence.online), words, known].filter(Boolean));
    element.classList.toggle("new", unread > 0);
    return element;
  }

  #mark(key, { element }) {
    if (key === this.chosen) element.firstChild.setAttribute("aria-current", "page");
    else element.firstChild.removeAttribute("aria-current");
  }

  #nobody() {
    const name = this.store.status?.name ?? "NAME";
    return emptyState("chats", "No conversations yet",
      el("p", {}, "Write to somebody whose name you know:"),
      button("New conversation", () => byId("begin").click(), { sign: "plus", kind: "main" }),
      el("p", {}, "Or let a program write to you. On this machine:"),
      command(curlLine(name, token.get())));
  }

  #scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.list;
    if (scrollHeight - clientHeight - scrollTop > clientHeight || this.loading) return;
    this.loading = true;
    (this.query ? this.#more() : this.store.olderConversations()).finally(() => (this.loading = false));
  }

  #alerts() {
    const { status, changedKeys } = this.store;
    const alerts = changedKeys.map(({ name }) => el("a", { class: "warning", href: `#/contact/${seg(name)}` }, icon("alert"),
      el("span", {}, `${name} has another key than before. Compare it.`)));
    const silent = status.seed_answers === false && "No seed answers. People you know are still reached at their last address.";
    for (const words of [silent ? [silent, el("small", {}, status.problem)] : status.problem, status.disk].filter(Boolean)) {
      alerts.push(el("p", { class: "warning" }, icon("alert"), el("span", {}, words)));
    }
    byId("alerts").replaceChildren(...alerts);
  }

  // -- search ----------------------------------------------------------------------------------------------------------

  clear() {
    this.input.value = "";
    this.search("");
  }

  // The next search is in this conversation only.
  scope(name) {
    this.search("");
    this.within = name;
    this.input.value = "";
    this.input.placeholder = `Search in ${name}`;
    this.input.focus();
  }

  // Of what is in the field now, though it may have been typed a moment ago.
  async #openFirst() {
    clearTimeout(this.typing);
    const found = await this.search(this.input.value, this.within);
    if (found) this.links[0]?.click();
  }

  // Whether the answer is shown: a search may fail, or another one have been begun meanwhile.
  async search(words, within = null) {
    this.query = words.trim();
    this.within = this.query ? within : null;
    const asked = (this.asked = {});
    if (!this.query) {
      this.input.placeholder = "Search messages";
      this.items.clear();
      this.list.replaceChildren();
      this.#draw();
      return false;
    }
    const page = await this.#ask();
    if (page === null || this.asked !== asked) return false;
    this.#found(page);
    if (page.behind > 0) this.typing = setTimeout(() => this.search(words, within), BEHIND_MS);
    return true;
  }

  #ask(before = null) {
    return this.store.attempt(() => ask("GET", "search", { q: this.query, with: this.within, before, limit: HITS }));
  }

  #found(page) {
    this.next = page.next;
    this.hits = el("ul", { class: "hits", "aria-label": "Messages found" }, page.hits.map((hit) => this.#hit(hit)));
    const names = this.store.sorted.filter(({ name }) => fold(name).includes(fold(this.query))).slice(0, NAMES_SHOWN);
    const people = !this.within && names.length > 0 && el("ul", { class: "conversations", "aria-label": "Names found" },
      names.map((one) => this.#item(one, this.store.presence.get(fold(one.name)) ?? { online: null })));
    const count = page.hits.length ? `${plural(page.hits.length, "message")}${page.next === null ? "" : " and more"}` : "No message has these words";
    const behind = page.behind > 0 && el("p", { class: "quiet" }, `${plural(page.behind, "message")} still to be looked through`);
    const scope = this.within && el("p", { class: "scope" }, `In the conversation with ${this.within} `,
      button("Search everywhere", () => this.search(this.query), { kind: "link" }));
    const hint = !page.hits.length && el("p", { class: "quiet" }, "All words have to be in it; the last one may be a beginning. “In quotes” they stand side by side.");
    this.list.replaceChildren(...[scope, people, el("p", { class: "count", role: "status" }, count), behind, hint, this.hits].filter(Boolean));
    this.list.scrollTop = 0;
  }

  async #more() {
    if (this.next === null) return;
    const page = await this.#ask(this.next);
    if (page === null) return;
    this.next = page.next;
    this.hits.append(...page.hits.map((hit) => this.#hit(hit)));
  }

  #hit(hit) {
    return el("li", {}, el("a", { href: `#/with/${seg(hit.with)}/at/${hit.pos}` }, el("span", { class: "words" },
      el("span", { class: "line" }, el("b", {}, hit.direction === "out" ? `You to ${hit.with}` : hit.with), el("time", {}, briefly(hit.at))),
      el("span", { class: "snippet" }, marked(hit.snippet)))));
  }
}

// The words that were found stand between two control characters.
function marked(snippet) {
  return snippet.split("\u0002").flatMap((part, at) => {
    const [word, rest] = at === 0 ? ["", part] : part.split("\u0003");
    return [word && el("mark", {}, word), rest ?? ""];
  });
}
