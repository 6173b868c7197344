// What waits, for whom, and why.

import { ask, seg } from "./api.js";
import { avatar, button, el, emptyState, icon } from "./dom.js";
import { latest } from "./store.js";
import { plural, since, span, stateOf, whole } from "./words.js";

const SHOWN = 50; // messages of one recipient
const SPACING_MS = 500;
const TICK_MS = 1000;

export class QueueView {
  constructor(store) {
    this.store = store;
    this.title = "Queue";
    this.body = el("div", { class: "scroll page" });
    this.opened = new Set(); // whose messages are shown
    this.element = el("div", { class: "view" },
      el("header", { class: "bar" },
        el("a", { class: "round backward", href: "#/", "aria-label": "Back" }, icon("back")),
        el("h2", {}, "Queue"), this.all = button("Retry all", () => this.#retry(null), { sign: "retry" })),
      this.body);
    this.refresh = latest(() => store.attempt(() => this.#load()), SPACING_MS);
    this.off = new AbortController();
    for (const kind of ["outbox", "recipient", "opened"]) store.addEventListener(kind, this.refresh, { signal: this.off.signal });
    this.ticking = setInterval(() => this.#tick(), TICK_MS);
    this.refresh();
  }

  close() {
    this.off.abort();
    clearInterval(this.ticking);
  }

  async #load() {
    const { recipients } = await ask("GET", "outbox", { status: "waiting", limit: 1 });
    const cards = await Promise.all(recipients.map(async (one) => this.#card(one, this.opened.has(one.to) ? await this.#messages(one.to) : null)));
    this.all.hidden = !recipients.length;
    const focused = document.activeElement?.dataset?.key;
    this.body.replaceChildren(...(cards.length ? cards : [this.#nothing()]));
    if (focused) this.body.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  #nothing() {
    return emptyState("check", "Nothing waits", el("p", {}, "Everything you sent has arrived, or has come to another end. What is for somebody who is away waits here, with the reason, until they are back."));
  }

  async #messages(to) {
    const page = await ask("GET", "outbox", { status: "waiting", to, limit: SHOWN });
    return page.messages;
  }

  #card(recipient, messages) {
    const { to, waiting, oldest_at: oldest, attempts, reason } = recipient;
    const open = messages !== null;
    const more = button(open ? "Hide messages" : "Show messages", () => this.#toggle(to), { kind: "quiet" });
    more.setAttribute("aria-expanded", String(open));
    more.dataset.key = `more ${to}`;
    const retry = button("Retry now", () => this.#retry(to), { sign: "retry" });
    retry.dataset.key = `retry ${to}`;
    const next = el("span", { class: "next", "data-at": recipient.next_try_at });
    const card = el("section", { class: "card waiting" },
      el("div", { class: "line" }, avatar(to, this.store.presence.get(to.toLowerCase())?.online ?? null),
        el("div", {}, el("h3", {}, el("a", { href: `#/with/${seg(to)}` }, to)),
          el("p", { class: "quiet" }, `${plural(waiting, "message")}, the oldest of ${since(oldest)}`)),
        el("b", { class: "number", "aria-hidden": "true" }, whole(waiting))),
      el("p", { class: "reason" }, reason ?? "under way"),
      el("p", { class: "quiet" }, attempts ? `${plural(attempts, "attempt")} in vain, ` : "", next),
      el("div", { class: "actions" }, retry, more),
      open && el("ul", { class: "messages" }, messages.map((message) => this.#message(message))),
      open && messages.length < waiting && el("p", { class: "quiet" }, `and ${whole(waiting - messages.length)} more`));
    this.#say(next);
    return card;
  }

  #message(message) {
    const cancel = button("Cancel", () => this.store.cancel(message), { kind: "link" });
    cancel.dataset.key = `cancel ${message.id}`;
    return el("li", {}, el("code", {}, message.id),
      el("span", { class: "quiet" }, `${stateOf({ ...message, at: message.sent_at }).words}, sent ${since(message.sent_at)}, given up ${since(message.expires_at)}`), cancel);
  }

  async #toggle(to) {
    if (!this.opened.delete(to)) this.opened.add(to);
    await this.refresh();
  }

  async #retry(to) {
    await this.store.retry(to);
    this.refresh();
  }

  #say(next) {
    const at = Number(next.dataset.at);
    next.textContent = !at ? "an attempt is under way" : at > Date.now() ? `the next in ${span(at - Date.now())}` : "the next one now";
  }

  #tick() {
    const all = [...this.body.querySelectorAll(".next")];
    all.forEach((next) => this.#say(next));
    if (all.some(({ dataset }) => !dataset.at || Number(dataset.at) < Date.now())) this.refresh();
  }
}
