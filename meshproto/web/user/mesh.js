// The mesh as this node sees it: the seeds, whether they live, and who is home where. Drawn, and in words.

import { ask, seg } from "./api.js";
import { el, emptyState, icon, svg } from "./dom.js";
import { latest } from "./store.js";
import { fold, plural, presenceWords, since, whole } from "./words.js";

const REFRESH_MS = 5000;
const USERS_MAX = 36; // of those one writes with, whose home is asked for and drawn
const ASKED_TOGETHER = 4;
const FOLLOW_MS = 500;
const HOMES_MS = 60e3; // until somebody's home is asked for again
const LABELS_MAX = 16;

export class MeshView {
  constructor(store) {
    this.store = store;
    this.title = "Mesh";
    this.homes = new Map(); // folded name -> {name, home, online, seen}
    this.seeds = [];
    this.stage = el("div", { class: "stage" });
    this.words = el("div", { class: "words" });
    this.element = el("div", { class: "view" },
      el("header", { class: "bar" }, el("a", { class: "round backward", href: "#/", "aria-label": "Back" }, icon("back")), el("h2", {}, "Mesh"),
        this.summary = el("p", { class: "quiet" })),
      el("div", { class: "scroll page wide", tabindex: 0, role: "group", "aria-label": "The mesh" },
        el("section", { class: "card picture", "aria-label": "Picture" }, this.stage,
          el("ul", { class: "legend", "aria-label": "How to read the picture" },
            el("li", { "data-state": "alive" }, el("i", {}), "seed alive"), el("li", { "data-state": "dead" }, el("i", {}), "seed dead"),
            el("li", { "data-state": "unknown" }, el("i", {}), "seed unknown"),
            el("li", { "data-state": "online" }, el("i", {}), "online"), el("li", { "data-state": "away" }, el("i", {}), "away"),
            el("li", { "data-state": "own" }, el("i", {}), "you"))),
        el("section", { class: "card", "aria-labelledby": "mesh-words" }, el("h3", { id: "mesh-words" }, "The same in words"), this.words)));
    this.off = new AbortController();
    this.follow = latest(() => this.#findHomes(), FOLLOW_MS);
    store.addEventListener("presence", (event) => this.#moved(event.detail), { signal: this.off.signal });
    for (const kind of ["conversations", "status"]) store.addEventListener(kind, this.follow, { signal: this.off.signal });
    this.resizing = new ResizeObserver(() => this.#draw());
    this.resizing.observe(this.stage);
    this.#refresh();
  }

  close() {
    this.off.abort();
    this.resizing.disconnect();
    clearTimeout(this.timer);
    this.closed = true;
  }

  async #refresh() {
    const answer = await this.store.attempt(() => ask("GET", "seeds"));
    if (answer) this.seeds = answer.seeds;
    this.follow();
    if (this.closed) return;
    this.timer = setTimeout(() => this.#refresh(), REFRESH_MS);
  }

  // Who has come or gone may have moved.
  #moved({ name, online, seen }) {
    const known = this.homes.get(fold(name));
    if (!known || known.online === online) return;
    this.homes.set(fold(name), { ...known, online, seen, at: 0 });
    this.#draw();
  }

  async #findHomes() {
    const due = this.store.sorted.slice(0, USERS_MAX).map(({ name }) => name)
      .filter((name) => Date.now() - (this.homes.get(fold(name))?.at ?? 0) > HOMES_MS);
    const work = async () => {
      for (let name = due.shift(); name !== undefined && !this.closed; name = due.shift()) {
        const found = await ask("GET", `lookup/${seg(name)}`).catch(() => ({ home: null, online: null, seen: null }));
        this.homes.set(fold(name), { name, home: found.home, online: found.online, seen: found.seen, at: Date.now() });
      }
    };
    await Promise.all(Array.from({ length: ASKED_TOGETHER }, work));
    this.#draw();
  }

  // -- the picture -----------------------------------------------------------------------------------------------------

  get #people() {
    const { status } = this.store;
    const own = status && { name: status.name, home: status.home?.name ?? null, online: status.registered, own: true };
    const others = [...this.homes.values()].filter(({ name }) => fold(name) !== fold(status?.name ?? ""))
      .sort((a, b) => a.name.localeCompare(b.name));
    return own ? [own, ...others] : others;
  }

  #draw() {
    const { seeds } = this;
    if (!seeds.length) {
      this.stage.replaceChildren(emptyState("mesh", "No seed is known yet", el("p", {}, "A node learns of the seeds from the first one that it reaches. Start one with: twistd -n meshseed")));
      this.words.replaceChildren();
      return;
    }
    this.summary.textContent = this.#summary();
    const people = this.#people;
    this.#picture(seeds, people);
    this.#table(seeds, people);
  }

  // Without a home seed nobody tells this node which seeds live.
  #summary() {
    const { seeds, store: { status } } = this;
    const count = plural(seeds.length, "seed");
    if (seeds.every(({ alive }) => alive !== null)) return `${seeds.filter(({ alive }) => alive).length} of ${count} alive`;
    return `${count} known, ${status?.seed_answers === false ? "none answers" : "none is your home"}`;
  }

  #picture(seeds, people) {
    const width = Math.max(300, this.stage.clientWidth);
    const height = Math.max(300, Math.min(520, width * 0.62));
    const centre = { x: width / 2, y: height / 2 };
    const ring = seeds.length === 1 ? { x: 0, y: 0 } : { x: width * 0.22, y: height * 0.23 };
    const places = seeds.map((seed, at) => {
      const angle = -Math.PI / 2 + ((at + (seeds.length === 2 ? 0.5 : 0)) * 2 * Math.PI) / seeds.length;
      return { seed, angle, x: centre.x + ring.x * Math.cos(angle), y: centre.y + ring.y * Math.sin(angle) };
    });
    const labelled = people.length <= (width < 520 ? LABELS_MAX / 2 : LABELS_MAX);
    const lines = places.flatMap((a, at) => places.slice(at + 1).map((b) => line(a, b, `between ${worseOf(a.seed, b.seed)}`)));
    const users = places.flatMap((place) => this.#around(place, people.filter(({ home }) => home === place.seed.name), { width, height, labelled, seeds: seeds.length }));
    const nodes = places.map(({ seed, x, y }) => svg("g", { class: `seed${seed.home ? " home" : ""}`, "data-state": lifeOf(seed), transform: `translate(${x} ${y})` },
      svg("circle", { class: "body", r: 24 }), svg("text", { class: "count", dy: "0.36em" }, COUNTS[lifeOf(seed)] ?? whole(seed.users)),
      svg("text", { class: "name", y: 42 }, shortened(seed.name))));
    const text = seeds.map((seed) => `${seed.name} is ${lifeOf(seed)}`).join(", ");
    this.stage.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `The mesh: ${text}` },
      lines, users.map(({ line: drawn }) => drawn), nodes, users.map(({ dot }) => dot)));
  }

  // Those at home at a seed: around the only one, else on the side that looks away from the others, in a part of the
  // circle that is this seed's own.
  #around({ x, y, angle }, people, { width, height, labelled, seeds }) {
    const alone = seeds === 1;
    const spread = alone ? 2 * Math.PI : ((2 * Math.PI) / seeds) * 0.8;
    return people.map((one, at) => {
      const turn = alone ? (at * spread) / people.length : people.length === 1 ? 0 : (at / (people.length - 1) - 0.5) * spread;
      const far = at % 2 && people.length > 5 ? 1.35 : 1;
      const to = {
        x: clamp(x + Math.cos(angle + turn) * Math.min(150, width * 0.2) * far, 44, width - 44),
        y: clamp(y + Math.sin(angle + turn) * Math.min(105, height * 0.2) * far, 22, height - 30),
      };
      const state = one.own ? "own" : one.online ? "online" : "away";
      const dot = svg("g", { class: "user", "data-state": state, transform: `translate(${to.x} ${to.y})` },
        svg("circle", { r: one.own ? 10 : 8 }), svg("title", {}, `${one.name}: ${one.own ? "you" : presenceWords(one)}`),
        labelled || one.own ? svg("text", { y: 24 }, shortened(one.name)) : null);
      return { dot, line: line({ x, y }, to, "home") };
    });
  }

  #table(seeds, people) {
    const row = (seed) => {
      const here = people.filter(({ home }) => home === seed.name);
      const names = here.flatMap((one, at) => [at > 0 && ", ", one.own ? "you" : el("a", { href: `#/with/${seg(one.name)}` }, one.name), !one.own && one.online === false && " (away)"]);
      return el("li", { "data-state": lifeOf(seed) },
        el("i", { class: "mark", "aria-hidden": "true" }),
        el("div", {}, el("p", {}, el("b", {}, seed.name), el("span", { class: "live" }, `${lifeOf(seed)}${seed.since && seed.alive !== null ? ` since ${since(seed.since)}` : ""}`), seed.home && el("span", { class: "tag" }, "your home")),
          el("p", { class: "quiet" }, el("code", {}, seed.address), seed.alive && ` · home of ${plural(seed.users, "user")}`),
          names.length > 0 && el("p", {}, "Here: ", names)));
    };
    const lost = people.filter(({ home, own }) => !own && !seeds.some(({ name }) => name === home));
    this.words.replaceChildren(el("ul", { class: "seeds" }, seeds.map(row)),
      ...(lost.length ? [el("p", { class: "quiet" }, `Home not known: ${lost.map(({ name }) => name).join(", ")}`)] : []));
  }
}

const COUNTS = { dead: "✕", unknown: "?" }; // where nobody knows how many are at home
const worseOf = (...seeds) => ["dead", "unknown", "alive"].find((life) => seeds.some((seed) => lifeOf(seed) === life));
const lifeOf = ({ alive }) => (alive === null ? "unknown" : alive ? "alive" : "dead");
const clamp = (value, least, most) => Math.max(least, Math.min(most, value));
const line = (a, b, kind) => svg("line", { class: kind, x1: a.x, y1: a.y, x2: b.x, y2: b.y });
const shortened = (name) => (name.length > 16 ? `${name.slice(0, 15)}…` : name);
