// The ranking board. The form's own fields (place, quality, flags per letter) hold the truth: this draws them as tiers, moves
// them by drag or keys, and undoes.
"use strict";

const responses = allOf(".response");
const cards = new Map(responses.map((card) => [card.dataset.letter, card]));
const letters = [...cards.keys()];
const chips = new Map(allOf(".chip").map((chip) => [chip.dataset.letter, chip]));
const NOT_UNDONE = [...OURS, "comment", "reason", "skip_comment"]; // texts have an undo of their own
const board = { history: [], selected: null, last: null, now: null, readAt: new Map() };
const tiersList = byId("tiers");
const say = (text) => (byId("announce").textContent = text);
const label = (letter) => cards.get(letter).dataset.label;

// --- State, kept in the form

const placeOf = (letter) => Number(form["place-" + letter].value);
const qualityOf = (letter) => Number(form["quality-" + letter].value);

const readTiers = () => Object.values(Object.groupBy(letters.filter(placeOf), placeOf)); // whole numbers come in order

function writeTiers(tiers) {
  const full = tiers.filter((tier) => tier.length);
  letters.forEach((letter) => (form["place-" + letter].value = full.findIndex((tier) => tier.includes(letter)) + 1 || ""));
  update();
}

const without = (tiers, ...out) => tiers.map((tier) => tier.filter((letter) => !out.includes(letter)));

const snapshot = () => typed(form, NOT_UNDONE).toString();

// Remember, redraw, save.
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
  fill(new URLSearchParams(board.history.pop()), NOT_UNDONE);
  changed();
  say(words.undone + ". " + byId("progress").textContent);
}

// --- Drawing

const made = (name) => byId(name).content.firstElementChild.cloneNode(true);

function chip(letter) {
  const button = chips.get(letter);
  const value = qualityOf(letter);
  button.querySelector(".chip-rating").textContent = value || "";
  button.ariaLabel = where(letter) + (value ? ". " + fmt(words.rated, { letter: label(letter), value }) : "");
  button.ariaPressed = letter === board.selected;
  return button.parentNode;
}

function where(letter) {
  const tiers = readTiers();
  const tier = tiers.find((each) => each.includes(letter));
  if (!tier) return fmt(words.unranked, { letter: label(letter) });
  const others = tier.filter((other) => other !== letter).map(label).join(", ");
  return fmt(others ? words.tied : words.alone, { letter: label(letter), place: tiers.indexOf(tier) + 1, places: tiers.length, others });
}

function draw() {
  const focused = document.activeElement.matches(".chip") && document.activeElement.dataset.letter;
  const rows = readTiers().flatMap((tier) => {
    const row = made("tier");
    row.firstElementChild.append(...tier.map(chip));
    return [row, made("gap")];
  });
  const loose = letters.filter((letter) => !placeOf(letter));
  tiersList.replaceChildren(made("gap"), ...rows);
  byId("tray").replaceChildren(...loose.map(chip));
  allOf("#board .tier-cards").forEach(makeSortable);
  if (focused) focusChip(focused);
  responses.forEach((card) => card.classList.toggle("is-selected", card.dataset.letter === board.selected));
  const [n, rated] = [cards.size, letters.filter(qualityOf).length];
  const isDone = rated === n && !loose.length;
  const progress = byId("progress");
  progress.ariaLive = isDone ? "polite" : "off"; // only the end is news
  progress.textContent = isDone ? words.done : fmt(words.progress, { rated, ranked: n - loose.length, n });
}

const focusChip = (letter) => chips.get(letter).focus();

// --- Dragging

function makeSortable(element) {
  element.sortable ||= Sortable.create(element, {
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
  const tiers = [...tiersList.querySelectorAll(".tier-cards")].map((tier) => [...tier.children].map((item) => item.dataset.letter));
  board.selected = letter;
  // Sortable still works on these elements; redraw when it has finished.
  setTimeout(() => {
    placed(letter, tiers);
    focusChip(letter);
  });
}

// --- Moving

function placed(letter, tiers) {
  writeTiers(tiers);
  board.last = letter;
  say(where(letter));
}

const append = (letter) => placed(letter, [...without(readTiers(), letter), [letter]]);

// Tie with the one placed last (or, at first, with the last tier).
function tie(letter) {
  const tiers = without(readTiers(), letter).filter((tier) => tier.length);
  const target = tiers.find((tier) => tier.includes(board.last)) || tiers.at(-1);
  if (!target) return append(letter);
  target.push(letter);
  placed(letter, tiers);
}

// One step up (-1) or down (+1): from a tie to a place of its own, from there into a tie with the neighbour.
function move(letter, step) {
  const tiers = readTiers();
  const index = tiers.findIndex((tier) => tier.includes(letter));
  if (index < 0) return append(letter);
  const rest = without(tiers, letter);
  if (tiers[index].length > 1) rest.splice(step < 0 ? index : index + 1, 0, [letter]);
  else (rest[index + step] || rest[index]).push(letter);
  placed(letter, rest);
}

function takeOut(letter) {
  writeTiers(without(readTiers(), letter));
  say(where(letter));
}

// What is unranked goes where its rating belongs; with everything ranked, all are put in order anew.
function byRating() {
  const rated = letters.filter(qualityOf);
  if (!rated.length) return say(words.rateFirst);
  const loose = rated.filter((letter) => !placeOf(letter));
  const moving = loose[0] ? loose : rated;
  const tiers = without(readTiers(), ...moving).filter((tier) => tier.length);
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
  const radios = [...form.querySelectorAll(`[name="quality-${letter}"]`)];
  if (value !== "0" && !radios.some((radio) => radio.value === value)) return;
  radios.forEach((radio) => (radio.checked = radio.value === value));
  say(fmt(words.rated, { letter: label(letter), value }));
  update();
}

// --- Selecting

function select(letter, goes = true) {
  const card = cards.get(letter);
  const before = cards.get(board.selected);
  const top = before?.getBoundingClientRect().top;
  // Long ones are gone on with where one stopped reading.
  if (goes && before?.offsetHeight > innerHeight && top < innerHeight && top > -before.offsetHeight) board.readAt.set(board.selected, top);
  const readAt = letter !== board.selected && board.readAt.get(letter);
  if (before && letter !== board.selected) [byId("first").value, byId("second").value] = [board.selected, letter]; // to compare
  board.selected = letter;
  draw();
  if (!goes) return;
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: card.offsetHeight > innerHeight ? "start" : "nearest" });
  if (readAt) scrollBy(0, card.getBoundingClientRect().top - readAt);
  say(fmt(words.selected, { letter: label(letter) }));
}

function next() {
  const from = letters.indexOf(board.selected) + 1;
  const order = [...letters.slice(from), ...letters.slice(0, from)];
  select(order.find((letter) => !qualityOf(letter) || !placeOf(letter)) || order[0]);
}

byId("board").addEventListener("click", (event) => {
  const letter = event.target.closest(".chip")?.dataset.letter;
  if (!letter) return;
  select(letter, false);
  cards.get(letter).scrollIntoView({ block: "nearest" });
  focusChip(letter);
});
form.addEventListener("focusin", ({ target }) => {
  const letter = target.closest(".response, .chip:focus-visible")?.dataset.letter;
  if (letter && letter !== board.selected) select(letter, false);
});

// --- Keys, with the selected letter; others are data-key

const onSelected = {
  t: tie,
  enter: append,
  backspace: takeOut,
  delete: takeOut,
  v: (letter) => enter(cards.get(letter).querySelector(".flags")),
  r: (letter) => (document.activeElement.matches(".chip") ? select(letter) : focusChip(letter)),
};

function command(event) {
  const key = event.key.toLowerCase();
  const letter = board.selected;
  const isChip = event.target.matches(".chip");
  if ((event.ctrlKey || event.metaKey) && key === "z") return undo();
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  if (/^arrow(up|down)$/.test(key) && letter && (event.shiftKey || isChip)) return move(letter, key === "arrowup" ? -1 : 1);
  if (!keysAreOn() && key.length === 1) return false;
  const card = responses.find((each) => key.length === 1 && each.dataset.keys.includes(key.toUpperCase()));
  if (card) return select(card.dataset.letter);
  if (key === "n") return next();
  // Enter on a button, link or summary is theirs; on a chip it places.
  if (!letter || (key === "enter" && !isChip && event.target.closest("button, a, summary, label"))) return false;
  if (/^\d$/.test(key)) return rate(letter, key);
  return onSelected[key] ? onSelected[key](letter) : false;
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.defaultPrevented || event.isComposing || form.inert) return;
  if (event.key === "Escape" && event.target.closest("#task-form") && board.selected) return select(board.selected);
  if (!event.target.matches(IN_FIELD) && command(event) !== false) event.preventDefault();
});

const keysOn = byId("keys-on");
keysOn.checked = keysAreOn();
keysOn.addEventListener("change", () => attempt(() => localStorage.setItem("heed-keys", keysOn.checked ? "on" : "off")));
byId("undo").addEventListener("click", undo);
byId("by-rating").addEventListener("click", byRating);
form.addEventListener("change", ({ target }) => {
  if (!target.name) return; // Sortable's lists send "change" too
  const letter = target.name.startsWith("place-") && target.name.slice(6);
  if (letter) board.last = letter;
  update();
  if (letter) say(where(letter));
  if (target.id === "all_bad") say(target.checked ? words.allBad : words.notAllBad);
});

byId("board").hidden = false;
document.body.classList.add("has-board");
function begin() {
  board.now = snapshot();
  draw();
}
form.addEventListener("heed:filled", begin);
begin();
