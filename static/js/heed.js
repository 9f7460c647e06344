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
