// How things are said: times, sizes, states, and messages in one line.

const LANGUAGE = "en";
const DAY_MS = 86400e3;

export const whole = (count) => count.toLocaleString(LANGUAGE);
export const few = (count) => (count > 999 ? "999+" : whole(count)); // where there is room for no more
export const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;
export const fold = (name) => name.toLowerCase();
export const bare = (name) => name.split("~")[0];

const CLOCK = new Intl.DateTimeFormat(LANGUAGE, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const WEEKDAY = new Intl.DateTimeFormat(LANGUAGE, { weekday: "long" });
const DATE = new Intl.DateTimeFormat(LANGUAGE, { day: "numeric", month: "short" });
const FULL_DATE = new Intl.DateTimeFormat(LANGUAGE, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const MOMENT = new Intl.DateTimeFormat(LANGUAGE, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });

// What a seed says of times need be none.
const said = (format) => (ms) => (Math.abs(ms) <= 864e13 ? format.format(ms) : "unknown");

export const clock = said(CLOCK);
export const moment = said(MOMENT);
const midnight = (ms) => new Date(ms).setHours(0, 0, 0, 0);
export const sameDay = (a, b) => midnight(a) === midnight(b);
const daysAgo = (ms) => Math.round((midnight(Date.now()) - midnight(ms)) / DAY_MS);

// Over the messages of a day.
export function dayName(ms) {
  const days = daysAgo(ms);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  return FULL_DATE.format(ms);
}

// Beside a conversation: as short as it can be said.
export function briefly(ms) {
  const days = daysAgo(ms);
  if (days === 0) return clock(ms);
  if (days === 1) return "Yesterday";
  return days > 1 && days < 7 ? WEEKDAY.format(ms) : DATE.format(ms);
}

// A time of today, or the day too.
export const since = (ms) => (sameDay(ms, Date.now()) ? clock(ms) : `${said(DATE)(ms)}, ${clock(ms)}`);

export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function bytes(chars) {
  return chars < 10e3 ? `${whole(chars)} characters` : `${whole(Math.round(chars / 1000))} thousand characters`;
}

const isText = (message) => typeof message === "string";

// A message as it is read: text as it is, anything else as JSON that a person can read.
export const readable = (message) => (isText(message) ? message : JSON.stringify(message, null, 2));

// The beginning of a JSON value: as many values as that, in the order in which they are written. Of a large one the whole
// would take long to write, and is seldom looked at.
function beginning(value, left) {
  if (typeof value !== "object" || value === null || JSON.isRawJSON?.(value)) return value;
  const begun = Array.isArray(value) ? [] : Object.create(null); // "__proto__" is a name as any other
  for (const key in value) {
    if (left.count-- <= 0) break;
    begun[key] = beginning(value[key], left);
  }
  return begun;
}

// The same up to about `values` values, and whether that is all of it.
export function readableBeginning(message, values) {
  if (isText(message)) return { text: message, all: true };
  const left = { count: values };
  const begun = beginning(message, left);
  return { text: readable(begun), all: left.count >= 0 };
}

const BRIEF_CHARS = 120;

// A message in one line.
export function inBrief(message) {
  const text = isText(message) ? message : JSON.stringify(beginning(message, { count: BRIEF_CHARS }));
  return text.slice(0, BRIEF_CHARS).replace(/\s+/g, " ");
}

export function presenceWords(presence) {
  if (!presence || presence.online === null) return "presence unknown";
  if (presence.online) return "online";
  return presence.seen ? `last seen ${since(presence.seen)}` : "away";
}

export const isWaiting = (status) => status === "queued" || status === "locating" || status === "delivering";

// What has become of a message of one's own: an icon, words, and the reason if it is not delivered.
export function stateOf(item) {
  const { reason } = item;
  // What was tried in vain waits again, though its status never goes back.
  const status = isWaiting(item.status) && reason ? "queued" : item.status === "locating" ? "delivering" : item.status;
  if (status === "delivered") return { status, sign: "check", words: `delivered ${deliveredAt(item)}`, reason: null };
  if (status === "sending") return { status, sign: "clock", words: "handing it to your node", reason: null };
  if (status === "failed") return { status, sign: "alert", words: "not sent", reason };
  if (isWaiting(status)) return { status, sign: "clock", words: status, reason };
  return { status, sign: status === "cancelled" ? "cross" : "alert", words: status, reason };
}

function deliveredAt({ at, changed_at: changed }) {
  return sameDay(at, changed) ? clock(changed) : since(changed);
}

// The line that a program of one's own would write to this very node.
export function curlLine(to, token) {
  const header = token ? ` -H "Authorization: Bearer TOKEN"` : "";
  const node = new URL(".", document.baseURI).href;
  return `curl${header} ${node}send -d '${JSON.stringify({ to, message: "Hello" })}'`;
}
