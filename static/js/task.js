// The page of a task: nothing typed is lost. Every change is kept on this computer at once, under this page's own name, and sent to the
// server soon after. What other pages left here is taken up or set aside. Submitting goes the same way, with its key, so that it counts once.
"use strict";

const form = byId("task-form");
const words = JSON.parse(byId("words").textContent);
const KEPT = `heed-draft-${form.owner.value}-`; // what begins the names of this task's copies on this computer
const SAVE_AFTER = 800; // ms without a change
const RETRY_AFTER = 5000;
const PATIENCE = 30000; // after which a server that is silent counts as not there
const TICK = 15; // seconds between looks for signs of work
const IDLE = 60000; // ms after a sign of work that count as worked
const OURS = ["csrfmiddlewaretoken", "owner", "submit_key", "base", "revision", "knowingly"]; // fields that belong to one loading of the page

const page = {
  editor: form.dataset.editor, // names this loading of the page, so that the server can tell two tabs apart
  takes: "", // the pages whose work this one goes on with
  knowingly: form.knowingly ? "1" : "", // the labeler knows of other work and wants this
  base: Number(form.base.value), // the save that this page last heard of
  version: Number(form.base.value), // rises with every save sent
  dirty: false,
  sending: false,
  sent: null, // the save on its way
  held: false, // by a conflict that only the labeler can settle, or because the work is handed in
  timer: 0,
  worked: 0, // ms on this loading of the page, idle time excluded
  lastSign: Date.now(),
  lastContact: Date.now(),
};

function typed() {
  const fields = new URLSearchParams(new FormData(form));
  OURS.forEach((name) => fields.delete(name));
  return fields;
}

// With what this page knows, so that the server can tell when it is behind.
function stamped(fields) {
  const { editor, takes, knowingly, base, version } = page;
  const [owner, revision, submit_key] = ["owner", "revision", "submit_key"].map((name) => form[name].value);
  const active_seconds = workedSeconds();
  Object.entries({ editor, takes, knowingly, base, version, owner, revision, submit_key, active_seconds }).forEach(([k, v]) => fields.set(k, v));
  return fields;
}

// From now on this page knows what the server has.
function catchUp({ version, revision, submit_key }) {
  page.base = version;
  page.version = Math.max(page.version, version);
  form.revision.value = revision;
  form.submit_key.value = submit_key;
}

function fill(fields) {
  for (const element of form.elements) {
    if (!element.name || OURS.includes(element.name) || element.type === "submit") continue;
    const value = fields.get(element.name) || "";
    if (element.type === "radio") element.checked = element.value === value;
    else if (element.type === "checkbox") element.checked = value !== "";
    else element.value = value;
  }
  form.dispatchEvent(new CustomEvent("heed:filled"));
}

// On this computer --------------------------------------------------------------------------------------------

// `stored`: the draft's version that says the same; 0 as long as the server has not said so.
function keepLocally(stored = 0) {
  const { asideUrl: url, draft } = form.dataset;
  const { editor, takes, base, version } = page;
  const revision = form.revision.value;
  const kept = { url, draft, revision, editor, takes, base, version, at: Date.now(), stored, fields: typed().toString() };
  dropLocal(); // where there is no room for the new, nothing is better than the old
  attempt(() => localStorage.setItem(KEPT + editor, JSON.stringify(kept)));
}

const dropLocal = () => attempt(() => localStorage.removeItem(KEPT + page.editor));

// True if something was typed before this script was there to notice.
function isTouched() {
  return [...form.elements].some((element) => {
    if (element.type === "select-one") return element.value !== ([...element.options].find((o) => o.defaultSelected) || element.options[0]).value;
    if (["radio", "checkbox"].includes(element.type)) return element.checked !== element.defaultChecked;
    return element.name && "defaultValue" in element && element.value !== element.defaultValue;
  });
}

// What other pages of this task left here. The newest is gone on with; others are set aside by heed.js. What the server has by now
// goes, unless this page was rendered from something older.
function restoreLocal() {
  const works = keptWork(KEPT).sort((a, b) => b.kept.at - a.kept.at);
  const isOfThisDraft = ({ kept }) => kept.draft === form.dataset.draft; // and not of one that was handed in or discarded
  const newest = works.find(isOfThisDraft);
  works.filter((work) => work !== newest).forEach(setAside);
  if (!newest || (newest.kept.stored && newest.kept.stored <= page.base) || newest.kept.fields === typed().toString()) {
    if (newest) attempt(() => localStorage.removeItem(newest.name));
    return isTouched() && changed();
  }
  const { editor, takes, base, version, revision, stored, fields } = newest.kept;
  if (isTouched()) setAsideFields(form.dataset.asideUrl, typed()); // typed before this script was there
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

// To the server -----------------------------------------------------------------------------------------------

function show(state, detail) {
  const line = byId("save-state");
  line.textContent = words[state] + (detail ? " " + detail : "");
  line.dataset.state = state;
  // A notice stays until it is settled: one that goes while a save is tried would slip away under the pointer.
  for (const [id, ...when] of [["notice-logged-out", "loggedOut", "otherPerson"], ["notice-elsewhere", "elsewhere"]]) {
    if (when.includes(state) || state === "saved") byId(id).hidden = !when.includes(state);
  }
}

function notice(seat) {
  const isCorrection = document.querySelector(".task-bar .tag-info");
  ["lost", "submitted", "skipped"].forEach((each) => (byId("notice-" + each).hidden = seat !== each || isCorrection));
}

// POST fields; {status, data}: status 0 without a connection, 401 when logged out.
async function post(url, fields, keepalive = false) {
  const headers = { Accept: "application/json", "X-CSRFToken": csrfToken() };
  try {
    const signal = AbortSignal.timeout(PATIENCE);
    const answer = await fetch(url, { method: "POST", body: fields, headers, keepalive, signal });
    if (answer.redirected) return { status: 401 };
    const isJson = (answer.headers.get("Content-Type") || "").startsWith("application/json");
    if (answer.ok && !isJson) return { status: 502 }; // something on the way answered in the server's place
    return { status: answer.status, data: isJson ? await answer.json() : null };
  } catch {
    return { status: 0 };
  }
}

async function save(leaving = false) {
  clearTimeout(page.timer);
  if (!page.dirty || page.held || (page.sending && !leaving)) return;
  page.dirty = false;
  page.sending = true;
  page.version += 1;
  keepLocally();
  const fields = stamped(typed());
  if (!leaving) show("saving");
  // A page that is being left may send 64 kB at most; what is longer is still kept on this computer.
  page.sent = post(form.dataset.draftUrl, fields, leaving && fields.toString().length < 60000);
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
  notice(data.seat);
  if (page.isOffline) byId("problems").querySelector("ul").textContent = words.backOnline;
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
  if (status === 409 && data && data.code === "saved_elsewhere") return elsewhere(data);
  show(whyNot(status, data));
  if (status === 0 || status >= 500) page.timer = setTimeout(save, RETRY_AFTER);
}

function whyNot(status, data) {
  if (data && data.code === "other_person") return "otherPerson";
  return status === 0 ? "offline" : status === 401 || status === 403 ? "loggedOut" : status >= 500 ? "server" : "refused";
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
  // A missing thing that is there now is no problem any more.
  allOf("#problems li > a").forEach((link) => form.elements[link.hash.slice(1)]?.value && link.parentNode.remove());
  if (!byId("problems").querySelector("li")) byId("problems").hidden = true;
  keepLocally();
  if (page.held) return;
  if (!page.sending) show("unsaved");
  clearTimeout(page.timer);
  page.timer = setTimeout(save, SAVE_AFTER);
}

form.addEventListener("input", changed);
form.addEventListener("focusout", () => save());
window.addEventListener("online", () => save());
window.addEventListener("focus", () => save());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) lookAway();
  else page.lastSign = Date.now();
});
window.addEventListener("pagehide", () => (document.hidden ? save(true) : lookAway()));
// A page brought back from memory may be older than what the server has.
window.addEventListener("pageshow", (event) => event.persisted && location.reload());

byId("keep-this").addEventListener("click", () => {
  page.held = false;
  page.knowingly = "1"; // the other is set aside
  page.dirty = true;
  catchUp(page.theirs);
  page.theirs = null;
  save();
});
byId("take-other").addEventListener("click", async () => {
  if (!(await setAsideFields(form.dataset.asideUrl, typed()))) return show("offline");
  page.dirty = false;
  dropLocal();
  if (page.found) forget(page.found);
  location.reload();
});

// What was worked is told before another page counts on.
function lookAway() {
  sign();
  if (page.dirty || page.isLeft) save(true);
  else post(form.dataset.renewUrl, stamped(new URLSearchParams()), true);
}

// Signs of work renew the lease and count as time worked; a page left open, or hidden, does neither.
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
  const due = Math.min(300, Number(form.dataset.leaseSeconds) / 4) * 1000;
  if (page.held || page.renewing || Date.now() - page.lastContact < due) return;
  page.renewing = true;
  const { status, data } = await post(form.dataset.renewUrl, stamped(new URLSearchParams()));
  page.renewing = false;
  if (status !== 200) return;
  page.lastContact = Date.now();
  notice(data.seat);
}, TICK * 1000);

// Handing in --------------------------------------------------------------------------------------------------

function refuse(problems) {
  const box = byId("problems");
  box.querySelector("ul").replaceChildren(
    ...problems.map(({ place, message, field }) => {
      const item = document.createElement("li");
      const name = document.createElement(field ? "a" : "strong");
      if (field) name.href = "#" + field;
      name.textContent = place;
      item.append(name, " " + message);
      return item;
    }),
  );
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

// Submit, skip or put back. What stands in the way, if anything; "" if the labeler is shown already.
async function handIn(button) {
  do {
    await page.sent; // a save that arrived after a "put back" would take the seat again
    await save();
  } while (page.sending);
  clearTimeout(page.timer);
  if (page.theirs) return elsewhere(page.theirs);
  if (page.dirty) keepLocally();
  const aside = button && button.getAttribute("formaction"); // to skip or to put back, which hand nothing in
  const fields = stamped(new URLSearchParams(new FormData(form, button)));
  const { status, data } = await post(aside || form.getAttribute("action"), fields);
  if (data && data.url) return leave(data.url, !aside || !page.dirty);
  if (status === 409 && data && data.code === "saved_elsewhere") return elsewhere(data);
  if (status === 409 && data && data.revision) catchUp(data);
  const why = whyNot(status, data);
  if (why === "refused") return (data && data.problems) || [{ place: "", message: words.refused }];
  page.dirty = page.dirty || !aside;
  show(why);
  byId("notice-logged-out").scrollIntoView({ block: "center" });
  if (why === "loggedOut" || why === "otherPerson") return;
  page.isOffline = !aside;
  if (!aside) page.timer = setTimeout(save, RETRY_AFTER);
  return [{ place: "", message: aside ? words.notDone : words.notSubmitted }];
}

// Links in the list of problems lead to the field, opening what hides it.
byId("problems").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  const target = link && byId(link.hash.slice(1));
  if (!target) return;
  event.preventDefault();
  const hidden = target.closest("details:not([open])");
  if (hidden) hidden.open = true;
  target.scrollIntoView({ block: "center" });
  (target.querySelector("input") || target).focus();
});

// Small things ------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.target.closest("dialog")) return; // a question is written there, not the answer
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(form.querySelector("[name=next]"));
});

function countFlags() {
  allOf("[data-count-flags]").forEach((place) => {
    const n = place.closest("details").querySelectorAll("input[type=radio]:checked:not([value=''])").length;
    place.textContent = n ? words.answered.replace("{n}", n) : "";
  });
}

function countText() {
  allOf("[data-count]").forEach((place) => {
    const text = form.elements[place.dataset.count].value;
    const n = text.trim() ? text.trim().split(/\s+/).length : 0;
    place.textContent = words.words.replace("{n}", n);
  });
}

["input", "heed:filled"].forEach((name) => form.addEventListener(name, () => (countFlags(), countText())));
countFlags();
countText();
// After every script of the page has set up its part.
window.addEventListener("DOMContentLoaded", restoreLocal);
