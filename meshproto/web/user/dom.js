// Elements. What comes from elsewhere (names, texts, reasons) enters the page as text nodes and attributes only.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function attribute(element, name, value) {
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (value === true) element.setAttribute(name, "");
  else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
}

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) attribute(element, name, value);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) attribute(element, name, value);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const ICONS = {
  alert: ["M12 3.5 2.5 20h19zM12 10v4.5", "M12 17.2v.1"],
  back: ["M15 5l-7 7 7 7"],
  chats: ["M4 5h16v11H10l-4.5 4v-4H4z"],
  check: ["M5 12.5l4.5 4.5L19 7.5"],
  clock: ["M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17z", "M12 7.5V12l3 2"],
  copy: ["M9 9h11v11H9z", "M5 15H4V4h11v1"],
  cross: ["M6 6l12 12M18 6L6 18"],
  down: ["M12 5v14M6 13l6 6 6-6"],
  help: ["M4 6.5h16v11H4z", "M7.5 10h.1M12 10h.1M16.5 10h.1M8 14h8"],
  me: ["M12 4a4 4 0 1 1 0 8 4 4 0 0 1 0-8z", "M4.5 20.5c.8-4 3.8-5.5 7.5-5.5s6.7 1.5 7.5 5.5"],
  mesh: ["M12 6 6 18h12z", "M12 8.2a2.2 2.2 0 1 0 0-4.4 2.2 2.2 0 0 0 0 4.4zM6 20.2a2.2 2.2 0 1 0 0-4.4 2.2 2.2 0 0 0 0 4.4zM18 20.2a2.2 2.2 0 1 0 0-4.4 2.2 2.2 0 0 0 0 4.4z"],
  plus: ["M12 5v14M5 12h14"],
  queue: ["M4 13l2.5-8h11L20 13v6H4zM4 13h5l1 2.5h4l1-2.5h5"],
  retry: ["M19.5 12a7.5 7.5 0 1 1-2.2-5.3L19.5 9", "M19.5 4.5V9H15"],
  search: ["M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13z", "M15.5 15.5 20 20"],
  send: ["M4 12 20.5 4.5 14 20.5l-3-7z"],
  shield: ["M12 3.5 5 6v6c0 4.5 3 7.2 7 8.5 4-1.3 7-4 7-8.5V6z", "M9 12l2.2 2.2L15.2 10"],
};

export function icon(name) {
  const paths = ICONS[name].map((d) => svg("path", { d }));
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, paths);
}

// A button with words; `sign`: its icon, if any.
export function button(words, onclick, { sign = null, kind = "", label = null } = {}) {
  return el("button", { type: "button", class: kind, onclick, "aria-label": label }, sign && icon(sign), el("span", {}, words));
}

// A circle with the first letters of a name, in a colour that is the name's own.
export function avatar(name, presence = null) {
  const letters = name.match(/[A-Za-z0-9]/g) ?? ["?"];
  let hue = 0;
  for (const letter of name.toLowerCase()) hue = (hue * 31 + letter.charCodeAt(0)) % 8;
  const circle = el("span", { class: "avatar", "data-hue": hue, "aria-hidden": "true" }, letters[0].toUpperCase());
  if (presence !== null) circle.append(el("i", { "data-online": String(presence) }));
  return circle;
}

// A command to copy. Where the browser gives no clipboard (plain http elsewhere than on localhost) the text is selected.
export function command(text) {
  const code = el("code", {}, text);
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.lastChild.textContent = "Copied";
      setTimeout(() => (copy.lastChild.textContent = "Copy"), 2000);
    } catch {
      getSelection().selectAllChildren(code);
    }
  }, { sign: "copy", kind: "small" });
  return el("div", { class: "command" }, el("pre", { tabindex: 0, "aria-label": "command" }, code), copy);
}

export function emptyState(sign, title, ...more) {
  return el("div", { class: "empty" }, icon(sign), el("h2", {}, title), more);
}

// A modal dialog that is gone when it is closed. The browser gives the focus back.
export function dialog(title, ...content) {
  const id = `dialog-${Math.random().toString(36).slice(2)}`;
  const made = el("dialog", { "aria-labelledby": id, onclose: () => made.remove() });
  const close = el("button", { type: "button", class: "round", "aria-label": "Close", onclick: () => made.close() }, icon("cross"));
  made.append(el("header", {}, el("h2", { id }, title), close), ...content);
  document.body.append(made);
  made.showModal();
  return made;
}

export function confirm(title, words, yes) {
  return new Promise((decided) => {
    const asked = dialog(title, el("p", {}, words));
    const decide = (answer) => () => {
      decided(answer);
      asked.close();
    };
    asked.append(el("div", { class: "actions" }, button("No", decide(false)), button(yes, decide(true), { kind: "main" })));
    asked.addEventListener("close", () => decided(false));
  });
}
