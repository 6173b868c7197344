// How much goes on at a seed: what its counters have gained by the second, over the last minutes, as small curves.

const KEPT = 90; // answers: three minutes
const WIDTH = 240, HEIGHT = 44;
const SVG = "http://www.w3.org/2000/svg";

const rate = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
const KINDS = [
  ["Lookups", (mesh) => mesh.status.lookups, (value) => `${rate(value)} / s`],
  ["Registrations", (mesh) => mesh.status.registrations, (value) => `${rate(value)} / s`],
  ["Gossip heard", (mesh) => mesh.gossip.received_bytes, (value) => `${rate(value / 1000)} kB / s`],
  ["Gossip told", (mesh) => mesh.gossip.sent_bytes, (value) => `${rate(value / 1000)} kB / s`],
];

export class Traffic {
  constructor(stage) {
    this.before = null;
    this.curves = KINDS.map(([word, count, text]) => ({ count, text, word, rates: [], ...this.figure(stage, word) }));
  }

  figure(stage, word) {
    const figure = stage.appendChild(document.createElement("figure"));
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.append(`${word} `);
    const now = caption.appendChild(document.createElement("strong"));
    const svg = figure.appendChild(document.createElementNS(SVG, "svg"));
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    const [area, line] = ["area", "curve"].map((kind) => {
      const path = svg.appendChild(document.createElementNS(SVG, "path"));
      path.setAttribute("class", kind);
      return path;
    });
    return { now, svg, area, line };
  }

  show(mesh) {
    const before = this.before;
    this.before = mesh;
    if (!before || mesh.now <= before.now) return;
    if (mesh.status.uptime < before.status.uptime) this.curves.forEach((curve) => (curve.rates = [])); // it was restarted
    else this.curves.forEach((curve) => this.add(curve, before, mesh));
  }

  add(curve, before, mesh) {
    const gained = curve.count(mesh) - curve.count(before);
    curve.rates = [...curve.rates, (1000 * Math.max(0, gained)) / (mesh.now - before.now)].slice(-KEPT);
    const last = curve.rates.at(-1), most = Math.max(...curve.rates);
    curve.now.textContent = curve.text(last);
    curve.svg.setAttribute("aria-label", `${curve.word}: ${curve.text(last)}, at most ${curve.text(most)} lately`);
    const from = KEPT - curve.rates.length;
    const x = (at) => ((from + at) * WIDTH) / (KEPT - 1);
    const y = (value) => HEIGHT - 2 - ((HEIGHT - 6) * value) / (most || 1);
    const points = curve.rates.map((value, at) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" L");
    curve.line.setAttribute("d", `M${points}`);
    curve.area.setAttribute("d", `M${x(0).toFixed(1)},${HEIGHT} L${points} L${WIDTH},${HEIGHT} Z`);
  }
}
