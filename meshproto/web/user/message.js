// One message as it is shown: its text, folded when it is long, and what has become of it.

import { button, el, icon } from "./dom.js";
import { bytes, clock, isWaiting, moment, readable, readableBeginning, stateOf } from "./words.js";

const FOLD_CHARS = 900; // a longer text is folded to this
const FOLD_LINES = 14;
const UNFOLD_CHARS = 16000; // what is shown more at a time: a browser takes its time for very long texts

// Lines of a table, or of a program: what is under each other by runs of spaces has to stay so. Two spaces after the end
// of a sentence are only a habit.
const ALIGNED = /(?:^|[^.!?\s])(?:\t| {2,})\S.*/gm;
const ALIGNED_LINES = 2;

const inColumns = (text) => text.match(ALIGNED)?.length >= ALIGNED_LINES;

function firstLines(text) {
  let at = -1;
  for (let line = 0; line < FOLD_LINES; line++) {
    at = text.indexOf("\n", at + 1);
    if (at < 0) return text.length;
  }
  return at;
}

// Never half of a letter that takes two places.
function cutAt(text, chars) {
  const code = text.charCodeAt(chars - 1);
  return code >= 0xd800 && code < 0xdc00 ? chars - 1 : chars;
}

// What is wider than its bubble is scrolled there, by the keyboard too.
function textElement(message, columns) {
  if (typeof message !== "string") return el("pre", { class: "text" });
  return columns ? el("pre", { class: "text columns", tabindex: 0, role: "group", "aria-label": "Text in columns" }) : el("p", { class: "text" });
}

function body(message) {
  let { text, all } = readableBeginning(message, FOLD_LINES * 2);
  let until = Math.min(firstLines(text), text.length > FOLD_CHARS * 1.3 ? FOLD_CHARS : text.length);
  until = cutAt(text, until);
  const shown = textElement(message, inColumns(text.slice(0, until)));
  shown.textContent = text.slice(0, until);
  if (all && until >= text.length) return [shown];
  const more = button(all ? `Show more of ${bytes(text.length)}` : "Show more", () => {
    if (!all) [text, all] = [readable(message), true];
    const before = until;
    until = cutAt(text, Math.min(text.length, until + UNFOLD_CHARS));
    shown.append(text.slice(before, until));
    if (until >= text.length) more.remove();
  }, { kind: "link" });
  shown.classList.add("folded");
  return [shown, more];
}

function stateLine(item, repeated, actions) {
  const { status, sign, words, reason } = stateOf(item);
  const line = el("span", { class: "state", "data-state": status }, icon(sign), el("span", {}, words));
  const parts = [line];
  if (reason && !repeated) parts.push(el("span", { class: "reason" }, reason));
  const offered = el("span", { class: "offers" });
  if (isWaiting(item.status) && !item.taken) {
    offered.append(
      button("Retry now", () => actions.retry(item), { kind: "link retry" }),
      button("Cancel", () => actions.cancel(item), { kind: "link cancel" }),
    );
  } else if (["failed", "refused", "expired", "cancelled"].includes(item.status)) {
    offered.append(button("Send again", () => actions.resend(item), { kind: "link retry" }));
    if (item.status === "failed") offered.append(button("Discard", () => actions.discard(item), { kind: "link cancel" }));
  }
  if (offered.childElementCount) parts.push(offered);
  return parts;
}

// `joined`: right after another one of the same side, so that it need not be said again who speaks. `repeated`: the next
// one waits for the same reason, and says it.
export function messageElement(item, { joined, repeated, found }, actions) {
  const own = item.direction === "out";
  const speaker = own ? "You" : item.from.name;
  const element = el("article", {
    class: `message ${item.direction}${joined ? " joined" : ""}${found ? " found" : ""}`,
    tabindex: -1, "data-id": item.id, "data-pos": item.pos, "data-status": item.status,
  });
  const time = el("time", { datetime: new Date(item.at).toISOString(), title: moment(item.at) }, clock(item.at));
  const foot = el("p", { class: "foot" }, item.type && el("span", { class: "type" }, item.type), time, own && stateLine(item, repeated, actions));
  element.append(el("span", { class: "unseen" }, `${speaker}: `), el("div", { class: "bubble" }, body(item.message)), foot);
  return element;
}

// What makes a message look different.
export function messageSign(item, { joined, repeated, found }) {
  return [joined, repeated, found, item.status, item.changed_at, item.reason].join("|");
}
