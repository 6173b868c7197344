// The node's HTTP, as its /openapi.json tells it: operations in groups, what they take and answer, lines to copy, and
// questions to try.

import { ask, door, Problem } from "./api.js";
import { askForToken } from "./dialogs.js";
import { button, byId, command, el } from "./dom.js";

const SERVER = "http://127.0.0.1:3000"; // where the examples are asked; here it is this node:
const HERE = new URL("..", document.baseURI).href.replace(/\/$/, "");
const SHAPE = "#/components/schemas/";

const anchor = (text) => text.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-|-$/g, "");
const anchorOf = ({ method, path }) => anchor(`${method} ${path}`);
const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
const between = (parts, word) => parts.flatMap((part, at) => (at ? [word, part] : [part]));

// What stands between backquotes is code.
const prose = (text) => text.split("`").map((part, at) => (at % 2 ? el("code", {}, part) : part));

// What a value may be, in words, with links to the shapes.
function typeOf(schema) {
  if (schema.$ref) {
    const name = schema.$ref.slice(SHAPE.length);
    return [el("a", { href: `#shape-${name}` }, name)];
  }
  if (schema.anyOf) return between(schema.anyOf.map(typeOf), " or ").flat();
  if (schema.enum) return between(schema.enum.map((value) => el("code", {}, JSON.stringify(value))), ", ");
  if (schema.type === "array") return ["list of ", ...typeOf(schema.items ?? {})];
  return [[schema.type ?? "any JSON", limits(schema)].filter(Boolean).join(", ")];
}

const figure = (number) => JSON.stringify(number); // also one that stays as it was written (api.js)

function limits(schema) {
  const words = [];
  const { minimum, maximum, exclusiveMinimum, minLength, maxLength } = schema;
  if (minimum !== undefined || exclusiveMinimum !== undefined) words.push(exclusiveMinimum !== undefined ? `above ${figure(exclusiveMinimum)}` : `from ${figure(minimum)}`);
  if (maximum !== undefined) words.push(`to ${figure(maximum)}`);
  if (minLength !== undefined || maxLength !== undefined) words.push(`${minLength ?? 0} to ${maxLength ?? "any"} characters`);
  if (schema.default !== undefined && schema.default !== null) words.push(`if left out ${JSON.stringify(schema.default)}`);
  return words.join(" ");
}

const field = (name, place, schema, words) =>
  el("div", {}, el("dt", {}, el("code", {}, name), place && el("small", {}, place)),
    el("dd", {}, el("span", {}, typeOf(schema)), words && el("p", {}, prose(words))));

const sample = (label, text) => el("pre", { class: "sample", tabindex: 0, role: "region", "aria-label": label }, el("code", {}, text));

function parametersOf({ parameters = [] }) {
  if (!parameters.length) return null;
  const rows = parameters.map((one) => field(one.name, `${one.in}${one.required ? ", needed" : ""}`, one.schema, one.description));
  return [el("h4", {}, "Parameters"), el("dl", { class: "fields" }, rows)];
}

function contentOf(content, label) {
  return Object.entries(content).map(([kind, { schema, examples = {} }]) => [
    el("p", { class: "quiet" }, el("code", {}, kind), " ", typeOf(schema), schema.description ? [": ", prose(schema.description)] : ""),
    Object.entries(examples).map(([name, { value }]) => [
      el("p", { class: "quiet" }, name),
      sample(`${label}, example ${name}, ${kind}`, pretty(value)),
    ]),
  ]);
}

const bodyOf = ({ requestBody }) => requestBody && [el("h4", {}, "Body"), contentOf(requestBody.content, "Body")];

const answersOf = ({ responses }) => [
  el("h4", {}, "Answers"),
  el("div", { class: "answers" }, Object.entries(responses).map(([code, { description, content = {}, headers = {} }]) =>
    el("details", { open: code === "200" },
      el("summary", {}, el("code", {}, code), ` ${description}`),
      Object.keys(headers).map((name) => el("p", { class: "quiet" }, "with the header ", el("code", {}, name))),
      contentOf(content, `Answer ${code}`)))),
];

const linesOf = (operation) => [
  el("h4", {}, "From a shell"),
  operation["x-codeSamples"].map(({ label, source }) => [
    el("p", { class: "quiet" }, label),
    command(source.replace(SERVER, HERE)),
  ]),
];

// Questions change nothing: they can be tried. What does not end, or is a picture, is not for this.
const isTried = ({ method, responses }) => method === "get" && "application/json" in responses["200"].content;

function trialOf(operation) {
  if (!isTried(operation)) return null;
  const asked = (operation.parameters ?? []).filter((one) => one.in !== "header");
  const id = anchorOf(operation);
  const said = el("div", { role: "status" });
  const fields = asked.map((one) => el("label", {}, `${one.name}${one.required ? " (needed)" : ""}`,
    el("input", { name: one.name, required: one.required, autocomplete: "off", spellcheck: "false", "data-in": one.in })));
  const submit = async (event) => {
    event.preventDefault();
    let path = `..${operation.path}`;
    const query = {};
    for (const input of event.target.querySelectorAll("input")) {
      if (input.dataset.in === "path") path = path.replace(`{${input.name}}`, encodeURIComponent(input.value));
      else if (input.value) query[input.name] = input.value;
    }
    const shown = (heading, text) => said.replaceChildren(el("p", { class: "quiet" }, heading), sample("What the node answers", text));
    try {
      shown("200", pretty(await ask("GET", path, query)));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      shown(`${problem.status || ""} ${problem.title}`, problem.detail);
    }
  };
  const form = el("form", { class: "try", id: `try-${id}`, onsubmit: submit }, fields, el("button", { type: "submit", class: "main" }, "Ask"), said);
  return [el("h4", {}, "Try it"), form];
}

function operationOf(operation) {
  const { method, path, summary, description } = operation;
  const made = el("details", { class: "operation", id: anchorOf(operation) },
    el("summary", {}, el("span", { class: "verb", "data-verb": method }, method.toUpperCase()), el("h3", {}, path), el("span", {}, summary)));
  // Filled when it is opened first: there is much of it.
  made.addEventListener("toggle", () => {
    if (made.childElementCount > 1 || !made.open) return;
    const who = operation.security ? "For the owner; where the node asks for the token, with Authorization: Bearer TOKEN." : "For anyone.";
    made.append(el("div", {}, el("p", {}, prose(description)), el("p", { class: "quiet" }, who),
      parametersOf(operation), bodyOf(operation), linesOf(operation), trialOf(operation), answersOf(operation)));
  });
  return made;
}

function shapeOf([name, schema]) {
  const needed = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([one, inner]) => field(one, needed.has(one) ? "always there" : "", inner, inner.description));
  return el("details", { class: "operation", id: `shape-${name}` },
    el("summary", {}, el("h3", {}, name)),
    el("div", {}, schema.description && el("p", {}, prose(schema.description)), el("dl", { class: "fields" }, rows)));
}

const groupOf = (id, title, words, content) => el("section", { "aria-labelledby": id }, el("h2", { id }, title), words && el("p", { class: "quiet" }, words), content);

const linkOf = (operation) => el("li", {}, el("a", { href: `#${anchorOf(operation)}` },
  el("span", { class: "verb", "data-verb": operation.method }, operation.method.toUpperCase()), el("code", {}, operation.path)));

function operationsOf({ paths }) {
  return Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, told]) => ({ method, path, ...told })));
}

function show(told) {
  const operations = operationsOf(told);
  const groups = told.tags.map(({ name, description }) => ({ name, description, inside: operations.filter((one) => one.tags.includes(name)) }));
  byId("about").textContent = `${told.info.title} ${told.info.version}. ${told.info.description}`;
  byId("contents").replaceChildren(...groups.map(({ name, inside }) => el("div", { class: "group" }, el("h2", {}, name), el("ul", {}, inside.map(linkOf)))));
  byId("operations").replaceChildren(
    ...groups.map(({ name, description, inside }) => groupOf(anchor(name), name, description, inside.map(operationOf))),
    groupOf("shapes", "Shapes", "What bodies and answers are made of.", Object.entries(told.components.schemas).map(shapeOf)),
  );
  byId("filter").addEventListener("input", ({ target }) => narrow(target.value, operations));
  follow();
}

// Only those that have all the words.
function narrow(words, operations) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  let left = 0;
  for (const operation of operations) {
    const text = `${operation.method} ${operation.path} ${operation.summary} ${operation.description}`.toLowerCase();
    const fits = wanted.every((word) => text.includes(word));
    left += fits;
    byId(anchorOf(operation)).hidden = !fits;
    document.querySelector(`#contents a[href="#${anchorOf(operation)}"]`).parentElement.hidden = !fits;
  }
  for (const group of document.querySelectorAll(".group, main > section:not(:last-child)")) {
    group.hidden = !group.querySelector("li:not([hidden]), .operation:not([hidden])");
  }
  byId("news").textContent = `${left} of ${operations.length} operations`;
}

// What the address says is opened, and stands at the top.
function follow() {
  const there = byId(location.hash.slice(1));
  if (!there?.matches(".operation")) return;
  there.open = true;
  there.scrollIntoView();
  there.querySelector("summary").focus({ preventScroll: true });
}

async function begin() {
  try {
    show(await ask("GET", "../openapi.json"));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    byId("about").textContent = problem.message;
    byId("operations").replaceChildren(button("Try again", begin));
  }
}

addEventListener("hashchange", follow);
door.addEventListener("locked", () => askForToken(begin));
begin();
