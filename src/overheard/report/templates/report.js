"use strict";

// Sorting: a button in each heading; values that are absent stay last either way.
const table = document.getElementById("record-table");
if (table) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const order = new Intl.Collator("en", { numeric: true });

  const sortBy = (column) => {
    const heading = headings[column];
    const falling = heading.getAttribute("aria-sort") === "ascending";
    const numeric = "numeric" in heading.dataset;
    const compare = (one, other) => {
      const a = one.cells[column].dataset.value;
      const b = other.cells[column].dataset.value;
      if (a === "" || b === "") return (a === "") - (b === "");
      const rising = numeric ? Number(a) - Number(b) : order.compare(a, b);
      return falling ? -rising : rising;
    };
    body.append(...[...body.rows].sort(compare));
    for (const each of headings) each.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
  };
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => sortBy(column));
  });

  // Filtering, shown only where it works.
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
