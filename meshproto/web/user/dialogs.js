// What is asked of the reader: with whom to begin, the node's token; and the help.

import { ask, seg, token } from "./api.js";
import { avatar, button, byId, dialog, el } from "./dom.js";
import { presenceWords } from "./words.js";

export function beginConversation() {
  if (document.querySelector("dialog[open]")) return;
  const said = el("div", { class: "said", role: "status" });
  const input = el("input", { id: "begin-name", autocomplete: "off", spellcheck: "false", autocapitalize: "off", placeholder: "UserX", maxlength: 90 });
  // Who types a fingerprint has compared it.
  const write = async ({ name }, fingerprint) => {
    try {
      if (fingerprint) await ask("PUT", `contacts/${seg(name)}`, {}, { fingerprint });
    } catch (problem) {
      refused(problem);
      return;
    }
    made.close();
    location.hash = `#/with/${seg(name)}`;
  };
  const refused = (problem) => {
    if (problem.status === undefined) throw problem;
    said.replaceChildren(el("p", { class: "warning" }, el("span", {}, el("b", {}, problem.title), ` ${problem.detail}`)),
      el("p", { class: "quiet" }, advice(problem)));
    input.select();
  };
  const look = async (event) => {
    event.preventDefault();
    const name = input.value.trim();
    if (!name) return;
    said.replaceChildren(el("p", { class: "quiet" }, `Asking the seeds for ${name}`));
    try {
      const found = await ask("GET", `lookup/${seg(name)}`);
      const go = button(`Write to ${found.name}`, () => write(found, name.split("~")[1]), { kind: "main" });
      said.replaceChildren(el("div", { class: "card" }, avatar(found.name, found.online),
        el("div", {}, el("b", {}, found.name), el("p", { class: "quiet" }, `${presenceWords(found)}${found.home ? `, at home at ${found.home}` : ""}`), el("code", {}, found.groups))), go);
      go.focus();
    } catch (problem) {
      refused(problem);
    }
  };
  const made = dialog("New conversation",
    el("form", { onsubmit: look }, el("label", { for: "begin-name" }, "Name, or full address NAME~FINGERPRINT"),
      el("div", { class: "line" }, input, el("button", { type: "submit", class: "main" }, "Look up"))), said);
  input.focus();
}

function advice({ status }) {
  if (status === 404) return "Check the spelling, or ask its owner to register the name with a seed of this mesh.";
  if (status === 400) return "A name has 1 to 64 letters, digits, dots, dashes or underscores.";
  return "Try again in a moment.";
}

export function askForToken(unlocked) {
  if (document.querySelector("dialog[open]")) return;
  const input = el("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false" });
  const enter = (event) => {
    event.preventDefault();
    if (!input.value.trim()) return;
    token.set(input.value.trim());
    made.close();
    unlocked();
  };
  const wrong = token.get() && el("p", { class: "warning" }, el("span", {}, "The node has not accepted the token."));
  const made = dialog("This node asks for its token",
    el("p", {}, "It is in the file ", el("code", {}, "token"), " of the node’s state directory, on the machine where the node runs. For example: ",
      el("code", {}, "cat ~/.local/state/meshproto/user-NAME/token")),
    el("form", { onsubmit: enter }, el("label", { for: "token" }, "Token"),
      el("div", { class: "line" }, input, el("button", { type: "submit", class: "main" }, "Open"))),
    ...(wrong ? [wrong] : []), el("p", { class: "quiet" }, "This tab keeps it until it is closed."));
  input.focus();
}

export const KEYS = [
  ["/", "search"], ["n", "new conversation"], ["j k", "next, previous conversation"], ["c", "write"],
  ["m", "to the messages, then ↑ ↓ from one to the next"], ["r x", "on a message: retry, cancel"], ["Home End", "in the messages: the first, the latest"],
  ["f", "search in this conversation"], ["i", "key and address of who you write with"], ["g then c q m y", "go to chats, queue, mesh, you"],
  ["Enter", "send; Shift+Enter begins a new line"], ["Esc", "leave the field, close, or go back"], ["?", "this help"],
];
const SINGLE = "single-keys";

export const singleKeys = () => localStorage.getItem(SINGLE) !== "off";

export function help() {
  if (document.querySelector("dialog[open]")) return;
  const keep = ({ target }) => localStorage.setItem(SINGLE, target.checked ? "on" : "off");
  dialog("Keyboard shortcuts",
    el("dl", { class: "keys-help" }, KEYS.map(([keys, words]) => el("div", {},
      el("dt", {}, keys.split(" ").flatMap((key, at) => [at > 0 && " ", key === "then" ? key : el("kbd", {}, key)])), el("dd", {}, words)))),
    el("label", { class: "check" }, el("input", { type: "checkbox", checked: singleKeys(), onchange: keep }), "Single letters are shortcuts (outside of fields)"));
}

let fading;
export function toast(words) {
  byId("toast").textContent = words;
  clearTimeout(fading);
  fading = setTimeout(() => byId("toast").replaceChildren(), 8000);
}
