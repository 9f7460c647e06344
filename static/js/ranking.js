// The ranking board. The form's own fields (place, quality, flags per letter) hold the truth: this draws them as tiers, moves
// them by drag or keys, and undoes. Drafts, submitting and restoring are task.js's.
"use strict";

const responses = allOf(".response");
const cards = new Map(responses.map((card) => [card.dataset.letter, card]));
const letters = [...cards.keys()];
const board = { history: [], selected: null, last: null, now: null };
const tiersList = byId("tiers");
const tray = byId("tray");
const say = (text) => (byId("announce").textContent = text);
const fmt = (text, values) => text.replace(/{(\w+)}/g, (_, name) => values[name]);
const label = (letter) => cards.get(letter).dataset.label;

// State: read from and written to the form --------------------------------------------------------------------

const placeOf = (letter) => Number(form.elements["place-" + letter].value);
const qualityOf = (letter) => Number(form.elements["quality-" + letter].value);

function readTiers() {
  const places = [...new Set(letters.map(placeOf))].filter(Boolean).sort((a, b) => a - b);
  return places.map((place) => letters.filter((letter) => placeOf(letter) === place));
}

function writeTiers(tiers) {
  const full = tiers.filter((tier) => tier.length);
  for (const letter of letters) {
    const place = full.findIndex((tier) => tier.includes(letter)) + 1;
    form.elements["place-" + letter].value = place || "";
  }
  update();
}

const without = (tiers, letter) => tiers.map((tier) => tier.filter((other) => other !== letter));
const unranked = () => letters.filter((letter) => !placeOf(letter));

// What undo goes back to: everything but texts, which have their own undo.
function snapshot() {
  const fields = typed();
  ["comment", "reason", "skip_comment"].forEach((name) => fields.delete(name));
  return fields.toString();
}

// After any change: remember, redraw, save.
function update() {
  const state = snapshot();
  if (state !== board.now) {
    board.history.push(board.now);
    board.now = state;
    changed();
  }
  draw();
}

function undo() {
  if (!board.history.length) return say(words.nothingToUndo);
  const fields = new URLSearchParams(board.history.pop());
  ["comment", "reason", "skip_comment"].forEach((name) => form.elements[name] && fields.set(name, form.elements[name].value));
  fill(fields);
  changed();
  say(words.undone);
}

// Drawing -----------------------------------------------------------------------------------------------------

function chip(letter) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const name = document.createElement("strong");
  const text = document.createElement("span");
  const rating = document.createElement("span");
  button.type = "button";
  button.className = "chip";
  button.dataset.letter = item.dataset.letter = letter;
  name.textContent = label(letter);
  text.className = "chip-text";
  text.textContent = cards.get(letter).querySelector(".response-text").textContent.trim().slice(0, 90);
  rating.className = "chip-rating";
  rating.textContent = qualityOf(letter) || "";
  button.setAttribute("aria-label", where(letter) + (qualityOf(letter) ? ", " + qualityOf(letter) + "/7" : ""));
  button.setAttribute("aria-pressed", letter === board.selected);
  button.append(name, text, rating);
  item.append(button);
  return item;
}

function where(letter) {
  const tiers = readTiers();
  const place = placeOf(letter);
  if (!place) return fmt(words.unranked, { letter: label(letter) });
  const others = tiers[place - 1].filter((other) => other !== letter).map(label).join(", ");
  const values = { letter: label(letter), place, places: tiers.length, others };
  return fmt(others ? words.tied : words.alone, values);
}

function list(className, letters) {
  const element = document.createElement("ul");
  element.className = className;
  element.append(...letters.map(chip));
  return element;
}

function gap() {
  const item = document.createElement("li");
  item.className = "gap";
  item.append(list("tier-cards", []));
  item.setAttribute("aria-hidden", "true"); // only for dragging; keys make places of their own
  return item;
}

function draw() {
  const tiers = readTiers();
  const focused = document.activeElement.classList.contains("chip") && document.activeElement.dataset.letter;
  const rows = tiers.map((tier, index) => {
    const item = document.createElement("li");
    item.className = "tier";
    const number = document.createElement("span");
    number.className = "tier-number";
    number.textContent = index + 1;
    item.append(number, list("tier-cards", tier));
    if (tier.length > 1) item.dataset.tie = words.tie;
    return item;
  });
  tiersList.replaceChildren(gap(), ...rows.flatMap((row) => [row, gap()]));
  tray.replaceChildren(...unranked().map(chip));
  allOf("#board .tier-cards").forEach(makeSortable);
  if (focused) focusChip(focused);
  responses.forEach((card) => {
    card.classList.toggle("is-selected", card.dataset.letter === board.selected);
    card.classList.toggle("is-rated", qualityOf(card.dataset.letter) > 0);
  });
  const n = cards.size;
  const rated = letters.filter(qualityOf).length;
  const ranked = n - unranked().length;
  byId("progress").textContent =
    rated === n && ranked === n ? words.done : fmt(words.progress, { rated, ranked, n });
}

const focusChip = (letter) => document.querySelector(`.chip[data-letter="${letter}"]`)?.focus();

// Dragging ----------------------------------------------------------------------------------------------------

function makeSortable(element) {
  if (element.sortable) return;
  // Its own drag image instead of the browser's: the same on touch screens, mice and pens.
  element.sortable = Sortable.create(element, {
    group: "board",
    sort: false,
    animation: 120,
    forceFallback: true,
    fallbackTolerance: 4,
    delay: 150,
    delayOnTouchOnly: true,
    emptyInsertThreshold: 8,
    onStart: () => byId("board").classList.add("is-dragging"),
    onEnd: dropped,
  });
}

function dropped(event) {
  byId("board").classList.remove("is-dragging");
  const letter = event.item.dataset.letter;
  const tiers = [...tiersList.querySelectorAll(".tier-cards")].map((tier) =>
    [...tier.children].map((item) => item.dataset.letter),
  );
  board.selected = letter;
  // Sortable still works on these elements; redraw when it has finished.
  setTimeout(() => {
    placed(letter, tiers);
    focusChip(letter);
  });
}

// Moving ------------------------------------------------------------------------------------------------------

function placed(letter, tiers) {
  writeTiers(tiers);
  board.last = letter;
  say(where(letter));
}

const append = (letter) => placed(letter, [...without(readTiers(), letter), [letter]]);

// Tie with the one placed last (or, at first, with the last tier).
function tie(letter) {
  const tiers = without(readTiers(), letter).filter((tier) => tier.length);
  const target = tiers.find((tier) => tier.includes(board.last)) || tiers[tiers.length - 1];
  if (!target) return append(letter);
  target.push(letter);
  placed(letter, tiers);
}

// One step up (-1) or down (+1): from a tie to a place of its own, from there into a tie with the neighbour.
function move(letter, step) {
  const tiers = readTiers();
  const index = placeOf(letter) - 1;
  if (index < 0) return append(letter);
  const isTied = tiers[index].length > 1;
  const rest = without(tiers, letter);
  if (isTied) rest.splice(step < 0 ? index : index + 1, 0, [letter]);
  else if (tiers[index + step]) rest[index + step].push(letter);
  else rest[index].push(letter);
  placed(letter, rest);
}

function takeOut(letter) {
  writeTiers(without(readTiers(), letter));
  say(where(letter));
}

// What is unranked goes where its rating belongs among the rest; with everything ranked, all are put in order anew.
function byRating() {
  const rated = letters.filter(qualityOf);
  if (!rated.length) return say(words.rateFirst);
  const loose = rated.filter((letter) => !placeOf(letter));
  const moving = loose.length ? loose : rated;
  const tiers = readTiers().map((tier) => tier.filter((letter) => !moving.includes(letter))).filter((tier) => tier.length);
  for (const letter of moving) {
    const quality = qualityOf(letter);
    const equal = tiers.find((tier) => tier.every((other) => qualityOf(other) === quality));
    const lower = tiers.findIndex((tier) => tier.every((other) => qualityOf(other) < quality));
    if (equal) equal.push(letter);
    else tiers.splice(lower < 0 ? tiers.length : lower, 0, [letter]);
  }
  writeTiers(tiers);
  say(words.ordered);
}

function rate(letter, value) {
  const radio = form.querySelector(`[name="quality-${letter}"][value="${value}"]`);
  if (radio) radio.checked = true;
  else if (value === "0") form.querySelectorAll(`[name="quality-${letter}"]`).forEach((each) => (each.checked = false));
  else return;
  say(fmt(words.rated, { letter: label(letter), value }));
  update();
}

// Selecting ---------------------------------------------------------------------------------------------------

function select(letter, focus = true) {
  board.selected = letter;
  draw();
  if (!focus) return;
  const card = cards.get(letter);
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: card.offsetHeight > innerHeight ? "start" : "nearest" });
  say(fmt(words.selected, { letter: label(letter) }));
}

function next() {
  const from = letters.indexOf(board.selected) + 1;
  const order = [...letters.slice(from), ...letters.slice(0, from)];
  select(order.find((letter) => !qualityOf(letter) || !placeOf(letter)) || order[0]);
}

byId("board").addEventListener("click", (event) => {
  const button = event.target.closest(".chip");
  if (!button) return;
  select(button.dataset.letter, false);
  cards.get(button.dataset.letter).scrollIntoView({ block: "nearest" });
  focusChip(button.dataset.letter);
});
document.querySelector(".responses").addEventListener("focusin", (event) => {
  const card = event.target.closest(".response");
  if (card && card.dataset.letter !== board.selected) select(card.dataset.letter, false);
});
document.querySelector(".responses").addEventListener("pointerdown", (event) => {
  const card = event.target.closest(".response");
  if (card) select(card.dataset.letter, false);
});

// Keys --------------------------------------------------------------------------------------------------------

const keysOn = byId("keys-on");
const help = byId("keys");
keysOn.checked = localStorage.getItem("heed-keys") !== "off";
keysOn.addEventListener("change", () => localStorage.setItem("heed-keys", keysOn.checked ? "on" : "off"));

function unfold(id) {
  const part = byId(id);
  part.open = true;
  part.scrollIntoView({ block: "nearest" });
  part.querySelector("select, input:checked, textarea").focus();
}

// By key, each with the selected letter (which may be missing).
const commands = {
  n: next,
  o: byRating,
  u: undo,
  x: () => byId("all_bad").click(),
  p: () => (byId("prompt").scrollIntoView(), byId("prompt").focus()),
  m: () => byId("comment").focus(),
  s: () => byId("skip") && unfold("skip"),
  "?": () => help.showModal(),
};
const onSelected = {
  t: tie,
  enter: append,
  backspace: takeOut,
  delete: takeOut,
  v: (letter) => {
    const flags = cards.get(letter).querySelector(".flags");
    flags.open = !flags.open;
    if (flags.open) flags.querySelector("input:checked").focus();
  },
  r: (letter) => (document.activeElement.classList.contains("chip") ? select(letter) : focusChip(letter)),
};

function command(event) {
  const key = event.key.toLowerCase();
  const letter = board.selected;
  const isChip = event.target.classList.contains("chip");
  if ((event.ctrlKey || event.metaKey) && key === "z") return undo();
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  if ((key === "arrowup" || key === "arrowdown") && letter && (event.shiftKey || isChip)) {
    return move(letter, key === "arrowup" ? -1 : 1);
  }
  if (!keysOn.checked && key.length === 1) return false;
  const card = responses.find((each) => key.length === 1 && each.dataset.keys.includes(key.toUpperCase()));
  if (card) return select(card.dataset.letter);
  if (commands[key]) return commands[key]();
  // Enter on a button, link or summary is theirs; on a chip it places.
  if (key === "enter" && !isChip && event.target.closest("button, a, summary, label")) return false;
  if (!letter) return false;
  if (/^[0-9]$/.test(key)) return rate(letter, key);
  if (onSelected[key]) return onSelected[key](letter);
  return false;
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.defaultPrevented || event.isComposing || form.inert) return;
  const inField = event.target.closest("textarea, select, input:not([type=radio], [type=checkbox])");
  if (event.key === "Escape" && event.target.closest("#task-form") && board.selected) return select(board.selected);
  if (inField) return;
  if (command(event) !== false) event.preventDefault();
});

byId("undo").addEventListener("click", undo);
byId("by-rating").addEventListener("click", byRating);
byId("all_bad").addEventListener("change", (event) => say(event.target.checked ? words.allBad : words.notAllBad));
form.addEventListener("change", (event) => {
  if (!event.target.name) return; // Sortable's lists send "change" too
  if (event.target.name.startsWith("place-")) board.last = event.target.name.slice(6);
  update();
});
form.addEventListener("heed:filled", () => {
  board.now = snapshot();
  draw();
});

byId("board").hidden = false;
document.body.classList.add("has-board");
board.now = snapshot();
draw();
