// The page of a seed: asks for `mesh` every two seconds and draws what it says. Names and addresses come from other
// machines: they enter the page as text only.

import { Traffic } from "./traffic.js";

const REFRESH_MS = 2000;
const PATIENCE_MS = 5000; // an answer that takes longer is a lost connection
const LINES_SEEDS_MAX = 16; // beyond this the lines between other seeds would be a grey cloud
const LABELS_SEEDS_MAX = { wide: 14, narrow: 6 }; // beyond this only the table has room for words
const SVG = "http://www.w3.org/2000/svg";
const still = matchMedia("(prefers-reduced-motion: reduce)");

const byId = (id) => document.getElementById(id);
const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;
const whole = (count) => count.toLocaleString("en");
const compact = (count) => count.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
const clock = (ms) => new Date(ms).toLocaleTimeString();

// A time of today, or the day too.
function moment(ms, now) {
  return now - ms < 12 * 3600e3 ? clock(ms) : new Date(ms).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function size(element, names) {
  for (const [name, value] of Object.entries(names)) element.setAttribute(name, value);
  return element;
}

function draw(parent, tag, names = {}, text = null) {
  const element = size(document.createElementNS(SVG, tag), names);
  if (text !== null) element.textContent = text;
  return parent.appendChild(element);
}

function add(parent, tag, className = "", text = null) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== null) element.textContent = text;
  return parent.appendChild(element);
}

// What is drawn and what is written both come from here.
function judged(seed, mesh) {
  const state = !seed.alive ? "dead" : seed.phi >= mesh.phi_dead / 2 ? "late" : "alive";
  return { ...seed, state, since_text: moment(seed.since, mesh.now), lasted: span(mesh.now - seed.since) };
}

// -- the picture ------------------------------------------------------------------------------------------------------

class Picture {
  constructor(stage) {
    this.stage = stage;
    this.svg = draw(stage, "svg", { role: "img", "aria-labelledby": "picture-title picture-text" });
    draw(this.svg, "title", { id: "picture-title" }, "The mesh");
    this.text = draw(this.svg, "desc", { id: "picture-text" });
    this.lines = draw(this.svg, "g");
    this.sparks = draw(this.svg, "g");
    this.nodes = draw(this.svg, "g");
    this.drawn = new Map();
    this.seeds = [];
    new ResizeObserver(() => this.seeds.length && this.show(this.seeds)).observe(stage);
  }

  show(seeds) {
    const before = new Map(this.seeds.map((seed) => [seed.name, seed]));
    this.seeds = seeds;
    this.layout(seeds.length);
    this.text.textContent = seeds.map((s) => `${s.name} ${s.state} with ${plural(s.users, "user")}`).join(", ");
    for (const [name, node] of this.drawn) {
      if (!seeds.some((seed) => seed.name === name)) { node.remove(); this.drawn.delete(name); }
    }
    seeds.forEach((seed, at) => this.node(seed, this.places[at]));
    this.connect(seeds);
    seeds.forEach((seed, at) => {
      const known = before.get(seed.name);
      if (known && known.version < seed.version) this.spark(seed, at);
    });
  }

  // Everything is in CSS pixels, so that text is as large on a phone as on a wall.
  layout(count) {
    const width = this.stage.clientWidth;
    const narrow = width < 560;
    const height = count === 1 ? 130 : count === 2 ? 300 : narrow ? Math.max(400, width * 1.15) : 470;
    size(this.svg, { viewBox: `0 0 ${width} ${height}`, height });
    const labelled = count <= (narrow ? LABELS_SEEDS_MAX.narrow : LABELS_SEEDS_MAX.wide);
    this.labelled = labelled;
    this.radius = count > 40 ? 5 : !labelled ? 12 : narrow ? 19 : 24;
    const rx = Math.min(width / 2 - (narrow ? 52 : 95), 360);
    const top = this.radius + (labelled ? 58 : 16);
    const bottom = height - this.radius - (labelled ? 72 : 16);
    const angles = Array.from({ length: count }, (_, at) => (at / count) * 2 * Math.PI);
    const lowest = Math.max(2e-9, ...angles.map((angle) => 1 - Math.cos(angle)));
    this.places = angles.map((angle) => ({
      x: width / 2 + rx * Math.sin(angle),
      y: top + ((bottom - top) * (1 - Math.cos(angle))) / lowest,
    }));
  }

  node(seed, place) {
    let node = this.drawn.get(seed.name);
    if (!node) {
      node = draw(this.nodes, "g", { class: "seed" });
      draw(node, "title");
      draw(node, "circle", { class: "own" });
      draw(node, "circle", { class: "body" });
      draw(node, "text", { class: "users", dy: "0.36em" });
      for (const kind of ["name", "note", "note more"]) draw(node, "text", { class: `halo ${kind}` });
      this.drawn.set(seed.name, node);
    }
    const [title, own, body, users, name, note, more] = node.children;
    const large = this.radius + (this.radius < 19 ? 0 : Math.min(14, 4 * Math.log10(1 + seed.users)));
    node.dataset.state = seed.state;
    node.classList.toggle("itself", seed.itself);
    node.style.transform = `translate(${place.x}px, ${place.y}px)`;
    title.textContent = `${seed.name}: ${seed.state} since ${seed.since_text}, φ ${seed.phi}`;
    size(body, { r: large });
    size(own, { r: large + 5 });
    const { labelled } = this;
    const sign = { dead: "✕", late: "!" }[seed.state] ?? "";
    users.textContent = labelled && seed.alive ? compact(seed.users) : sign;
    name.textContent = labelled ? shortened(seed.name) : "";
    note.textContent = labelled ? `${seed.itself ? "this seed" : seed.state}, ${seed.lasted}` : "";
    more.textContent = labelled && !seed.itself ? facts(seed) : "";
    const first = seed.itself ? -large - 30 : large + 20; // this seed stands on top: its lines leave below
    [name, note, more].forEach((text, at) => size(text, { y: first + 16 * at }));
  }

  // This seed to the others as it knows them; between the others pale, since it does not see those connections.
  connect(seeds) {
    const lines = [];
    const itself = seeds.findIndex((seed) => seed.itself);
    for (let a = 0; a < seeds.length; a++) {
      for (let b = a + 1; b < seeds.length; b++) {
        const own = a === itself || b === itself;
        const both = seeds[a].state !== "dead" && seeds[b].state !== "dead";
        if (own) lines.push([a, b, "line", seeds[a === itself ? b : a].state]);
        else if (both && seeds.length <= LINES_SEEDS_MAX) lines.unshift([a, b, "line between", "alive"]);
      }
    }
    this.lines.replaceChildren();
    for (const [a, b, kind, state] of lines) {
      const [from, to] = [this.places[a], this.places[b]];
      draw(this.lines, "line", { class: kind, "data-state": state, x1: from.x, y1: from.y, x2: to.x, y2: to.y });
    }
  }

  // Something new was heard of a seed: it travels here; what is new here travels to the others.
  spark(seed, at) {
    const itself = this.seeds.findIndex((other) => other.itself);
    if (still.matches || this.seeds.length > LINES_SEEDS_MAX || itself < 0) return;
    const living = this.seeds.flatMap((other, to) => (other.alive && to !== itself ? [[itself, to]] : []));
    for (const [from, to] of seed.itself ? living : [[at, itself]]) {
      const [start, end] = [this.places[from], this.places[to]];
      const dot = draw(this.sparks, "circle", { class: "news", r: 4, "data-state": "alive" });
      const steps = [start, end].map(({ x, y }) => ({ transform: `translate(${x}px, ${y}px)` }));
      dot.animate(steps, { duration: 700, easing: "ease-in-out" }).finished.finally(() => dot.remove());
    }
  }
}

const shortened = (name) => (name.length > 18 ? `${name.slice(0, 17)}…` : name);

function facts(seed) {
  const silence = `φ ${seed.phi >= 99 ? "≥ 99" : seed.phi.toFixed(1)}`;
  const lag = seed.lag ? `, ${compact(seed.lag)} not read` : "";
  return seed.state === "dead" ? `${plural(seed.users, "user")}${lag}` : `${silence}${lag}`;
}

// -- the words --------------------------------------------------------------------------------------------------------

function showTotals(mesh) {
  const { status } = mesh;
  const totals = [
    ["Seeds alive", whole(status.alive), `of ${whole(status.seeds)}`],
    ["Users online", compact(status.online), `of ${compact(status.names)}`],
    ["Connections", compact(status.links), ""],
    ["Lookups", compact(status.lookups), "here"],
    ["Registrations", compact(status.registrations), "here"],
    ["Running", span(status.uptime * 1000), ""],
  ];
  byId("totals").replaceChildren();
  for (const [word, value, more] of totals) {
    const group = add(byId("totals"), "div");
    add(group, "dt", "", word);
    const told = add(group, "dd", "", value);
    if (more) add(told, "small", "", ` ${more}`);
  }
}

function cell(row, label, className, text = null) {
  const made = add(row, "td", className, text);
  made.setAttribute("role", "cell");
  made.dataset.label = label;
  return made;
}

function showRows(seeds, mesh) {
  byId("rows").replaceChildren();
  for (const seed of seeds) {
    const row = size(add(byId("rows"), "tr"), { role: "row", "data-state": seed.state });
    const name = size(add(row, "th", "", seed.name), { role: "rowheader", scope: "row" });
    if (seed.itself) add(name, "small", "", " this seed");
    cell(row, "Address", "address", seed.address);
    const state = size(add(cell(row, "State", "state-cell"), "span", "state"), { "data-state": seed.state });
    size(add(state, "span", "mark"), { "aria-hidden": "true" });
    add(state, "span", "", seed.state);
    const since = add(cell(row, "Since", ""), "time", "", `${seed.since_text} (${seed.lasted})`);
    size(since, { datetime: new Date(seed.since).toISOString(), title: new Date(seed.since).toLocaleString() });
    cell(row, "Users", "number", whole(seed.users));
    const phi = cell(row, "Silence, as φ", "phi");
    const meter = size(add(phi, "span", "meter"), { "aria-hidden": "true" });
    add(meter, "i").style.width = `${Math.min(100, (100 * seed.phi) / mesh.phi_dead)}%`;
    add(phi, "span", "", seed.itself ? "–" : seed.phi >= 99 ? "99 or more" : seed.phi.toFixed(2));
    cell(row, "Version", "number", whole(seed.version));
    cell(row, "Not yet read", "number", whole(seed.lag));
  }
}

// Only what has changed is told to those who listen: a screen reader must not speak every two seconds.
function tell(text) {
  if (byId("news").textContent !== text) byId("news").textContent = text;
}

function tellChanges(before, seeds) {
  const known = new Map(before.map((seed) => [seed.name, seed.alive]));
  const changed = seeds.filter((seed) => before.length && known.get(seed.name) !== seed.alive);
  if (changed.length) tell(changed.map((seed) => `${seed.name} is ${seed.alive ? "alive" : "dead"}`).join(", "));
}

// -- asking -----------------------------------------------------------------------------------------------------------

const picture = new Picture(byId("stage"));
const traffic = new Traffic(byId("traffic"));
let heardAt = null;

function connection(state, text) {
  byId("connection").dataset.state = state;
  byId("connection-text").textContent = text;
  document.body.classList.toggle("lost", state === "lost");
}

function show(mesh) {
  const seeds = mesh.seeds.map((seed) => judged(seed, mesh)).sort((a, b) => b.itself - a.itself); // itself on top
  const others = seeds.length - 1;
  document.title = `${mesh.status.alive} of ${mesh.status.seeds} alive – ${mesh.status.seed}`;
  byId("title").textContent = mesh.status.seed;
  byId("subtitle").textContent = `The mesh as this seed sees it. meshproto ${mesh.status.version}`;
  byId("phi-dead").textContent = `, and from ${mesh.phi_dead} on the seed counts as dead`;
  byId("hint").textContent = others ? "" : "No other seed is known yet. Start one with --peer and this seed’s address.";
  showTotals(mesh);
  tellChanges(picture.seeds, seeds);
  picture.show(seeds);
  traffic.show(mesh);
  showRows(seeds, mesh);
}

async function refresh() {
  try {
    const answer = await fetch("mesh", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    show(await answer.json());
    if (byId("connection").dataset.state === "lost") tell("connected again");
    heardAt = Date.now();
    connection("live", `live, ${clock(heardAt)}`);
  } catch (error) {
    console.warn(error);
    const last = heardAt === null ? "never reached" : `no answer since ${clock(heardAt)}`;
    connection("lost", `connection lost: ${last}`);
    tell("connection lost");
  }
  setTimeout(refresh, REFRESH_MS);
}

refresh();
