// What every page shares. Each part works on an attribute, so that templates say what they want.
"use strict";

const byId = (id) => document.getElementById(id);
const allOf = (selector) => [...document.querySelectorAll(selector)];
const fmt = (text, values) => text.replace(/{(\w+)}/g, (_, name) => values[name]);

// A second click sends nothing. Idempotent actions on the server are the real guard.
const sent = new Set();
document.addEventListener("submit", (event) => {
  const form = event.target;
  const question = event.submitter?.dataset.confirm || form.dataset.confirm;
  if (question && !window.confirm(question)) return event.preventDefault();
  if (form.dataset.once === undefined) return;
  if (sent.has(form)) event.preventDefault();
  sent.add(form);
});
window.addEventListener("pageshow", () => sent.clear()); // by the back button

// <button data-dialog="id"> opens a <dialog>; <button data-close> inside closes it.
document.addEventListener("click", ({ target }) => {
  const opener = target.closest("[data-dialog]");
  if (opener) byId(opener.dataset.dialog).showModal();
  if (target.closest("[data-close]")) target.closest("dialog").close();
});

// A filter sends its form when changed.
document.addEventListener("change", ({ target }) => target.matches("[data-autosubmit], [data-filters] select") && target.form.requestSubmit());

// Single keys, unless the person has turned them off.
const IN_FIELD = "textarea, select, input:not([type=radio], [type=checkbox])";
const keysAreOn = () => attempt(() => localStorage.getItem("heed-keys")) !== "off";

// What has data-key is pressed, followed or entered by it.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (event.target.matches(IN_FIELD)) return event.key === "Escape" && event.target.blur();
  const target = keysAreOn() && document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (!target || document.querySelector("dialog[open]") || target.closest("[inert]")) return;
  event.preventDefault();
  if (target.matches("details")) enter(target);
  else if (target.matches("[tabindex]") || target.matches(IN_FIELD)) target.focus();
  else target.click();
});

// Unfold, and go to the first field.
function enter(details) {
  details.open = true;
  details.querySelector("select, textarea, input:checked").focus();
}

// In private mode or on a full disk, the server's copy is the only one.
function attempt(act) {
  try {
    return act();
  } catch {}
}

// Kept on this computer under "heed-draft-OWNER-PAGE": what pages could not send or did not hear of.
function keptWork(beginning) {
  const entries = attempt(() => Object.entries(localStorage)) || [];
  const works = entries.map(([name, raw]) => ({ name, raw, kept: name.startsWith(beginning) && attempt(() => JSON.parse(raw)) }));
  return works.filter((work) => work.kept?.url);
}

// A page that is still open may have kept more under the same name meanwhile.
const forget = ({ name, raw }) => attempt(() => localStorage.getItem(name) === raw && localStorage.removeItem(name));

// POST fields; {status, data}: status 0 without a connection or after 30 s of silence, 401 when logged out.
async function post(url, fields, keepalive = false) {
  const token = document.cookie.match(/csrftoken=([^;]+)/)?.[1]; // a log-in in another tab renews it
  const headers = { Accept: "application/json", "X-CSRFToken": token };
  try {
    const signal = AbortSignal.timeout(30000);
    const answer = await fetch(url, { method: "POST", body: fields, headers, keepalive, signal });
    if (answer.redirected) return { status: 401 };
    const isJson = answer.headers.get("Content-Type")?.startsWith("application/json");
    if (answer.ok && !isJson) return { status: 502 }; // something on the way answered in the server's place
    return { status: answer.status, data: isJson && (await answer.json()) };
  } catch {
    return { status: 0 };
  }
}

// True once the server keeps it as another version of the work.
async function setAsideFields(url, fields) {
  const { status, data } = await post(url, fields);
  if (status === 200) byId("messages").insertAdjacentHTML("beforeend", data.html);
  return status === 200;
}

async function setAside(work) {
  const fields = new URLSearchParams(work.kept.fields);
  fields.set("owner", work.name.split("-")[2]);
  if (work.kept.stored || (await setAsideFields(work.kept.url, fields))) forget(work);
}

// Where no work is taken up: set aside what no page has sent for a minute, forget what the server has had for a day.
if (!byId("task-form")) {
  keptWork("heed-draft-").forEach((work) => Date.now() - work.kept.at > (work.kept.stored ? 864e5 : 6e4) && setAside(work));
}
