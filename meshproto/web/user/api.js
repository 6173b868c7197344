// The node's HTTP: requests, and the stream of what happens. Everything is asked of the node that served this page.

const ANSWER_MS = 20000; // the node itself answers within 5 s, or says why not
const TOKEN = "mesh-token";
const LONG_NUMBER = /[.\d]{16}/; // cheap to look for, and in a few other texts too

// What went wrong, in the node's own words. `status` 0: nobody answered.
export class Problem extends Error {
  constructor(status, title, detail = "", cause = undefined) {
    super(detail ? `${title}: ${detail}` : title, { cause });
    this.status = status;
    this.title = title;
    this.detail = detail;
  }
}

export const door = new EventTarget(); // "locked": the node asks for its token

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => sessionStorage.setItem(TOKEN, value),
};

function address(path, query = {}) {
  const url = new URL(path, document.baseURI);
  url.hash = "";
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined) url.searchParams.set(name, value);
  }
  return url;
}

async function request(method, path, { query, body, signal, accept = "application/json" } = {}) {
  const headers = { Accept: accept };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  let answer;
  try {
    answer = await fetch(address(path, query), { method, headers, body, signal, cache: "no-store", redirect: "error" });
  } catch (error) {
    throw new Problem(0, "Your node does not answer", "", error);
  }
  if (answer.ok) return answer;
  if (answer.status === 401) door.dispatchEvent(new Event("locked"));
  const said = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, said.title ?? `HTTP ${answer.status}`, said.detail ?? "");
}

// A number that a double cannot hold stays as it was written, where the browser can tell.
function exact(_key, value, context) {
  const longer = typeof value === "number" && context?.source && String(value) !== context.source;
  return longer && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

export const parsed = (text) => JSON.parse(text, LONG_NUMBER.test(text) ? exact : undefined);

// One question, one answer. Raises Problem.
export async function ask(method, path, query = {}, body = undefined) {
  const signal = AbortSignal.timeout(ANSWER_MS);
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const answer = await request(method, path, { query, body: sent, signal });
  try {
    return parsed(await answer.text());
  } catch (error) {
    throw new Problem(0, "Your node’s answer did not come to its end", "", error);
  }
}

export const seg = encodeURIComponent;

// A picture as a blob: URL. An <img> could not show the token.
export async function picture(path) {
  const answer = await request("GET", path, { accept: "image/svg+xml", signal: AbortSignal.timeout(ANSWER_MS) });
  return URL.createObjectURL(await answer.blob());
}

// What happens, as it happens. Ends when the node ends it; raises Problem, or what `signal` was aborted with.
export async function* stream(query, signal) {
  const answer = await request("GET", "inbox/stream", { query, signal, accept: "application/x-ndjson" });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield parsed(line);
  }
}
