// The console's keys and ticks. Buttons and fields say their key in data-key; nothing here decides anything.
"use strict";

// A letter outside of any field presses the button, follows the link or enters the field with that data-key.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const active = document.activeElement;
  if (active && active.matches("input:not([type=checkbox]), select, textarea")) {
    if (event.key === "Escape") active.blur();
    return;
  }
  const target = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!target) return;
  event.preventDefault();
  if (target.matches("textarea, input")) target.focus();
  else target.click();
});

// A button with data-needs="id" is not pressed while that field is empty: the field is shown instead.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-needs]");
  const field = button && byId(button.dataset.needs);
  if (!field) return;
  if (field.value.trim()) return;
  event.preventDefault();
  field.setAttribute("aria-invalid", "true");
  field.focus();
});

// Ticks: all at once, and the actions on them appear when there are any.
const ticks = () => allOf("input[name=seen]");
document.addEventListener("change", (event) => {
  const all = event.target.closest("[data-tick-all]");
  if (all) ticks().forEach((tick) => (tick.checked = all.checked));
  if (!all && !event.target.matches("input[name=seen]")) return;
  const ticked = ticks().filter((tick) => tick.checked).length;
  const actions = document.querySelector("[data-tick-actions]");
  actions.hidden = ticked === 0;
  actions.querySelector("[data-tick-count]").textContent = ticked;
});

// Filters: a changed choice is sent at once; empty fields are left out of the address.
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-filters] select")) event.target.form.requestSubmit();
});
document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-filters]")) return;
  event.target.querySelectorAll("input, select").forEach((field) => (field.disabled = field.value === ""));
});
window.addEventListener("pageshow", () => {
  allOf("[data-filters] :disabled").forEach((field) => (field.disabled = false));
});
