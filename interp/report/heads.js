// One head: its kept patterns under every condition, over tokens, side by side or as differences.

const heads = { kept: null, bytes: null, offsets: null, layer: 0, head: 0, conditions: null };

async function loadHeads() {
  heads.kept = await unpackedJson("samples");
  if (!heads.kept) return;
  const { queries, contexts, layers, n_heads } = heads.kept;
  heads.offsets = {};
  let start = 0;
  queries.forEach((query, at) => {
    for (const [name, context] of Object.entries(contexts)) {
      heads.offsets[`${at} ${name}`] = start;
      start += layers.length * n_heads * query.rows * (context.columns.length + query.tokens.length);
    }
  });
  const dialog = document.getElementById("onehead");
  for (const select of dialog.querySelectorAll("select")) select.addEventListener("change", drawHead);
  dialog.addEventListener("close", () => address.write("heads"));
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || event.target.closest("select, input, .scroll")) return;
    event.preventDefault();
    stepHead(...step);
  });
  for (const button of dialog.querySelectorAll("[data-step]")) button.addEventListener("click", () => stepHead(...button.dataset.step.split(",").map(Number)));
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
}

function stepHead(layers, along) {
  const { layers: known, n_heads } = heads.kept;
  const at = (known.indexOf(heads.layer) + layers + known.length) % known.length;
  openHead(known[at], (heads.head + along + n_heads) % n_heads, picked());
}

const pick = (name) => document.querySelector(`#onehead [name="${name}"]`);
const PICKS = ["query", "measure", "minus", "rows", "columns"];
const picked = () => ({ ...Object.fromEntries(PICKS.map((name) => [name, pick(name).value])), hide: hidden().join("|") });
const hidden = () => [...document.querySelectorAll('#onehead [name="shown"]:not(:checked)')].map((box) => box.value);

// Options of the pickers, which follow the query.
function fillPickers(asked) {
  const { queries, contexts } = heads.kept;
  const options = (name, entries) => {
    const select = pick(name), wanted = asked[name] ?? select.value;
    select.replaceChildren(...entries.map(([value, words]) => make("option", { value, textContent: words })));
    if (entries.some(([value]) => value === wanted)) select.value = wanted;
  };
  options("query", queries.map((query) => [String(query.query), `${query.query}: ${query.text.slice(0, 60)}`]));
  const query = queries[at()];
  options("minus", [["", "nothing (the patterns themselves)"], ...Object.keys(contexts).map((name) => [name, name])]);
  options("rows", [["", "all kept tokens"], ["last", "the last token"], ...Object.keys(query.segments).map((name) => [name, `segment: ${name}`])]);
  const box = document.getElementById("head-conditions");
  const off = asked.hide === undefined ? (box.children.length ? hidden() : rest()) : asked.hide.split("|");
  box.replaceChildren(...Object.keys(contexts).map((name) => {
    const input = make("input", { type: "checkbox", name: "shown", value: name, checked: !off.includes(name) });
    input.addEventListener("change", drawHead);
    return make("label", {}, input, make("bdi", { textContent: name }));
  }));
}

// Conditions beside the main ones are off at first where there are many.
const rest = () => (Object.keys(heads.kept.contexts).length > 6 ? Object.keys(heads.kept.contexts).filter((name) => !heads.kept.main.includes(name)) : []);
const at = () => Math.max(0, heads.kept.queries.findIndex((query) => String(query.query) === pick("query").value));

async function openHead(layer, head, asked = {}) {
  const dialog = document.getElementById("onehead");
  if (!heads.kept || !heads.kept.layers.includes(layer) || head >= heads.kept.n_heads) {
    announce(`Of L${layer}H${head} this page keeps no patterns; interp head RUN L${layer}H${head} --all-queries reads them from the model.`);
    return;
  }
  Object.assign(heads, { layer, head });
  heads.bytes ??= await unpacked("patterns");
  for (const name of ["measure", "columns"]) if (asked[name]) pick(name).value = asked[name];
  if (asked.query) fillPickers({ query: asked.query });
  fillPickers(asked);
  if (!dialog.open) dialog.showModal();
  document.getElementById("head-name").textContent = `Head L${layer}H${head}`;
  showNumbers(layer, head);
  await drawHead();
}

// Weights of a condition, [row][column]; columns are those of its context, then the query's tokens.
function weights(name) {
  const { queries, contexts, layers, n_heads } = heads.kept;
  const query = queries[at()], columns = contexts[name].columns.length + query.tokens.length;
  const size = query.rows * columns;
  let start = heads.offsets[`${at()} ${name}`] + (layers.indexOf(heads.layer) * n_heads + heads.head) * size;
  return Array.from({ length: query.rows }, () => {
    const row = Array.from(heads.bytes.subarray(start, start + columns), (byte) => (byte / 255) ** 2);
    start += columns;
    return row;
  });
}

// What a panel shows: names of rows and columns, where these stand, weights, and the reference's.
function panelOf(name) {
  const query = heads.kept.queries[at()], length = query.tokens.length, first = length - query.rows;
  const context = heads.kept.contexts[name].columns, content = pick("measure").value === "content";
  const folded = pick("minus").value !== "";
  const own = (row, width) => {
    const tail = row.slice(width), sum = tail.reduce((a, b) => a + b, 0);
    if (content) return tail.map((value) => (sum > 0 ? value / sum : NaN));
    return folded ? [row.slice(0, width).reduce((a, b) => a + b, 0), ...tail] : row;
  };
  const part = pick("columns").value;
  let names = content ? [] : folded ? ["(context)"] : context;
  const before = names.length;
  names = [...names, ...query.tokens];
  const kept = names.map((_, column) => column).filter((column) => part === "" || (part === "context") === (column < before));
  const rows = Array.from({ length: query.rows }, (_, row) => row).filter(rowShown(query, first));
  const table = (who) => {
    const width = heads.kept.contexts[who].columns.length;
    return weights(who).map((row) => own(row, width));
  };
  const z = table(name), other = folded ? table(pick("minus").value) : null;
  const causal = (row, column) => column - before <= row + first;
  const cell = (from) => rows.map((row) => kept.map((column) => (causal(row, column) ? from(row, column) : null)));
  return {
    name,
    rows: rows.map((row) => query.tokens[row + first]),
    columns: kept.map((column) => names[column]),
    places: kept.map((column) => column - before),
    z: cell((row, column) => z[row][column] - (other ? other[row][column] : 0)),
    words: cell((row, column) => [literal(query.tokens[row + first]), literal(names[column]), shown(z[row][column]), other ? shown(other[row][column]) : ""]),
  };
}

function rowShown(query, first) {
  const wanted = pick("rows").value;
  if (wanted === "") return () => true;
  if (wanted === "last") return (row) => row + first === query.tokens.length - 1;
  const [start, stop] = query.segments[wanted] ?? [0, Infinity];
  return (row) => row + first >= start && row + first < stop;
}

async function drawHead() {
  fillPickers({});
  const minus = pick("minus").value;
  const names = Object.keys(heads.kept.contexts).filter((name) => !hidden().includes(name) && name !== minus);
  const panels = names.map(panelOf);
  const figure = headFigure(panels, minus);
  const box = document.getElementById("head-drawing");
  FIGURES.set("head-pattern", figure);
  box.setAttribute("aria-label", `${figure.layout.meta.title}. ${panels.map(seenIn).join(" ")}`);
  const asked = picked();
  if (asked.hide === rest().join("|")) delete asked.hide;
  address.write(`L${heads.layer}H${heads.head}`, asked);
  await draw(box);
  if (window.Plotly) window.Plotly.Plots.resize(box);
  showAttended(names);
}

// In words: to what the last shown token attends most.
function seenIn(panel) {
  const row = panel.z.at(-1)?.map((value) => value ?? -Infinity) ?? [];
  if (!row.length) return "";
  const top = row.indexOf(Math.max(...row));
  return `${panel.name}: most to ${panel.columns[top]}, ${shown(row[top])}.`;
}

function showAttended(names) {
  const query = heads.kept.queries[at()], body = document.querySelector("#head-attended tbody");
  body.replaceChildren(...names.map((name) => {
    const columns = [...heads.kept.contexts[name].columns, ...query.tokens], row = weights(name).at(-1);
    const top = row.map((_, column) => column).sort((a, b) => row[b] - row[a]).slice(0, 5);
    const words = top.map((column) => make("span", { className: "token" }, make("bdi", { textContent: columns[column] }), ` ${shown(row[column])}`));
    return make("tr", {}, make("td", {}, make("bdi", { textContent: name })), make("td", {}, ...words));
  }));
}

// What the maps of the page say of the head.
function showNumbers(layer, head) {
  const rows = [];
  for (const figure of FIGURES.values()) {
    for (const trace of figure.data) {
      const { meta } = trace;
      if (meta?.x !== "head" || meta.y !== "layer" || meta.z === "n" || !meta.z) continue;
      const y = trace.y.indexOf(layer), x = trace.x.indexOf(head);
      const custom = Object.fromEntries((meta.custom ?? []).map((name, at) => [name, trace.customdata?.[y]?.[x]?.[at]]));
      const value = custom.value ?? trace.z[y]?.[x];
      if (value === null || value === undefined || Number.isNaN(value)) continue;
      rows.push({ ...meta.fixed, ...custom, value, title: figure.layout.meta.title.split(",")[0] });
    }
  }
  const ends = (row) => (row.ci_low === undefined || row.ci_low === null ? "" : `[${shown(row.ci_low)}, ${shown(row.ci_high)}]`);
  const cells = (row) => [`${row.measure ?? row.title}`, [row.condition, row.reference].filter(Boolean).join(" vs "), row.position ?? "last", [shown(row.value), ends(row)], row.p_adjusted === undefined ? "–" : shown(row.p_adjusted), row.n ?? "–"];
  document.querySelector("#head-numbers tbody").replaceChildren(...rows.map((row) => make("tr", {}, ...cells(row).map((cell) => {
    const [text, more] = Array.isArray(cell) ? cell : [cell, ""];
    return make("td", {}, make("bdi", { textContent: String(text) }), more ? " " : "", more ? make("span", { className: "ci", textContent: more }) : "");
  }))));
}
