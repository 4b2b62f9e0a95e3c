// The browser module's own logic, without a browser: `node --test`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { AnswerReader, Hone, Outbox, Refused, beacons, uuid7, waitMs } from "../../serving/gateway/static/hone.js";

class Storage extends Map {
  getItem(key) { return this.get(key) ?? null; }
  setItem(key, value) { this.set(key, value); }
}

const reply = (status, body = {}, headers = {}) => new Response(JSON.stringify(body), { status, headers });
const settled = () => new Promise((done) => setTimeout(done, 5));

function client(answers, more = {}) {
  const sent = [], slept = [], beaconed = [];
  const hone = new Hone({
    url: "http://gateway/",
    storage: new Storage(),
    fetch: async (url, init) => {
      sent.push({ url, act: JSON.parse(init.body), init });
      const answer = answers.length > 1 ? answers.shift() : answers[0];
      if (answer instanceof Error) throw answer;
      return answer.clone();
    },
    sleep: async (ms) => { slept.push(ms); },
    beacon: (url, body) => beaconed.push(JSON.parse(body)),
    ...more,
  });
  return { hone, sent, slept, beaconed };
}

test("a uuid is of version 7 and sorts by its time", () => {
  const ids = [1, 1_767_614_400_123, 2 ** 47].map((ms) => uuid7(ms));
  for (const id of ids) assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.deepEqual([...ids].sort(), ids);
  assert.equal(parseInt(ids[1].replace("-", "").slice(0, 12), 16), 1_767_614_400_123);
  assert.equal(new Set(Array.from({ length: 1000 }, () => uuid7(5))).size, 1000);
});

test("waits double, are bounded, and follow the server", () => {
  assert.deepEqual([1, 2, 3].map((n) => waitMs(n, null, 0.5)), [300, 600, 1200]);
  assert.equal(waitMs(50, null, 0.5), 60_000);
  assert.equal(waitMs(1, "7", 0.5), 7000);
  assert.equal(waitMs(1, "soon", 0.5), 300);
});

test("a stream is read the same wherever it is cut, and the id is there with the first event", () => {
  const event = (text, reason = null) => `data: ${JSON.stringify({ id: "a1", choices: [{ delta: { content: text }, finish_reason: reason }] })}\r\n\r\n`;
  const stream = `: hello\n${event("Grü")}${event("ße")}${event("", "stop")}data: [DONE]\n\n`;
  for (let cut = 0; cut <= stream.length; cut++) {
    const reader = new AnswerReader();
    const text = reader.push(stream.slice(0, cut)) + reader.push(stream.slice(cut));
    assert.deepEqual([reader.id, text, reader.text, reader.finishReason], ["a1", "Grüße", "Grüße", "stop"]);
  }
  const early = new AnswerReader();
  early.push(event("G"));
  assert.equal(early.id, "a1");
});

test("acts have the gateway's shape", async () => {
  const { hone, sent } = client([reply(202)]);
  await hone.thumbs("x", -1, { reasons: ["too long"] });
  await hone.thumbs("x", 1);
  await hone.edit("x", "better");
  await hone.regenerate("x", 0.5);
  await hone.choice("x", ["y"]);
  await hone.comment("x", "fine");
  await hone.signal("x", "copied");
  await hone.outcome("x", "resolved", 1);
  assert.deepEqual(sent.map(({ act: { kind, value, reasons } }) => [kind, value, reasons]), [
    ["thumbs", -1, ["too long"]], ["thumbs", 1, undefined], ["edit", "better", undefined], ["regenerate", 0.5, undefined],
    ["choice", { rejected: ["y"] }, undefined], ["comment", "fine", undefined], ["signal", { name: "copied" }, undefined],
    ["outcome", { name: "resolved", value: 1 }, undefined],
  ]);
  assert.ok(sent.every(({ url, act }) => url === "http://gateway/v1/feedback" && act.response_id === "x"));
});

test("an act is tried until the gateway has it, always with the same id and time", async () => {
  const { hone, sent, slept } = client([new TypeError("offline"), reply(503, {}, { "Retry-After": "2" }), reply(202)]);
  const id = await hone.thumbs("x", 1);
  assert.deepEqual(new Set(sent.map(({ act }) => act.event_id)), new Set([id]));
  assert.equal(new Set(sent.map(({ act }) => act.occurred_at)).size, 1);
  assert.equal(sent.length, 3);
  assert.ok(slept[1] >= 1600 && slept[1] <= 2400);
  assert.deepEqual(hone.outbox.all(), []);
});

test("a refusal is final and told, and the next act goes on", async () => {
  const refused = [];
  const { hone, sent } = client([reply(403, { detail: "expired" }), reply(202)], { onRefused: (act) => refused.push(act.kind) });
  await assert.rejects(hone.thumbs("x", 1), (error) => error instanceof Refused && error.status === 403 && error.message === "expired");
  await hone.edit("y", "better");
  assert.deepEqual([refused, sent.length], [["thumbs"], 2]);
});

test("a clock that runs ahead costs the time, not the feedback", async () => {
  const { hone, sent } = client([reply(422, { detail: "occurred_at = …: it lies in the future" }), reply(202)]);
  const id = await hone.thumbs("x", 1);
  assert.deepEqual(sent.map(({ act }) => [act.event_id, "occurred_at" in act]), [[id, true], [id, false]]);
});

test("what waits when the page is left goes out as a beacon and again at the next load, with the same id", async () => {
  const storage = new Storage();
  const first = client([new TypeError("offline")], { storage, sleep: () => new Promise(() => {}) });
  first.hone.thumbs("x", 1);
  await settled();
  first.hone.leave();
  const [{ events: [{ event_id: id }] }] = first.beaconed;
  const second = client([reply(202)], { storage });
  await settled();
  assert.deepEqual(second.sent.map(({ act }) => act.event_id), [id]);
  assert.deepEqual(second.hone.outbox.all(), []);
});

test("acts that are too old are given up, and told", async () => {
  const storage = new Storage();
  const eightDays = 8 * 86_400_000;
  client([new TypeError("offline")], { storage, now: () => Date.now() - eightDays, sleep: () => new Promise(() => {}) }).hone.thumbs("x", 1);
  await settled();
  const refused = [];
  client([reply(202)], { storage, onRefused: (act, why) => refused.push(why.message) });
  await settled();
  assert.deepEqual(refused, ["too old"]);
});

test("the outbox is bounded, and works where the browser keeps nothing", () => {
  const outbox = new Outbox({ getItem: () => null, setItem: () => { throw new Error("full"); } }, "k");
  const gone = Array.from({ length: 510 }, (_, n) => outbox.add({ event_id: String(n) })).flat();
  assert.deepEqual(gone.map((act) => act.event_id), Array.from({ length: 10 }, (_, n) => String(n)));
  outbox.remove("20");
  assert.equal(outbox.all().length, 499);
});

test("beacons are batches below the browser's limit, and hold every act once", () => {
  const acts = Array.from({ length: 100 }, (_, n) => ({ event_id: String(n), value: "ä".repeat(1000) }));
  const bodies = beacons([...acts, { event_id: "huge", value: "x".repeat(70_000) }]);
  assert.ok(bodies.every((body) => new TextEncoder().encode(body).length <= 60_000));
  assert.deepEqual(bodies.flatMap((body) => JSON.parse(body).events.map((act) => act.event_id)), acts.map((act) => act.event_id));
});

test("a chat streams text and id", async () => {
  const sse = 'data: {"id":"a1","choices":[{"delta":{"content":"Hel"}}]}\n\ndata: {"id":"a1","choices":[{"delta":{"content":"lo"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n';
  const hone = new Hone({ url: "", key: "k", storage: new Storage(), fetch: async (url, init) => {
    assert.deepEqual([url, init.headers.Authorization, JSON.parse(init.body).stream], ["/v1/chat/completions", "Bearer k", true]);
    return new Response(sse);
  } });
  const seen = [];
  for await (const part of hone.chat([{ role: "user", content: "Hi" }])) seen.push([part.id, part.text]);
  assert.deepEqual(seen.at(-1), ["a1", "Hello"]);
});
