// The table of heads holds every number and text; sorting, filtering and the tips of the grid read its rows.
const table = document.getElementById("heads");
const rows = [...table.tBodies[0].rows];
const filter = document.getElementById("filter");
const shown = document.getElementById("shown");
const grid = document.getElementById("grid");
const tip = document.getElementById("tip");

// Sorting: numbers from the largest, heads and words in their natural order.
const value = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
};
const sortBy = (column, descending) => {
  const sign = descending ? -1 : 1;
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
  const natural = (a, b) => compare(value(a, 0), value(b, 0));
  rows.sort((a, b) => sign * compare(value(a, column), value(b, column)) || natural(a, b));
  table.tBodies[0].append(...rows);
  [...table.tHead.rows[0].cells].forEach((cell, place) => {
    if (place === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
};
[...table.tHead.rows[0].cells].forEach((cell, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = cell.textContent;
  cell.replaceChildren(button);
  button.addEventListener("click", () => {
    const sorted = cell.getAttribute("aria-sort");
    const numeric = column > 0 && typeof value(rows[0], column) === "number";
    sortBy(column, sorted ? sorted === "ascending" : numeric);
  });
});

// Filtering: every word must occur in the row.
const applyFilter = () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    // Cell by cell, since the text of a row has no space between its cells.
    const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    count += !row.hidden;
  }
  shown.textContent = words.length ? `${count} of ${rows.length}` : "";
};
filter.addEventListener("input", applyFilter);

// A link to a closed section opens it; a link to a row that the filter hides shows all rows first.
const reveal = (hash) => {
  const target = hash && document.getElementById(decodeURIComponent(hash.slice(1)));
  if (!target) return;
  const inside = target.querySelector("details") ?? target.closest("details");
  if (inside) inside.open = true;
  // What a measure means is shown with the grid's colours by it.
  if (target.classList.contains("of")) document.getElementById(target.id.replace("about-", "by-")).checked = true;
  if (target.hidden) {
    filter.value = "";
    applyFilter();
  }
};

// Tips: the contents of the head's row, beside the cell.
let tipped = null;
const hideTip = () => {
  tip.hidden = true;
  tipped?.removeAttribute("aria-describedby");
  tipped = null;
};
const showTip = (cell) => {
  if (cell === tipped) return;
  hideTip();
  const row = document.getElementById(cell.dataset.row);
  const find = (name) => row.querySelector(name);
  // Without the marks that follow it.
  const number = (name) => find(name).firstChild.textContent.trim();
  const heading = part("h4", `${row.cells[0].textContent} `, part("span", find(".label")?.textContent ?? ""));
  const chip = find(".chip")?.cloneNode(true);
  chip?.prepend("CCS ");
  if (chip) heading.append(chip);
  const { first, all } = table.dataset;
  const excess = find(".excess") ? `, ${number(".excess")} points against chance` : "";
  const magnitude = find(".magnitude") ? `. Magnitude: ${number(".magnitude")} of the embeddings’ variance` : "";
  const explained = `The first ${first} texts explain ${find(".first").textContent} of the variance${excess}; all ${all} explain ${find(".all").textContent}${magnitude}`;
  tip.replaceChildren(heading, find("ol").cloneNode(true), part("p", explained));
  tip.hidden = false;
  const place = cell.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  const left = place.left + place.width / 2 - size.width / 2;
  const below = place.bottom + 8 + size.height < window.innerHeight || place.top < size.height + 8;
  tip.style.left = `${window.scrollX + Math.max(8, Math.min(left, page.clientWidth - size.width - 8))}px`;
  tip.style.top = `${window.scrollY + (below ? place.bottom + 8 : place.top - size.height - 8)}px`;
  cell.setAttribute("aria-describedby", "tip");
  tipped = cell;
};
const cells = [...grid.querySelectorAll("a")];
const cellOf = (event) => event.target.closest("#grid a");
let pointer = "mouse";
grid.addEventListener("pointerdown", (event) => { pointer = event.pointerType; });
grid.addEventListener("pointerover", (event) => {
  const cell = cellOf(event);
  if (event.pointerType !== "touch" && cell) showTip(cell);
});
grid.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hideTip(); });
grid.addEventListener("focusin", (event) => { if (pointer !== "touch") showTip(cellOf(event)); });
grid.addEventListener("focusout", hideTip);
grid.addEventListener("click", (event) => {
  const cell = cellOf(event);
  if (!cell) return;
  if (pointer === "touch" && cell !== tipped) {
    event.preventDefault();
    showTip(cell);
    return;
  }
  reveal(cell.hash);
  hideTip();
});
document.addEventListener("pointerdown", (event) => { if (!cellOf(event)) hideTip(); });

// The grid is one tab stop; the arrow keys move from cell to cell.
const columns = grid.tHead.rows[0].cells.length - 1;
cells.forEach((cell, place) => { cell.tabIndex = place === 0 ? 0 : -1; });
const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
document.addEventListener("keydown", (event) => {
  pointer = "keyboard";
  if (event.key === "Escape") hideTip();
  const place = cells.indexOf(document.activeElement);
  const next = cells[place + steps[event.key]];
  if (place < 0 || !next) return;
  event.preventDefault();
  cells[place].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
table.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link) reveal(link.hash);
});
// Before the browser scrolls, which it does not do to what is hidden.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#about-"]');
  if (link) reveal(link.hash);
});
window.addEventListener("hashchange", () => reveal(location.hash));
reveal(location.hash);

// All sections at once.
const sections = [...document.querySelectorAll("section.head > details")];
for (const [name, open] of [["open", true], ["close", false]]) {
  const button = document.getElementById(name);
  button.hidden = sections.length < 2;
  button.addEventListener("click", () => { for (const section of sections) section.open = open; });
}

page.dataset.ready = String(rows.length);
