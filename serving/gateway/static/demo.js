// The demo page: a small chat whose every button is an act of feedback.
import { Hone, Refused } from "./hone.js";

const $ = (selector, within = document) => within.querySelector(selector);
const conversation = crypto.randomUUID?.() ?? String(Math.random());
const messages = [];
const counts = { sent: 0, waiting: 0, refused: 0 };
const hone = new Hone({ key: sessionStorage.getItem("key"), onRefused: (act, why) => tell(`${act.kind} was refused: ${why.message}`) });

function tell(note = null) {
  const parts = [`${counts.sent} sent`];
  if (counts.waiting) parts.push(`${counts.waiting} waiting`);
  if (counts.refused) parts.push(`${counts.refused} refused`);
  $("#status").textContent = note ?? parts.join(" · ");
}

/** Count an act while it is on its way. */
async function act(promise) {
  counts.waiting++;
  tell();
  try {
    await promise;
    counts.sent++;
    counts.waiting--;
    tell();
  } catch {
    counts.refused++;
    counts.waiting--;
  }
}

function press(button, on = button.getAttribute("aria-pressed") !== "true") {
  button.setAttribute("aria-pressed", String(on));
  return on;
}

/** One answer on the page; `before` are the answers to the same messages. */
class Card {
  constructor(asked, before) {
    this.asked = asked;
    this.before = before;
    this.id = null;
    this.root = $("#answer").content.firstElementChild.cloneNode(true);
    this.text = $(".text", this.root);
    this.root.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-act]");
      if (button && this.id) this[button.dataset.act]?.(button);
    });
    $(".edit", this.root).addEventListener("submit", (event) => this.save(event));
    $("#talk").append(this.root);
  }

  /** Let the answer stream in. The buttons work from the first piece on: the id is there then. */
  async write() {
    this.root.classList.add("writing");
    try {
      for await (const part of hone.chat(this.asked, { conversation })) {
        this.id = part.id;
        this.text.textContent = part.text;
        this.root.scrollIntoView({ block: "nearest" });
      }
    } catch (error) {
      this.text.textContent = "";
      this.text.insertAdjacentHTML("afterbegin", '<span class="note"></span>');
      $(".note", this.text).textContent = error instanceof Refused ? error.message : "The gateway does not answer.";
      $(".acts", this.root).hidden = true;
      if (error.status === 401) $("#key-label").hidden = false;
    }
    this.root.classList.remove("writing");
    if (this.before.length) [this, ...this.before].forEach((card) => ($("[data-act=prefer]", card.root).hidden = false));
  }

  up(button) { this.thumb(button, "down", 1); }
  down(button) { this.thumb(button, "up", -1); }

  thumb(button, other, value) {
    const on = press(button);
    press($(`[data-act=${other}]`, this.root), false);
    act(hone.thumbs(this.id, on ? value : 0));
  }

  edit() {
    const form = $(".edit", this.root);
    form.hidden = false;
    $("textarea", form).value = this.text.textContent;
    $("textarea", form).focus();
  }

  cancel() { $(".edit", this.root).hidden = true; }

  save(event) {
    event.preventDefault();
    const text = $(".edit textarea", this.root).value;
    if (text.trim() && text !== this.text.textContent) act(hone.edit(this.id, text));
    this.text.textContent = text;
    this.cancel();
  }

  again() {
    act(hone.regenerate(this.id));
    answer(this.asked, [this, ...this.before]);
  }

  async copy() {
    await navigator.clipboard?.writeText(this.text.textContent);
    act(hone.signal(this.id, "copied"));
  }

  solved(button) { act(hone.outcome(this.id, "resolved", press(button) ? 1 : 0)); }

  prefer(button) {
    const others = this.siblings();
    for (const card of [this, ...others]) {
      press($("[data-act=prefer]", card.root), card === this);
      card.root.classList.toggle("better", card === this);
    }
    act(hone.choice(this.id, others.map((card) => card.id)));
  }

  siblings() { return cards.filter((card) => card !== this && card.asked === this.asked && card.id); }
}

const cards = [];

async function answer(asked, before) {
  const card = new Card(asked, before);
  cards.push(card);
  await card.write();
  if (card.id) messages.splice(asked.length, Infinity, { role: "assistant", content: card.text.textContent });
}

$("#ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = $("#question").value.trim();
  if (!question) return;
  if ($("#key").value) sessionStorage.setItem("key", (hone.key = $("#key").value));
  $("#welcome")?.remove();
  $("#question").value = "";
  $("#talk").insertAdjacentHTML("beforeend", '<p class="asked"></p>');
  $("#talk").lastElementChild.textContent = question;
  messages.push({ role: "user", content: question });
  await answer([...messages], []);
});

$("#question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("#ask").requestSubmit();
  }
});
