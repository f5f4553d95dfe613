
"use strict";
// Without this script the page says the same. With it, an engine in the legend
// is a switch: while pressed, the other engines step back in every chart.
(() => {
  const root = document.documentElement;
  const chips = [...document.querySelectorAll(".legend .chip")];
  if (chips.length < 2) return;
  const press = (series) => {
    const off = root.dataset.focus === series;
    if (off) delete root.dataset.focus;
    else root.dataset.focus = series;
    for (const chip of chips) {
      const on = !off && chip.dataset.series === series;
      chip.firstElementChild.setAttribute("aria-pressed", String(on));
    }
  };
  for (const chip of chips) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.append(...chip.childNodes);
    button.addEventListener("click", () => press(chip.dataset.series));
    chip.append(button);
  }
})();
