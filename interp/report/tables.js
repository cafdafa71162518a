// Long tables: searched by a word, sorted by a column.

const LONG = 8;

function prepareTables() {
  for (const holderOf of document.querySelectorAll(".table")) {
    const table = holderOf.querySelector("table"), rows = table.tBodies[0]?.rows.length ?? 0;
    if (rows < LONG || !table.tHead) continue;
    holderOf.querySelector(".bar").prepend(searchOf(table, rows));
    [...table.tHead.rows[0].cells].forEach((cell, at) => sortable(table, cell, at));
    oneStop([...table.tHead.querySelectorAll(".sort")]);
  }
  addEventListener("resize", reach);
  addEventListener("toggle", reach, true);
}

// Tables that are scrolled sideways are reached by the keyboard. All are looked at before one is
// changed: each change asks for a new layout.
function reach() {
  const scrolls = [...document.querySelectorAll(".scroll")];
  const hidden = scrolls.map((scroll) => scroll.scrollWidth > scroll.clientWidth + 1);
  scrolls.forEach((scroll, at) => {
    if (hidden[at]) scroll.tabIndex = 0;
    else scroll.removeAttribute("tabindex");
  });
}

function searchOf(table, rows) {
  const input = make("input", { type: "search", placeholder: `search ${rows} rows` });
  input.setAttribute("aria-label", `Search: ${table.caption?.textContent.trim() ?? "table"}`);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  return input;
}

// The buttons of a table's head are one stop of the keyboard; arrows go from one to the next.
function oneStop(buttons) {
  const stopAt = (one) => { for (const button of buttons) button.tabIndex = button === one ? 0 : -1; };
  stopAt(buttons[0]);
  buttons.forEach((button, at) => {
    button.addEventListener("focus", () => stopAt(button));
    button.addEventListener("keydown", (event) => {
      buttons[at + { ArrowRight: 1, ArrowLeft: -1 }[event.key]]?.focus();
    });
  });
}

// Number of a cell, or null: a dash and what is undefined come last.
function numberOf(cell) {
  const text = (cell.querySelector("bdi") ?? cell).textContent.trim().replace("−", "-");
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : null;
}

function sortable(table, cell, at) {
  const button = make("button", { type: "button", className: "sort" });
  button.append(...cell.childNodes);
  for (const link of button.querySelectorAll("a")) link.replaceWith(make("span", { className: link.className, title: link.title, textContent: link.textContent }));
  cell.append(button);
  button.addEventListener("click", () => {
    const down = cell.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0], rows = [...body.rows];
    const numbers = new Map(rows.map((row) => [row, numberOf(row.cells[at])]));
    const asNumbers = [...numbers.values()].some((value) => value !== null);
    rows.sort((a, b) => {
      const [x, y] = asNumbers ? [numbers.get(a), numbers.get(b)] : [a.cells[at].textContent, b.cells[at].textContent];
      if (x === null || y === null) return (x === null) - (y === null);
      return (down ? -1 : 1) * (asNumbers ? x - y : x.localeCompare(y));
    });
    body.append(...rows);
  });
}
