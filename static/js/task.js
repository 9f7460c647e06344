// A page to work on: nothing typed is lost. Every change is kept on this computer at once, under this page's own name, and sent to the
// server soon after. What other pages left here is taken up or set aside.
"use strict";

const form = byId("task-form");
const words = JSON.parse(byId("words").textContent);
const urls = form.dataset;
const box = byId("problems");
const KEPT = `heed-draft-${form.owner.value}-`; // what begins the names of this task's copies on this computer
const SAVE_AFTER = 800; // ms
const RETRY_AFTER = 5000;
const IDLE = 60000; // ms after a sign of work that count as worked
const OURS = ["csrfmiddlewaretoken", "owner", "submit_key", "base", "revision", "knowingly"]; // of one loading of the page

const page = {
  editor: urls.editor, // names this loading
  takes: "", // the pages whose work this one goes on with
  knowingly: form.knowingly ? "1" : "", // they know of other work and want this
  base: Number(form.base.value), // the save that this page last heard of
  version: Number(form.base.value), // rises with every save sent
  dirty: false,
  sent: null, // the save on its way
  held: false, // by a conflict that only the labeler can settle, or by leaving
  worked: 0, // ms on this loading of the page, idle time excluded
  lastSign: Date.now(),
  lastContact: Date.now(),
};

function typed(where = form, except = OURS) {
  const fields = new URLSearchParams(new FormData(where));
  except.forEach((name) => fields.delete(name));
  return fields;
}

let paste_chars = 0;
form.addEventListener("paste", (event) => event.target.name === "text" && (paste_chars += event.clipboardData.getData("text").length));

// With what this page knows.
function stamped(fields) {
  const { editor, takes, knowingly, base, version } = page;
  const [owner, revision, submit_key] = ["owner", "revision", "submit_key"].map((name) => form[name].value);
  const active_seconds = workedSeconds();
  Object.entries({ editor, takes, knowingly, base, version, owner, revision, submit_key, active_seconds, paste_chars }).forEach(([k, v]) => fields.set(k, v));
  return fields;
}

function catchUp({ version, revision, submit_key }) {
  page.base = version;
  page.version = Math.max(page.version, version);
  form.revision.value = revision;
  form.submit_key.value = submit_key;
}

function fill(fields, except = OURS) {
  for (const element of form.elements) {
    if (!element.name || except.includes(element.name) || element.type === "submit") continue;
    const value = fields.get(element.name) || "";
    if (element.type === "radio") element.checked = element.value === value;
    else if (element.type === "checkbox") element.checked = value !== "";
    else element.value = value;
  }
  form.dispatchEvent(new CustomEvent("heed:filled"));
}

// --- On this computer

// `stored`: the draft's version that says the same; 0 until the server has said so.
function keepLocally(stored = 0) {
  const { editor, takes, base, version } = page;
  const known = { url: urls.asideUrl, draft: urls.draft, revision: form.revision.value, editor, takes, base, version };
  const kept = JSON.stringify({ ...known, at: Date.now(), stored, fields: typed().toString() });
  // One step: a closing page may not come to two. Nothing is better than the old.
  attempt(() => localStorage.setItem(KEPT + editor, kept) || true) || dropLocal();
}

const dropLocal = () => attempt(() => localStorage.removeItem(KEPT + page.editor));

// True if something was typed before this script was there.
function isTouched() {
  const asMade = form.cloneNode(true);
  asMade.reset();
  return typed(asMade).toString() !== typed().toString();
}

// What other pages of this task left here. The newest is gone on with; others are set aside. What the server has by now goes, unless
// this page was rendered from something older.
function restoreLocal() {
  const works = keptWork(KEPT).sort((a, b) => b.kept.at - a.kept.at);
  const newest = works.find(({ kept }) => kept.draft === urls.draft); // not of one handed in or discarded
  works.filter((work) => work !== newest).forEach(setAside);
  if (!newest || (newest.kept.stored && newest.kept.stored <= page.base) || newest.kept.fields === typed().toString()) {
    if (newest) forget(newest);
    return isTouched() && changed();
  }
  const { editor, takes, base, version, revision, stored, fields } = newest.kept;
  if (isTouched()) setAsideFields(urls.asideUrl, typed());
  page.takes = `${editor}:${version} ${takes}`.trim().slice(0, 400);
  page.base = stored || base;
  page.version = Math.max(page.version, page.base);
  form.revision.value = revision;
  page.found = newest;
  fill(new URLSearchParams(fields));
  page.dirty = true;
  keepLocally();
  save();
}

// --- To the server

function show(state, detail) {
  const line = byId("save-state");
  line.textContent = words[state] + (detail ? " " + detail : "");
  line.dataset.state = state;
  // A notice stays until it is settled, or it would slip away under the pointer.
  allOf("[data-when]").forEach((notice) => {
    const applies = notice.dataset.when.includes(state);
    if (applies || state === "saved") notice.hidden = !applies;
  });
}

const showSeat = (seat) => allOf("[data-seat]").forEach((notice) => (notice.hidden = notice.dataset.seat !== seat));

async function save(leaving = false) {
  clearTimeout(page.timer);
  if (!page.dirty || page.held || (page.sending && !leaving)) return;
  page.dirty = false;
  page.sending = true;
  page.version += 1;
  keepLocally();
  const fields = stamped(typed());
  if (!leaving) show("saving");
  // A page that is being left may send 64 kB at most.
  page.sent = post(urls.draftUrl, fields, leaving && fields.toString().length < 60000);
  const version = page.version;
  const { status, data } = await page.sent;
  page.sending = false;
  if (status === 200) saved(data, version);
  else notSaved(status, data);
}

function saved(data, version) {
  if (data.url) return leave(data.url); // handed in already: the answer to the submit was lost
  const isNewest = version === page.version; // else a later save is still on its way
  page.base = Math.max(page.base, data.version);
  page.version = Math.max(page.version, data.version);
  page.knowingly = "";
  page.lastContact = Date.now();
  showSeat(data.seat);
  if (page.isOffline) box.querySelector("ul").textContent = words.backOnline;
  page.isOffline = false;
  if (page.dirty) return save();
  if (isNewest) {
    keepLocally(data.version);
    if (page.found) forget(page.found);
    page.found = null;
  }
  show("saved", data.saved_at);
}

function leave(url, isSent = true) {
  page.held = page.isLeft = true;
  if (isSent) dropLocal();
  location.assign(url);
}

function notSaved(status, data) {
  page.dirty = true;
  keepLocally();
  if (data?.code === "saved_elsewhere") return elsewhere(data);
  show(whyNot(status, data));
  if (!status || status >= 500) page.timer = setTimeout(save, RETRY_AFTER);
}

function whyNot(status, data) {
  if (data?.code === "other_person") return "otherPerson";
  return !status ? "offline" : status === 401 || status === 403 ? "loggedOut" : status >= 500 ? "server" : "refused";
}

function elsewhere(data) {
  page.held = true;
  page.theirs = data;
  byId("elsewhere-time").textContent = data.saved_at;
  show("elsewhere");
  byId("notice-elsewhere").scrollIntoView({ block: "center" });
}

function changed() {
  page.dirty = true;
  sign();
  allOf("#problems li > a").forEach((link) => form.elements[link.hash.slice(1)]?.value && link.parentNode.remove());
  if (!box.querySelector("li")) box.hidden = true;
  keepLocally();
  if (page.held) return;
  if (!page.sending) show("unsaved");
  clearTimeout(page.timer);
  page.timer = setTimeout(save, SAVE_AFTER);
}

form.addEventListener("input", changed);
form.addEventListener("focusout", () => save());
["online", "focus"].forEach((name) => window.addEventListener(name, () => save()));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) lookAway();
  else page.lastSign = Date.now();
});
window.addEventListener("pagehide", () => (document.hidden ? save(true) : lookAway()));
window.addEventListener("pageshow", (event) => event.persisted && location.reload()); // it may be old

byId("keep-this").addEventListener("click", () => {
  page.held = false;
  page.knowingly = "1"; // the other is set aside
  page.dirty = true;
  catchUp(page.theirs);
  page.theirs = null;
  save();
});
byId("take-other").addEventListener("click", async () => {
  if (!(await setAsideFields(urls.asideUrl, typed()))) return show("offline");
  page.dirty = false;
  dropLocal();
  if (page.found) forget(page.found);
  location.reload();
});

// Tell what was worked before another page counts on.
function lookAway() {
  sign();
  if (page.dirty || page.isLeft) save(true);
  else if (urls.renewUrl) post(urls.renewUrl, stamped(new URLSearchParams()), true);
}

// Signs of work renew the lease and count as time; a page left open, or hidden, does neither.
function sign() {
  const now = Date.now();
  page.worked += Math.min(now - page.lastSign, IDLE);
  page.lastSign = now;
}

function workedSeconds() {
  const unmarked = document.hidden ? 0 : Math.min(Date.now() - page.lastSign, IDLE);
  return ((page.worked + unmarked) / 1000).toFixed(1);
}

["keydown", "pointerdown", "scroll", "pointermove"].forEach((name) =>
  document.addEventListener(name, sign, { passive: true, capture: true }),
);
setInterval(async () => {
  if (document.hidden || Date.now() - page.lastSign > IDLE) return;
  byId("time").textContent = fmt(words.minutes, { n: Math.floor((Number(urls.activeSeconds) + page.worked / 1000) / 60) });
  const due = Math.min(300, Number(urls.leaseSeconds) / 4) * 1000;
  if (!due || page.held || page.renewing || Date.now() - page.lastContact < due) return;
  page.renewing = true;
  const { status, data } = await post(urls.renewUrl, stamped(new URLSearchParams()));
  page.renewing = false;
  if (status !== 200) return;
  page.lastContact = Date.now();
  showSeat(data.seat);
}, 15000);

// --- Handing in

// `problems`: list items as the server wrote them.
function refuse(problems) {
  box.querySelector("ul").innerHTML = problems;
  box.hidden = false;
  box.scrollIntoView({ block: "center" });
  box.focus();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (form.inert) return;
  form.inert = true; // what is typed now would be neither in what is sent nor kept
  const problems = await handIn(event.submitter).finally(() => (form.inert = Boolean(page.isLeft)));
  if (problems) refuse(problems);
});

// Submit, skip or put back. What stands in the way, if anything; nothing if the labeler is shown already.
async function handIn(button) {
  do {
    await page.sent; // a save that arrived after a "put back" would take the seat again
    await save();
  } while (page.sending);
  clearTimeout(page.timer);
  if (page.theirs) return elsewhere(page.theirs);
  if (page.dirty) keepLocally();
  const aside = button?.getAttribute("formaction"); // to skip or to put back, which hand nothing in
  const fields = stamped(new URLSearchParams(new FormData(form, button)));
  const { status, data } = await post(aside || form.action, fields);
  if (data?.url) return leave(data.url, !aside || !page.dirty);
  if (data?.code === "saved_elsewhere") return elsewhere(data);
  if (status === 409 && data?.revision) catchUp(data);
  const why = whyNot(status, data);
  if (why === "refused") return data?.html || `<li>${words.refused}`;
  page.dirty ||= !aside;
  show(why);
  byId("notice-logged-out").scrollIntoView({ block: "center" });
  if (why === "loggedOut" || why === "otherPerson") return;
  page.isOffline = !aside;
  if (!aside) page.timer = setTimeout(save, RETRY_AFTER);
  return "<li>" + (aside ? words.notDone : words.notSubmitted);
}

// Links in the list of problems lead to the field, opening what hides it.
box.addEventListener("click", (event) => {
  const target = byId(event.target.hash?.slice(1));
  if (!target) return;
  event.preventDefault();
  const hidden = target.closest("details:not([open])");
  if (hidden) hidden.open = true;
  target.scrollIntoView({ block: "center" });
  (target.querySelector("input") || target).focus();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  if (!event.target.closest("dialog")) form.requestSubmit(form.querySelector("[name=next]")); // a dialog has its own
});

function count() {
  allOf("[data-count-flags]").forEach((place) => {
    const n = place.closest("details").querySelectorAll(":checked:not([value=''])").length;
    place.textContent = n ? fmt(words.answered, { n }) : "";
  });
  allOf("[data-count]").forEach((place) => {
    place.textContent = fmt(words.words, { n: form[place.dataset.count].value.match(/\S+/g)?.length || 0 });
  });
}

["input", "heed:filled"].forEach((name) => form.addEventListener(name, count));
count();
// After every script of the page has set up its part.
window.addEventListener("DOMContentLoaded", restoreLocal);
