"use strict";
// Choose a table by its tab; without a choice the first is shown.
const sections = [...document.querySelectorAll("main > section")];
const tabs = [...document.querySelectorAll("nav a")];
function show() {
  const wanted = sections.find((section) => "#" + section.id === location.hash) || sections[0];
  for (const section of sections) section.hidden = section !== wanted;
  for (const tab of tabs) {
    if (wanted && tab.hash === "#" + wanted.id) tab.setAttribute("aria-current", "true");
    else tab.removeAttribute("aria-current");
  }
}
addEventListener("hashchange", show);
show();

// Sort by a column: numbers high to low first, text and ranks low to high; what is undefined stays last in both directions.
for (const table of document.querySelectorAll("table.ranking")) {
  const bodies = [...table.tBodies];
  for (const head of table.querySelectorAll("th[data-sort]")) {
    const label = head.querySelector("span");
    const button = document.createElement("button");
    button.type = "button";
    label.replaceWith(button);
    button.append(...label.childNodes);
    button.addEventListener("click", () => {
      const key = head.dataset.sort;
      const now = head.getAttribute("aria-sort");
      const first = head.dataset.first || "descending";
      const direction = now === null ? first : now === "ascending" ? "descending" : "ascending";
      const sign = direction === "ascending" ? 1 : -1;
      const value = (body) => body.getAttribute("data-" + key);
      const compare = (one, other) => {
        const a = value(one), b = value(other);
        if (a === b) return 0;
        if (a === "") return 1;
        if (b === "") return -1;
        return sign * (key === "model" ? a.localeCompare(b) : Number(a) - Number(b));
      };
      table.append(...[...bodies].sort(compare));
      for (const each of table.querySelectorAll("th[aria-sort]")) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction);
      table.classList.toggle("sorted", !(key === "rank" && direction === "ascending"));
    });
  }
}
