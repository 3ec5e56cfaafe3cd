"use strict";
// Numbers on hover and on the arrow keys, lines that can be hidden, a gallery that can be filtered. No network, no library.
const tip = document.getElementById("tip");

function show(target, x, y) {
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - box.width - 4)) + "px";
  tip.style.top = (y - box.height - 10 > 4 ? y - box.height - 10 : y + 18) + "px";
}

function showAt(target) {
  const box = target.getBoundingClientRect();
  show(target, box.left + box.width / 2, box.top);
}

document.addEventListener("pointermove", (event) => {
  const target = event.target.closest && event.target.closest("[data-tip]");
  if (target) show(target, event.clientX, event.clientY);
  else tip.hidden = true;
});
document.addEventListener("focusin", (event) => { if (event.target.dataset.tip) showAt(event.target); });
document.addEventListener("focusout", () => { tip.hidden = true; });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// A chart or matrix is one stop of the tab key; the arrows move between its numbers.
for (const walk of document.querySelectorAll("[data-walk]")) {
  let at = null;
  walk.addEventListener("keydown", (event) => {
    const stops = [...walk.querySelectorAll("g:not(.off) [data-tip], td[data-tip]")];
    const width = walk.tagName === "TABLE" ? walk.tHead.rows[0].cells.length - 1 : (at ? at.parentNode.querySelectorAll("[data-tip]").length : 1);
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: width, ArrowUp: -width };
    if (!(event.key in moves) || !stops.length) return;
    event.preventDefault();
    const from = stops.indexOf(at);
    const next = from < 0 ? 0 : from + moves[event.key];
    if (at) at.classList.remove("at");
    at = stops[Math.max(0, Math.min(stops.length - 1, next))];
    at.classList.add("at");
    showAt(at);
  });
  walk.addEventListener("blur", () => { if (at) at.classList.remove("at"); at = null; });
}

for (const button of document.querySelectorAll("button[data-line]")) {
  button.addEventListener("click", () => {
    const isOn = button.getAttribute("aria-pressed") !== "true";
    for (const other of document.querySelectorAll(`button[data-line="${button.dataset.line}"]`)) other.setAttribute("aria-pressed", isOn);
    for (const line of document.querySelectorAll(`g[data-line="${button.dataset.line}"]`)) line.classList.toggle("off", !isOn);
  });
}

// The matrices of one label space, or of all beside each other. Without a script all are there.
const maps = document.querySelector(".maps.several");
if (maps) {
  const buttons = [...document.querySelectorAll("button[data-show]")];
  const choose = (chosen) => {
    for (const button of buttons) button.setAttribute("aria-pressed", button === chosen);
    maps.classList.toggle("all", !chosen.dataset.show);
    for (const map of maps.querySelectorAll("[data-space]")) map.hidden = chosen.dataset.show && map.dataset.space !== chosen.dataset.show;
  };
  for (const button of buttons) button.addEventListener("click", () => choose(button));
  choose(buttons[0]);
}

const gallery = document.querySelector("[data-gallery]");
if (gallery) {
  const form = document.querySelector(".filters");
  const figures = [...gallery.children];
  const update = () => {
    const wanted = [...form.querySelectorAll("[data-filter]")].filter((select) => select.value).map((select) => [select.dataset.filter, select.value]);
    const text = form.querySelector("[data-search]").value.trim().toLowerCase();
    let count = 0;
    for (const figure of figures) {
      figure.hidden = !wanted.every(([name, value]) => figure.dataset[name] === value) || !figure.querySelector(".caption").textContent.toLowerCase().includes(text);
      count += !figure.hidden;
    }
    const [name, sign] = form.querySelector("[data-sort]").value.split(":");
    const sorted = name ? [...figures].sort((one, other) => sign * ((one.dataset[name] || 0) - (other.dataset[name] || 0))) : figures;
    gallery.append(...sorted);
    form.querySelector("[data-count]").textContent = count + (count === 1 ? " image" : " images");
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}
