// The console's ticks and filters.
"use strict";

// A button with data-needs="id" is not pressed while that field is empty: the field is shown instead.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-needs]");
  const field = button && byId(button.dataset.needs);
  if (!field || field.value.trim()) return;
  event.preventDefault();
  field.setAttribute("aria-invalid", "true");
  field.focus();
});

// Ticks: all at once, and the actions on them appear when there are any.
document.addEventListener("change", ({ target }) => {
  const isAll = target.matches("[data-tick-all]");
  if (!isAll && target.name !== "seen") return;
  const ticks = allOf("input[name=seen]");
  if (isAll) ticks.forEach((tick) => (tick.checked = target.checked));
  const ticked = ticks.filter((tick) => tick.checked).length;
  const actions = document.querySelector("[data-tick-actions]");
  actions.hidden = !ticked;
  actions.querySelector("[data-tick-count]").textContent = ticked;
});

// Filters: empty fields are left out of the address.
document.addEventListener("formdata", ({ target, formData }) => {
  if (target.matches("[data-filters]")) [...formData].forEach(([name, value]) => value || formData.delete(name));
});
