"use strict";

// Sorting: a button in each heading of each table, put there by what makes it work; absent values stay last either way.
const order = new Intl.Collator("en", { numeric: true });
const ABSENT = "\u2013";
const valueOf = (cell) => {
  const text = cell.dataset.value ?? cell.textContent.trim();
  return text === ABSENT ? "" : text;
};

const makeSortable = (table) => {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const sortBy = (column) => {
    const heading = headings[column];
    const falling = heading.getAttribute("aria-sort") === "ascending";
    const numeric = heading.classList.contains("number");
    const compare = (one, other) => {
      const a = valueOf(one.cells[column]);
      const b = valueOf(other.cells[column]);
      if (a === "" || b === "") return (a === "") - (b === "");
      const rising = numeric ? Number(a) - Number(b) : order.compare(a, b);
      return falling ? -rising : rising;
    };
    body.append(...[...body.rows].sort(compare));
    for (const each of headings) each.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
  };
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(column));
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
  });
};
for (const each of document.querySelectorAll(".scroll table")) {
  if (each.tBodies[0].rows.length > 1) makeSortable(each);
}

// Filtering, shown only where it works.
const table = document.getElementById("record-table");
if (table) {
  const body = table.tBodies[0];
  const find = document.getElementById("find");
  const only = document.getElementById("only-unrecovered");
  const shown = document.getElementById("shown");
  const filter = () => {
    const text = find.value.trim().toLowerCase();
    let count = 0;
    for (const row of body.rows) {
      row.hidden =
        (only.checked && !("unrecovered" in row.dataset)) || !row.textContent.toLowerCase().includes(text);
      count += !row.hidden;
    }
    shown.textContent = `${count} of ${body.rows.length} rows shown`;
  };
  find.addEventListener("input", filter);
  only.addEventListener("change", filter);
  document.querySelector(".filters").hidden = false;
  filter();
}

// One voice at a time.
document.addEventListener(
  "play",
  (event) => {
    for (const player of document.querySelectorAll("audio")) if (player !== event.target) player.pause();
  },
  true,
);
