// Puts everything together: what the address says is shown, what the stream tells is stored, what is typed is carried out.

import { door, token } from "./api.js";
import { ContactView, OwnView } from "./contact.js";
import { ConversationView } from "./conversation.js";
import { askForToken, beginConversation, help, singleKeys, toast } from "./dialogs.js";
import { byId, button, command, el, emptyState, icon } from "./dom.js";
import { Link } from "./link.js";
import { MeshView } from "./mesh.js";
import { QueueView } from "./queue.js";
import { Side } from "./side.js";
import { Store } from "./store.js";
import { bare, curlLine, few, fold, inBrief } from "./words.js";

const STATUS_MS = 30e3; // what the stream does not tell of: registration, keys, the disk
const RESTING_MS = 20e3; // a page that nobody sees, while another one is seen, asks for what is unread now and then
const TICK_MS = 1000;
const GO = { c: "#/", q: "#/queue", m: "#/mesh", y: "#/me" };
const GO_MS = 1500; // for the second key

const store = new Store();
const link = new Link(store);
const side = new Side(store);
const main = byId("main");
let view = null;
let goUntil = 0;
let steppedTo = null; // the address to which j or k has led: one who steps on does not write yet

// -- where one is -----------------------------------------------------------------------------------------------------

class Welcome {
  constructor() {
    this.title = "";
    this.element = el("div", { class: "view" }, this.body = el("div", { class: "scroll page" }));
    this.draw();
  }

  draw() {
    const name = store.status?.name;
    this.body.replaceChildren(emptyState("chats", name ? `You are ${name}` : "Choose a conversation",
      el("p", {}, "Choose a conversation, or begin one. ", el("kbd", {}, "?"), " shows what the keyboard can do."),
      button("New conversation", beginConversation, { sign: "plus", kind: "main" }),
      name && el("p", {}, "A program on this machine can write to you, too:"), name && command(curlLine(name, token.get()))));
  }
}

function made(kind, name, at) {
  switch (kind) {
    case "with": return new ConversationView(store, name, at, find);
    case "contact": return new ContactView(store, name);
    case "queue": return new QueueView(store);
    case "mesh": return new MeshView(store);
    case "me": return new OwnView(store, { help });
    default: return new Welcome();
  }
}

// An address that somebody has typed need not be one.
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}

// #/with/NAME, #/with/NAME/at/POS, #/contact/NAME, #/queue, #/mesh, #/me; anything else: all conversations.
function route() {
  const [, kind = "", name = "", , pos] = location.hash.split("/").map(decoded);
  view?.close?.();
  view = made(kind, name, pos ? Number(pos) : null);
  main.replaceChildren(view.element);
  document.body.dataset.pane = view instanceof Welcome ? "list" : "main";
  document.body.dataset.view = kind;
  side.choose(kind === "with" || kind === "contact" ? name : null);
  for (const item of document.querySelectorAll("#rail a")) {
    const here = item.dataset.view === (["queue", "mesh", "me"].includes(kind) ? kind : "chats");
    if (here) item.setAttribute("aria-current", "page");
    else item.removeAttribute("aria-current");
  }
  if (location.hash !== steppedTo) steppedTo = null;
  if (steppedTo !== null) view.log.focus({ preventScroll: true });
  else if (view.focus) view.focus();
  else if (!(view instanceof Welcome)) main.focus({ preventScroll: true });
  title();
}

// In one conversation. Where there is room for one pane only, the search is on the other.
function find(name) {
  if (byId("search").offsetParent === null) document.body.dataset.pane = "list";
  side.scope(name);
}

function title() {
  const { unread, status } = store;
  const words = [view?.title, status?.name ?? "Mesh"].filter(Boolean).join(" – ");
  document.title = unread ? `(${unread}) ${words}` : words;
}

// -- what is always on the screen -------------------------------------------------------------------------------------

function numbers() {
  byId("own-name").textContent = store.status?.name ?? "Mesh";
  badge("rail-unread", store.unread, "unread");
  badge("rail-waiting", store.status?.outbox.waiting ?? 0, "waiting");
  if (view instanceof Welcome) view.draw();
  title();
}

function badge(id, count, words) {
  byId(id).replaceChildren(...(count ? [few(count), el("span", { class: "unseen" }, ` ${words}`)] : []));
}

function connection() {
  const { state, reason, retryAt } = store.connection;
  const pill = byId("connection");
  const shown = state === "live" && store.status?.registered === false ? "seedless" : state;
  const changed = pill.dataset.state !== shown;
  pill.dataset.state = shown;
  pill.title = reason ?? "";
  const seconds = Math.ceil((retryAt - Date.now()) / 1000);
  byId("connection-text").textContent = {
    live: "live",
    seedless: "no seed",
    connecting: "connecting",
    resting: "resting",
    locked: "token needed",
    lost: seconds > 0 ? `connection lost, again in ${seconds} s` : "connection lost, trying",
  }[shown];
  byId("reconnect").hidden = state !== "lost";
  if (changed && state === "lost") speak("Connection to your node lost");
  if (changed && shown === "seedless") speak("Your node has no seed");
  if (changed && shown === "live" && pill.dataset.lost) speak("Connected again");
  if (shown === "lost" || shown === "seedless") pill.dataset.lost = "true";
}

// To those who listen.
function speak(words) {
  byId("news").textContent = words;
}

// -- the keyboard -----------------------------------------------------------------------------------------------------

const writes = (element) => element.matches("textarea, input:not([type=radio], [type=checkbox])");

function step(by) {
  const name = side.neighbour(by);
  if (name === null) return;
  location.hash = `#/with/${encodeURIComponent(store.conversation(name)?.name ?? name)}`;
  steppedTo = location.hash;
  view.log?.focus({ preventScroll: true }); // at the end of the list it leads nowhere else
}

const SHORTCUTS = {
  "?": help,
  "/": () => byId("search").select(),
  n: beginConversation,
  j: () => step(1),
  k: () => step(-1),
  g: () => (goUntil = Date.now() + GO_MS),
};

function back(target) {
  if (writes(target) && target !== byId("composer")) target.blur();
  else if (target === byId("composer") && view.log) view.log.focus();
  else if (location.hash.length > 2) location.hash = view.element.querySelector(".backward")?.getAttribute("href") ?? "#/";
  else side.links[0]?.focus();
}

function onkey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  const { key, target } = event;
  if (key === "Escape") back(target);
  else if (writes(target)) return;
  else if (Date.now() < goUntil && GO[key]) [location.hash, goUntil] = [GO[key], 0];
  else if (key.length === 1 && !singleKeys()) return;
  else if (byId("list").contains(target) && (key === "ArrowDown" || key === "ArrowUp")) move(key === "ArrowDown" ? 1 : -1);
  else if (view.onkey?.(key)) event.preventDefault();
  else if (SHORTCUTS[key]) SHORTCUTS[key]();
  else return;
  event.preventDefault();
}

// From one conversation or hit to the next.
function move(by) {
  const { links } = side;
  const at = links.indexOf(document.activeElement) + by;
  if (at < 0) byId("search").focus();
  else links[Math.min(at, links.length - 1)]?.focus();
}

// -- beginning --------------------------------------------------------------------------------------------------------

for (const item of document.querySelectorAll("#rail a")) item.querySelector("svg").replaceWith(icon(item.dataset.view));
byId("rail-help").querySelector("svg").replaceWith(icon("help"));
byId("begin").querySelector("svg").replaceWith(icon("plus"));
document.querySelector("#side .field svg").replaceWith(icon("search"));

store.on("conversations status", numbers);
store.on("connection status", connection);
store.on("problem", (problem) => toast(problem.message));
store.on("notice", toast);
store.on("opened", () => (store.refreshConversations(), store.refreshStatus()));
store.on("message", ({ from, message }) => speak(`${from.name}: ${inBrief(message)}`));
store.on("outbox", ({ to, status }) => view.name && fold(bare(to)) === fold(bare(view.name)) && speak(`Your message to ${to} is ${status}`));
door.addEventListener("locked", () => askForToken(() => link.now()));

document.querySelector(".skip").addEventListener("click", (event) => (event.preventDefault(), main.focus()));
byId("begin").addEventListener("click", beginConversation);
byId("rail-help").addEventListener("click", help);
byId("reconnect").addEventListener("click", () => link.now());
document.addEventListener("keydown", onkey);
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && store.refreshConversations());
addEventListener("hashchange", route);
// A link to where one is already leads back there from a search.
document.addEventListener("click", ({ target }) => target.closest?.("a")?.getAttribute("href") === location.hash && (steppedTo = null, route()));
setInterval(() => store.connection.state === "lost" && connection(), TICK_MS);
setInterval(() => store.connection.state === "live" && store.refreshStatus(), STATUS_MS);
setInterval(() => store.connection.state === "resting" && store.refreshConversations(), RESTING_MS);

route();
// Whose presence is to be told is known first.
store.refreshStatus();
await store.refreshConversations();
link.run();
