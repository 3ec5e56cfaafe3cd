"use strict";
// Hides what does not match the chosen task, source and words. The same script serves the index and the pages.
const form = document.querySelector("form");
const items = [...document.querySelectorAll("[data-text]")];

function update() {
  const wanted = [...form.querySelectorAll("select")].filter((select) => select.value).map((select) => [select.name, select.value]);
  const words = form.querySelector("input").value.trim().toLowerCase();
  let count = 0;
  for (const item of items) {
    const fits = wanted.every(([name, value]) => item.dataset[name] === value) && item.dataset.text.toLowerCase().includes(words);
    item.hidden = !fits;
    count += fits ? Number(item.dataset.count || 1) : 0;
  }
  form.querySelector("output").textContent = count.toLocaleString("en") + " pictures";
}

form.addEventListener("input", update);
form.addEventListener("submit", (event) => event.preventDefault());
update();
