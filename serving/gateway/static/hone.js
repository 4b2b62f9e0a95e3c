// Feedback from a web page to hone's gateway. A plain ES module: no build, no dependencies. See docs/client.md.
//
//     import { Hone } from "https://gateway.example/browser/hone.js";
//     const hone = new Hone({ url: "https://gateway.example" });
//     await hone.thumbs(answerId, 1);
//
// An answer's id is the credential, so no key is in the page. Every act gets its id and time before the first try and
// keeps them through all tries, page loads included: a retry is no second vote.

const RETRIED = new Set([408, 429, 500, 502, 503, 504]);
const FIRST_WAIT_MS = 300;
const MAX_WAIT_MS = 60_000;
const MAX_WAITING = 500;
const MAX_AGE_MS = 7 * 86_400_000;
const MAX_BEACON_BYTES = 60_000; // browsers take 64 KiB at a time when a page is left; the gateway takes as much

/** A refusal that no retry will change. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.name = "Refused";
    this.status = status;
  }
}

/** Return a version 7 uuid (RFC 9562): made later, sorts later. `random` is ten bytes. */
export function uuid7(atMs = Date.now(), random = crypto.getRandomValues(new Uint8Array(10))) {
  const bytes = new Uint8Array(16);
  for (let i = 0, rest = atMs; i < 6; i++, rest = Math.floor(rest / 256)) bytes[5 - i] = rest % 256;
  bytes.set(random, 6);
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** Return how long to wait before try `number` (from 1): what the server asks for, else twice as long each time. */
export function waitMs(number, retryAfter = null, random = Math.random()) {
  const asked = /^\d+$/.test(retryAfter ?? "") ? 1000 * Number(retryAfter) : FIRST_WAIT_MS * 2 ** (number - 1);
  return Math.min(asked, MAX_WAIT_MS) * (0.8 + 0.4 * random);
}

/** Reads OpenAI's event stream from pieces of text, cut anywhere. `id` is there with the first event. */
export class AnswerReader {
  id = null;
  text = "";
  finishReason = null;
  #rest = "";

  /** Take a piece; return the new text in it. */
  push(piece) {
    const before = this.text.length;
    const lines = (this.#rest + piece).split(/\r?\n/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "" || data === "[DONE]") continue;
      const event = JSON.parse(data);
      this.id ??= event.id ?? null;
      const choice = event.choices?.[0];
      this.text += choice?.delta?.content ?? "";
      this.finishReason = choice?.finish_reason ?? this.finishReason;
    }
    return this.text.slice(before);
  }
}

/** Acts that wait for the gateway, kept in the browser so that a closed page loses none; at most MAX_WAITING. */
export class Outbox {
  constructor(storage, key) {
    this.storage = storage;
    this.key = key;
    this.held = null; // where the browser keeps nothing (private windows, full storage)
  }

  all() {
    if (this.held) return this.held;
    try {
      return JSON.parse(this.storage.getItem(this.key)) ?? [];
    } catch {
      return [];
    }
  }

  /** Keep an act; return those that had to give way. */
  add(act) {
    const acts = [...this.all().filter((other) => other.event_id !== act.event_id), act];
    const gone = acts.splice(0, Math.max(0, acts.length - MAX_WAITING));
    this.#write(acts);
    return gone;
  }

  remove(eventId) {
    this.#write(this.all().filter((act) => act.event_id !== eventId));
  }

  #write(acts) {
    try {
      this.storage.setItem(this.key, JSON.stringify(acts));
      this.held = null;
    } catch {
      this.held = acts;
    }
  }
}

/** Return acts in groups whose JSON fits into a beacon each; an act that alone is too long is left out. */
export function beacons(acts, limit = MAX_BEACON_BYTES) {
  const groups = [];
  let size = Infinity;
  for (const act of acts) {
    const bytes = new TextEncoder().encode(JSON.stringify(act)).length + 1;
    if (bytes + 32 > limit) continue;
    if (size + bytes > limit) {
      groups.push([]);
      size = 32;
    }
    groups.at(-1).push(act);
    size += bytes;
  }
  return groups.map((group) => JSON.stringify({ events: group }));
}

/** A client of one gateway. Each act resolves with its event id once the broker has it, and rejects with Refused. */
export class Hone {
  #waiting = new Map();
  #working = false;

  constructor({ url = "", key = null, storage = globalThis.localStorage, onRefused = () => {}, ...tests } = {}) {
    this.url = url.replace(/\/$/, "");
    this.key = key;
    this.onRefused = onRefused;
    this.fetch = tests.fetch ?? ((...args) => fetch(...args));
    this.sleep = tests.sleep ?? ((ms) => new Promise((done) => setTimeout(done, ms)));
    this.now = tests.now ?? Date.now;
    this.beacon = tests.beacon ?? ((to, body) => navigator.sendBeacon(to, body));
    this.outbox = new Outbox(storage, `hone-outbox:${this.url}`);
    // Hidden is the last event that mobile browsers surely send; a page that comes back goes on where it was.
    globalThis.document?.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden") this.leave();
      else this.#work();
    });
    globalThis.addEventListener?.("online", () => this.#work());
    if (this.outbox.all().length) this.#work();
  }

  /** Up (1), down (-1), or taken back (0). Reasons: wrong, hallucinated, unsafe, too long, evasive, sycophantic, style, other. */
  thumbs(answer, value, { reasons = [] } = {}) {
    return this.#act({ response_id: answer, kind: "thumbs", value, ...(reasons.length && { reasons }) });
  }

  /** The text that the answer should have had. */
  edit(answer, text) {
    return this.#act({ response_id: answer, kind: "edit", value: text });
  }

  /** Another answer was wanted after this share (0 to 1) had been shown. */
  regenerate(answer, shown = 1) {
    return this.#act({ response_id: answer, kind: "regenerate", value: shown });
  }

  /** One of several answers to the same messages was taken. */
  choice(chosen, rejected) {
    return this.#act({ response_id: chosen, kind: "choice", value: { rejected } });
  }

  comment(answer, text) {
    return this.#act({ response_id: answer, kind: "comment", value: text });
  }

  /** Something was done with the answer, such as "copied". */
  signal(answer, name) {
    return this.#act({ response_id: answer, kind: "signal", value: { name } });
  }

  /** A result of the answer, such as ("resolved", 1). */
  outcome(answer, name, value) {
    return this.#act({ response_id: answer, kind: "outcome", value: { name, value } });
  }

  /**
   * Ask for an answer, and yield { id, text, piece } as it streams; feedback may name the id from the first piece on.
   * Only for pages that may hold a key, or a gateway that is open: most apps ask from their server and pass the id on.
   */
  async *chat(messages, { conversation = null, user = null, signal = null, ...options } = {}) {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": uuid7(this.now()) };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    if (conversation) headers["X-Conversation-Id"] = conversation;
    if (user) headers["X-User-Id"] = user;
    const body = JSON.stringify({ model: "hone", messages, stream: true, ...options });
    const response = await this.fetch(`${this.url}/v1/chat/completions`, { method: "POST", headers, body, signal });
    if (!response.ok) throw new Refused(response.status, await detailOf(response));
    const reader = new AnswerReader();
    const decoder = new TextDecoder();
    for (const bytes = response.body.getReader(); ; ) {
      const { done, value } = await bytes.read();
      const piece = reader.push(done ? `${decoder.decode()}\n` : decoder.decode(value, { stream: true }));
      if (piece || done) yield { id: reader.id, text: reader.text, piece, finishReason: reader.finishReason };
      if (done) return;
    }
  }

  /** Send everything that waits without an answer: called by itself when the page is left. What arrives twice counts once. */
  leave() {
    for (const body of beacons(this.outbox.all())) this.beacon(`${this.url}/v1/feedback`, body);
  }

  #act(content) {
    const atMs = this.now();
    const act = { event_id: uuid7(atMs), occurred_at: new Date(atMs).toISOString(), ...content };
    for (const gone of this.outbox.add(act)) this.#settle(gone, new Refused(0, "too many acts wait for the gateway"));
    return new Promise((resolve, reject) => {
      this.#waiting.set(act.event_id, { resolve, reject });
      this.#work();
    });
  }

  async #work() {
    if (this.#working) return;
    this.#working = true;
    try {
      for (let act; (act = this.outbox.all()[0]); ) await this.#deliver(act);
    } finally {
      this.#working = false;
    }
  }

  async #deliver(act) {
    for (let number = 1; ; number++) {
      if (this.now() - Date.parse(act.occurred_at) > MAX_AGE_MS) return this.#settle(act, new Refused(0, "too old"));
      const response = await this.#post(act);
      if (response?.ok) return this.#settle(act, null);
      if (response && !RETRIED.has(response.status)) {
        const detail = await detailOf(response);
        // A clock that runs ahead: the gateway's own time is better than none of the feedback.
        if (response.status === 422 && act.occurred_at && /occurred_at/.test(detail) && !act.unstamped) {
          act = { ...act, unstamped: true };
          continue;
        }
        return this.#settle(act, new Refused(response.status, detail));
      }
      await this.sleep(waitMs(number, response?.headers.get("retry-after")));
    }
  }

  async #post({ unstamped, ...act }) {
    const body = JSON.stringify(unstamped ? { ...act, occurred_at: undefined } : act);
    // text/plain needs no preflight from another origin, and the gateway reads JSON whatever it is called.
    const headers = { "Content-Type": "text/plain;charset=UTF-8" };
    const keepalive = body.length < MAX_BEACON_BYTES;
    try {
      return await this.fetch(`${this.url}/v1/feedback`, { method: "POST", headers, body, keepalive });
    } catch {
      return null; // offline, or the gateway is away
    }
  }

  #settle(act, refused) {
    this.outbox.remove(act.event_id);
    const waiting = this.#waiting.get(act.event_id);
    this.#waiting.delete(act.event_id);
    if (!refused) return waiting?.resolve(act.event_id);
    this.onRefused(act, refused);
    waiting?.reject(refused);
  }
}

async function detailOf(response) {
  try {
    return (await response.json()).detail ?? response.statusText;
  } catch {
    return response.statusText;
  }
}
