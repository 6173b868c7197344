// A scrolled list of rows that come and go at both ends. Only what is given is in the document; what the reader looks at
// stays where it is when rows are put above it.
//
// A row: {key, sign, make}. `make()` gives its element; it is made anew only when `sign` changes.

const NEAR = 1.5; // screens from an end at which more is asked for,
const NEAR_PART = 4; // but of all there is a quarter at most: else a high screen would be near to both ends
const BOTTOM_PX = 40; // this near to the end counts as being there

export class List {
  constructor(scroller, { older, newer, atEnd }) {
    this.scroller = scroller;
    this.body = scroller.appendChild(document.createElement("div"));
    this.body.className = "rows";
    this.rows = new Map();
    this.stuck = true; // to the end
    this.wants = { older, newer, atEnd };
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#settle()).observe(scroller);
    new ResizeObserver(() => this.#settle()).observe(this.body);
  }

  show(rows) {
    const anchor = this.stuck ? null : this.#anchor(rows);
    this.#place(rows);
    if (anchor) this.scroller.scrollTop += top(anchor.element) - anchor.top;
    this.#settle();
    this.#scrolled();
  }

  // Begins at the end again, or with a row in the middle of the screen.
  reset(key = null) {
    this.stuck = key === null;
    const row = this.rows.get(key)?.element;
    if (row) row.scrollIntoView({ block: "center" });
    else if (key === null) this.#settle();
    return row ?? null;
  }

  toEnd() {
    this.stuck = true;
    this.#settle();
  }

  #settle() {
    if (this.stuck) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroller;
    if (!clientHeight) return;
    const below = scrollHeight - clientHeight - scrollTop;
    this.stuck = below < BOTTOM_PX;
    this.wants.atEnd(this.stuck);
    const near = Math.min(NEAR * clientHeight, (scrollHeight - clientHeight) / NEAR_PART);
    if (scrollTop <= near) this.wants.older();
    if (below <= near) this.wants.newer();
  }

  // The first row on the screen that will still be there.
  #anchor(rows) {
    const kept = new Set(rows.map(({ key }) => key));
    const edge = this.scroller.getBoundingClientRect().top;
    for (const [key, { element }] of this.rows) {
      if (kept.has(key) && element.getBoundingClientRect().bottom > edge) return { element, top: top(element) };
    }
    return null;
  }

  #place(rows) {
    const before = this.rows;
    this.rows = new Map();
    for (const { key, sign, make } of rows) {
      const old = before.get(key);
      this.rows.set(key, old?.sign === sign ? old : { sign, element: make(old?.element) });
    }
    const kept = new Set([...this.rows.values()].map(({ element }) => element));
    const focused = [...before].find(([, { element }]) => element.contains(document.activeElement))?.[0];
    for (const { element } of before.values()) if (!kept.has(element)) element.remove();
    let next = this.body.firstChild;
    for (const { element } of this.rows.values()) {
      if (element === next) next = next.nextSibling;
      else this.body.insertBefore(element, next);
    }
    if (focused !== undefined) this.#refocus(focused);
  }

  // Who was in a row that was made anew is in it still; of one that is gone, in the list.
  #refocus(key) {
    const row = this.rows.get(key)?.element;
    if (row?.contains(document.activeElement)) return;
    (row ?? this.scroller).focus({ preventScroll: true });
  }
}

const top = (element) => element.getBoundingClientRect().top;
