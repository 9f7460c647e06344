// Small behaviours that every page shares. Each works on an attribute, so that templates say what they want.
"use strict";

const byId = (id) => document.getElementById(id);
const allOf = (selector) => [...document.querySelectorAll(selector)];

// A form that was sent is not sent again by a second click. Idempotent actions on the server are the real guard.
document.addEventListener("submit", (event) => {
  const form = event.target;
  const question = (event.submitter && event.submitter.dataset.confirm) || form.dataset.confirm;
  if (question && !window.confirm(question)) {
    event.preventDefault();
    return;
  }
  if (form.dataset.once === undefined) return;
  if (form.dataset.sent) event.preventDefault();
  form.dataset.sent = "1";
});

// The back button may show the page as it was left: its forms can be sent again.
window.addEventListener("pageshow", () => {
  allOf("form[data-sent]").forEach((form) => delete form.dataset.sent);
});

// Menus close on Escape and on a click elsewhere.
document.addEventListener("click", (event) => {
  allOf("details.menu[open]").forEach((menu) => {
    if (!menu.contains(event.target)) menu.open = false;
  });
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  allOf("details.menu[open]").forEach((menu) => {
    menu.open = false;
    menu.querySelector("summary").focus();
  });
});

// <button data-dialog="id"> opens a <dialog>; <button data-close> inside closes it.
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) byId(opener.dataset.dialog).showModal();
  const closer = event.target.closest("dialog [data-close]");
  if (closer) closer.closest("dialog").close();
});

// A select or checkbox with data-autosubmit sends its form when changed (filters).
document.addEventListener("change", (event) => {
  if (event.target.closest("[data-autosubmit]")) event.target.form.requestSubmit();
});

// On a narrow screen the menu scrolls: show where one is.
const here = document.querySelector(".site-nav [aria-current]");
if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 40;

// Work on tasks that is kept on this computer: under "heed-draft-OWNER-PAGE", what pages could not send or did not hear of.
function attempt(act) {
  try {
    return act();
  } catch {
    // Private mode or a full disk: the server's copy is then the only one.
  }
}

function keptWork(beginning) {
  const names = attempt(() => Object.keys(localStorage)) || [];
  const works = names.filter((name) => name.startsWith(beginning)).map((name) => {
    const raw = localStorage.getItem(name);
    return { name, raw, kept: attempt(() => JSON.parse(raw)) };
  });
  return works.filter((work) => work.kept && work.kept.url);
}

// A page that is still open may have kept more under the same name meanwhile.
const forget = ({ name, raw }) => attempt(() => localStorage.getItem(name) === raw && localStorage.removeItem(name));

// The cookie's, which a log-in in another tab renews, or the page's.
function csrfToken() {
  const cookie = document.cookie.match(/(?:^|; )csrftoken=([^;]+)/);
  return cookie ? cookie[1] : JSON.parse(document.body.getAttribute("hx-headers"))["X-CSRFToken"];
}

// True once the server keeps it as another version of the work on its task.
async function setAsideFields(url, fields) {
  const headers = { Accept: "application/json", "X-CSRFToken": csrfToken() };
  const answer = await fetch(url, { method: "POST", body: new URLSearchParams(fields), headers }).catch(() => null);
  if (!answer || !answer.ok || answer.redirected) return false;
  const { message, link, url: where } = await answer.json();
  if (message) {
    const note = Object.assign(document.createElement("p"), { className: "message message-info", textContent: message + " " });
    note.append(Object.assign(document.createElement("a"), { href: where, textContent: link }));
    byId("messages").append(note);
  }
  return true;
}

async function setAside(work) {
  const { kept, name } = work;
  const fields = new URLSearchParams(kept.fields);
  fields.set("owner", name.split("-")[2]);
  if (kept.stored || (await setAsideFields(kept.url, fields))) forget(work);
}

// On pages other than a task's, where it is taken up: set aside what no page has sent for a minute, and forget what the server has
// had for a day.
if (!byId("task-form")) {
  keptWork("heed-draft-").forEach((work) => Date.now() - work.kept.at > (work.kept.stored ? 864e5 : 6e4) && setAside(work));
}
