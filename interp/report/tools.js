// The menu of every figure and table: save, cite, link.

const TOOLS = {
  csv: (of) => save(`${of.name}.csv`, csv(of.rows()), "text/csv"),
  svg: (of) => (of.figure ? savePicture(of.name, of.figure(), "svg") : save(`${of.name}.svg`, tablePicture(of.table).svg, "image/svg+xml")),
  png: (of) => (of.figure ? savePicture(of.name, of.figure(), "png") : saveTablePng(of.name, of.table)),
  cite: (of) => copied(of.citation(), "Citation"),
  link: (of) => copied(`${location.href.split("#")[0]}#${of.anchor}`, "Link"),
};

// Copied, and shown below the menu, where it can be selected.
async function copied(words, what) {
  try {
    await navigator.clipboard.writeText(words);
    announce(`${what} copied: ${words}`);
  } catch {
    announce(`${what}: ${words}`);
  }
  return words;
}

function ofFigure(element) {
  const box = element.querySelector(".drawing");
  const name = box.dataset.figure, figure = FIGURES.get(name);
  const now = () => ({ ...figure, data: figure.data.map((trace, at) => ({ ...trace, visible: box.data?.[at]?.visible ?? trace.visible })) });
  return {
    name,
    anchor: `figure-${name}`,
    figure: now,
    rows: () => rowsOf(figure),
    citation: () => cited(figure.layout.meta),
  };
}

// Title, the caption's own words, and once what all figures share.
function cited({ title, caption, provenance = "" }) {
  const shared = holder("citation");
  return `“${title}.” ${caption.replace(shared, "").replace(provenance, "").trim()} ${shared}`.trim();
}

function ofTable(element) {
  const table = element.querySelector("table");
  return {
    name: element.id || "table",
    anchor: element.id,
    table,
    rows: () => rowsOfTable(table),
    citation: () => {
      const [first] = rowsOfTable(table);
      const example = first ? ` ${Object.entries(first).map(([name, value]) => `${name}: ${value}`).join("; ")}.` : "";
      return `“${table.caption?.textContent.trim() ?? ""}”${example} ${holder("citation")}`.trim();
    },
  };
}

// What is seen of a table: its rows that a search has not hidden, an interval in columns of its own.
function rowsOfTable(table) {
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => {
    const out = {};
    [...row.cells].forEach((cell, at) => {
      out[names[at]] = cell.querySelector("bdi")?.textContent ?? cell.textContent.trim();
      const more = cell.querySelector(".ci")?.textContent;
      if (more) out[`${names[at]}, interval`] = more;
    });
    return out;
  });
}

const CELL = { height: 20, letter: 6.7, most: 46 };

// A table as a picture: lines of text, columns as wide as their longest cell.
function tablePicture(table) {
  const rows = rowsOfTable(table), names = [...new Set(rows.flatMap(Object.keys))];
  const cut = (text) => (text.length > CELL.most ? `${text.slice(0, CELL.most - 1)}…` : text);
  const lines = [names, ...rows.map((row) => names.map((name) => row[name] ?? ""))].map((line) => line.map(cut));
  const widths = names.map((_, at) => CELL.letter * Math.max(...lines.map((line) => line[at].length)) + 18);
  const starts = widths.map((_, at) => 12 + widths.slice(0, at).reduce((sum, width) => sum + width, 0));
  const width = Math.ceil(starts.at(-1) + widths.at(-1)), height = CELL.height * (lines.length + 1) + 16;
  const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const words = (text, x, y, look = "") => `<text x="${x}" y="${y}" ${look}>${escape(text)}</text>`;
  const caption = words(table.caption?.textContent.trim() ?? "", 12, 20, 'fill="#5f5f5f"');
  const body = lines.flatMap((line, row) => line.map((text, at) => words(text, starts[at], 20 + CELL.height * (row + 1), row ? "" : 'font-weight="600"')));
  return { width, height, svg: `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>${caption}${body.join("")}</svg>` };
}

async function saveTablePng(name, table) {
  const { width, height, svg } = tablePicture(table);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = make("canvas", { width: 2 * width, height: 2 * height });
  canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
  save(`${name}.png`, canvas.toDataURL("image/png"));
}

// The menus that stand in the page; `kinds`: selector of what has one -> how it is read.
function listenToTools(kinds) {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-tool]");
    if (!button) return;
    for (const [selector, read] of Object.entries(kinds)) {
      const element = button.closest(selector);
      if (element) {
        await TOOLS[button.dataset.tool](read(element));
        return;
      }
    }
  });
}
