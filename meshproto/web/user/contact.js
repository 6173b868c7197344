// Who somebody is: the key by its fingerprint, as groups to compare and as a QR code; and this node itself.

import { ask, picture, seg, token } from "./api.js";
import { avatar, button, command, confirm, el, icon } from "./dom.js";
import { curlLine, fold, moment, plural, presenceWords, since, span } from "./words.js";

function fact(term, ...details) {
  return el("div", {}, el("dt", {}, term), el("dd", {}, details));
}

function fingerprint(groups) {
  return el("code", { class: "fingerprint" }, groups.split("-").map((group) => el("span", {}, group)));
}

function bar(title, back = "#/") {
  return el("header", { class: "bar" },
    el("a", { class: "round backward", href: back, "aria-label": "Back" }, icon("back")), el("h2", {}, title));
}

async function code(path, words) {
  const src = await picture(path);
  return el("img", { class: "qr", alt: words, width: 200, height: 200, src, onload: () => URL.revokeObjectURL(src) });
}

export class ContactView {
  constructor(store, name) {
    this.store = store;
    this.name = name;
    this.title = name;
    this.body = el("div", { class: "scroll page" });
    this.element = el("div", { class: "view" }, bar(name, `#/with/${seg(name)}`), this.body);
    this.#load();
  }

  // Someone who is no contact yet is looked up.
  async #load() {
    const { contacts } = (await this.store.attempt(() => ask("GET", "contacts"))) ?? { contacts: [] };
    const contact = contacts.find(({ name, address }) => [name, address].some((one) => fold(one) === fold(this.name))) ?? null;
    const found = await ask("GET", `lookup/${seg(this.name)}`).catch((problem) => ({ problem }));
    this.body.replaceChildren(...[contact?.offered && this.#changed(contact), this.#card(contact, found)].filter(Boolean));
    if (!contact) return;
    const image = await this.store.attempt(() => code(`contacts/${seg(this.name)}/qr`, `The address of ${contact.name} as a QR code`));
    if (image) this.body.querySelector(".qr-place").replaceChildren(image);
  }

  #changed({ name, groups, offered }) {
    const trust = button("Trust the new key", async () => {
      const sure = await confirm(`Trust the new key of ${name}?`,
        `Only if ${name} has told you these groups by other means than this: ${offered.groups}. What waits is then sent to that key.`, "Trust it");
      if (sure) await this.#trust(offered.fingerprint);
    }, { kind: "danger", sign: "shield" });
    return el("section", { class: "card changed", role: "alert" },
      el("h3", {}, icon("alert"), `${name} has another key than before`),
      el("p", {}, `It may be ${name} on a new machine, or somebody else under the name. Nothing is delivered to the new key, and nothing is taken from it, until you say so. Ask ${name} by other means which of these is shown there.`),
      el("dl", { class: "facts keys" }, fact("Known key", fingerprint(groups)),
        fact("New key", fingerprint(offered.groups), el("p", { class: "quiet" }, `seen ${since(offered.seen_at)}`))),
      el("div", { class: "actions" }, trust));
  }

  #card(contact, found) {
    const who = contact ?? (found.problem ? null : found);
    if (!who) return el("section", { class: "card" }, el("h3", {}, found.problem.title), el("p", {}, found.problem.detail));
    const presence = found.problem ? { online: null } : found;
    const verified = contact?.verified_at;
    const mark = verified
      ? el("p", { class: "verified" }, icon("shield"), `You compared it ${since(verified)}`)
      : el("p", { class: "quiet" }, `Compare these groups with what ${who.name} sees under “You”, by phone or side by side.`);
    const actions = [
      el("a", { class: "button", href: `#/with/${seg(who.name)}` }, icon("chats"), "Write"),
      !verified && button("It is the same", () => this.#trust(who.fingerprint), { sign: "shield" }),
      contact && button("Forget the key", () => this.#forget(contact), { kind: "quiet" }),
    ];
    return el("section", { class: "card who" },
      el("div", { class: "with-qr" },
        el("div", {}, avatar(who.name, presence.online), el("h3", {}, who.name), el("p", { class: "quiet" }, presenceWords(presence)),
          el("h4", {}, "Fingerprint"), fingerprint(who.groups), mark),
        el("div", { class: "qr-place" })),
      el("div", { class: "actions" }, actions),
      el("dl", { class: "facts" },
        fact("Full address", el("code", {}, who.address)),
        found.home && fact("Home seed", found.home),
        found.uris && fact("Reached at", found.uris.map((uri) => el("code", {}, uri))),
        contact && fact("First seen", moment(contact.first_seen)),
        found.problem && fact("Looked up just now", found.problem.message)));
  }

  async #trust(print) {
    const done = await this.store.attempt(() => ask("PUT", `contacts/${seg(this.name)}`, {}, { fingerprint: print }));
    if (done) this.store.tell("notice", `The key of ${done.name} is trusted.`);
    this.store.refreshStatus();
    await this.#load();
  }

  async #forget({ name }) {
    if (!(await confirm(`Forget the key of ${name}?`, "The next key that is seen under the name will count.", "Forget it"))) return;
    await this.store.attempt(() => ask("DELETE", `contacts/${seg(this.name)}`));
    this.store.refreshStatus();
    await this.#load();
  }
}

const THEMES = { auto: "As the system", light: "Light", dark: "Dark" };

function themes() {
  const chosen = document.documentElement.dataset.theme;
  const choose = ({ target }) => {
    document.documentElement.dataset.theme = target.value;
    localStorage.setItem("theme", target.value);
  };
  return el("fieldset", { class: "choice", id: "themes" }, el("legend", {}, "Colours"),
    Object.entries(THEMES).map(([value, words]) => el("label", {},
      el("input", { type: "radio", name: "theme", value, checked: value === chosen, onchange: choose }), el("span", {}, words))));
}

export class OwnView {
  constructor(store, { help }) {
    this.store = store;
    this.title = "You";
    this.body = el("div", { class: "scroll page" });
    this.element = el("div", { class: "view" }, bar("You"), this.body);
    this.help = help;
    this.#draw();
    this.hear = () => this.#draw();
    store.addEventListener("status", this.hear);
  }

  close() {
    this.store.removeEventListener("status", this.hear);
  }

  async #draw() {
    const { status } = this.store;
    if (!status || this.body.childElementCount) return;
    const place = el("div", { class: "qr-place" });
    this.body.append(
      el("section", { class: "card who" },
        el("div", { class: "with-qr" },
          el("div", {}, avatar(status.name), el("h3", {}, status.name),
            el("p", { class: "quiet" }, status.registered ? `registered at ${status.home.name}` : "not registered with a seed"),
            el("h4", {}, "Your fingerprint"), fingerprint(status.groups),
            el("p", { class: "quiet" }, "Others compare it with what their node knows of you. Tell it by phone, or show the code.")),
          place),
        el("dl", { class: "facts" },
          fact("Full address", el("code", {}, status.address)),
          fact("Others reach you at", status.uris.map((uri) => el("code", {}, uri))),
          fact("In the inbox", plural(status.inbox.messages, "message")),
          fact("Node", `meshproto ${status.version}, running ${span(status.uptime_s * 1000)}`))),
      el("section", { class: "card" }, el("h3", {}, "Let a program write to you"),
        el("p", {}, "On this machine:"), command(curlLine(status.name, token.get())),
        el("p", {}, el("a", { href: "page/reference.html" }, "All that a program can ask this node"))),
      el("section", { class: "card" }, el("h3", {}, "This page"), themes(),
        el("div", { class: "actions" }, button("Keyboard shortcuts", this.help, { sign: "help" }))));
    const image = await this.store.attempt(() => code("qr", "Your own address as a QR code"));
    if (image) place.replaceChildren(image);
  }
}
