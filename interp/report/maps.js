// Maps and lines of the reader's choice: measure, pairs, position.

const chart = { index: null, values: null };

async function loadNumbers() {
  chart.index = await unpackedJson("index");
  if (!chart.index) return;
  const bytes = await unpacked("numbers"), count = bytes.length / 4;
  const woven = new Uint8Array(bytes.length);
  for (let plane = 0; plane < 4; plane += 1) for (let at = 0; at < count; at += 1) woven[4 * at + plane] = bytes[plane * count + at];
  chart.values = new Float32Array(woven.buffer);
  let start = 0;
  for (const one of chart.index.series) {
    one.cells = chart.index.layers * (one.heads ? chart.index.heads : 1);
    one.start = start;
    start += 4 * one.cells;
  }
  const form = document.getElementById("pickers");
  form.addEventListener("change", () => drawChart(asking()));
  form.addEventListener("submit", (event) => event.preventDefault());
  // `explore?measure=content_js&pair=prompt+vs+lora` follows from the address.
  const { name, asked } = address.read();
  fillChart(name === "explore" ? asked : {});
}

const choice = (name) => document.querySelector(`#pickers [name="${name}"]`);
const asking = () => Object.fromEntries(["measure", "pair", "beside", "position"].map((name) => [name, choice(name).value]));
const EACH = "each token";
const numbered = (position) => /^\d+$/.test(position);

function fillChart(asked) {
  const { series, measures, sites, first } = chart.index;
  const options = (name, entries, otherwise) => {
    const select = choice(name), wanted = [asked[name], select.value, otherwise].find((value) => entries.some(([known]) => known === value));
    select.replaceChildren(...entries.map(([value, words]) => make("option", { value, textContent: words })));
    if (wanted !== undefined) select.value = wanted;
    return select.value;
  };
  const kinds = [...new Set(series.map((one) => `${one.measure} ${one.site} ${one.heads ? "heads" : "layers"}`))];
  const words = (kind) => {
    const [measure, site, by] = kind.split(" ");
    return `${measures[measure].title}: ${by === "heads" ? "heads" : (sites[site] ?? site)}${by === "heads" && site === "z" ? " (z)" : ""}`;
  };
  const kind = options("measure", kinds.map((one) => [one, words(one)]).sort((a, b) => a[1].localeCompare(b[1])), "content_js pattern heads");
  const ofKind = series.filter((one) => `${one.measure} ${one.site} ${one.heads ? "heads" : "layers"}` === kind);
  const pairs = [...new Set(ofKind.map((one) => one.pair))];
  const pair = options("pair", pairs.map((one) => [one, one]), first);
  options("beside", [["", "none"], ...pairs.filter((one) => one !== pair).map((one) => [one, one])], "");
  const positions = [...new Set(ofKind.map((one) => one.position))];
  const named = positions.filter((one) => !numbered(one));
  options("position", [...named.map((one) => [one, one]), ...(positions.some(numbered) ? [[EACH, EACH]] : [])], "last");
  const [measure] = kind.split(" ");
  document.getElementById("picked").textContent = `${measures[measure].title}: ${measures[measure].definition} [${measures[measure].units}].`;
}

function drawChart(asked, write = true) {
  fillChart(asked);
  const now = asking(), box = document.getElementById("chart");
  FIGURES.set("chart", chartFigure(now));
  document.querySelector("#figure-chart h3").textContent = FIGURES.get("chart").layout.meta.title;
  box.setAttribute("aria-label", `${FIGURES.get("chart").layout.meta.title}. ${document.getElementById("picked").textContent}`);
  if (write) address.write("explore", now);
  return draw(box);
}

const seriesOf = (measure, pair) => chart.index.series.filter((one) => `${one.measure} ${one.site} ${one.heads ? "heads" : "layers"}` === measure && one.pair === pair);
const numbersOf = (one, which) => Array.from(chart.values.subarray(one.start + which * one.cells, one.start + (which + 1) * one.cells));
const lined = (flat, width) => Array.from({ length: flat.length / width }, (_, at) => flat.slice(at * width, (at + 1) * width));

// Panels of one measure on one scale: maps of heads or of tokens, or lines by layer.
function chartFigure({ measure, pair, beside, position }) {
  const [name, site] = measure.split(" "), record = chart.index.measures[name];
  const pairs = [pair, ...(beside ? [beside] : [])];
  const found = pairs.map((one) => [one, seriesOf(measure, one).filter((own) => (position === EACH ? numbered(own.position) : own.position === position))]).filter(([, own]) => own.length);
  const title = `${record.title} of ${chart.index.sites[site] ?? site}, ${position === EACH ? "token by token" : `position: ${position}`}`;
  const counts = [...new Set(found.flatMap(([, own]) => own.map((one) => one.n)))].filter((n) => n !== null);
  const caption = `${pairs.join("; ")}. n = ${counts.join(", ") || "?"} matched queries. ${holder("citation")}`;
  const layout = { ...PLAIN, height: 340, meta: { title, caption, heading: 0, footer: 0 }, annotations: [], legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" } };
  const fixed = (one) => ({ measure: name, site, pair: one, position });
  const data = found.some(([, own]) => own[0].heads) || position === EACH ? mapsOf(found, record, layout, fixed) : linesOf(found, record, layout, fixed);
  return { data, layout };
}

const PLAIN = { margin: { l: 64, r: 96, t: 34, b: 48 }, font: { family: "Arial, 'DejaVu Sans', sans-serif", size: 12, color: "#222222" }, paper_bgcolor: "white", plot_bgcolor: "white", template: "none" };
const LINE = { showgrid: true, gridcolor: "#e7e7e7", zeroline: false, showline: true, linecolor: "#9a9a9a", ticks: "outside", tickcolor: "#9a9a9a" };

function mapsOf(found, record, layout, fixed) {
  const grids = found.map(([pair, own]) => {
    if (own[0].heads) return { pair, across: "head", columns: chart.index.heads, parts: [0, 1, 2, 3].map((which) => lined(numbersOf(own[0], which), chart.index.heads)) };
    const ordered = [...own].sort((a, b) => a.position - b.position);
    const parts = [0, 1, 2, 3].map((which) => ordered.map((one) => numbersOf(one, which)));
    return { pair, across: "token", columns: ordered.length, parts: parts.map((part) => Array.from({ length: chart.index.layers }, (_, layer) => part.map((column) => column[layer]))) };
  });
  const flat = grids.flatMap((grid) => grid.parts[0].flat()).filter(Number.isFinite);
  const top = Math.max(1e-12, ...flat.map(Math.abs)), signed = record.signed || flat.some((value) => value < 0);
  layout.coloraxis = { cmin: signed ? -top : 0, cmax: top, colorscale: signed ? DIVERGING : SEQUENTIAL, colorbar: { title: { text: record.units, side: "right" }, thickness: 14, outlinewidth: 0 } };
  layout.height = Math.min(620, Math.max(230, 18 * chart.index.layers + 110));
  layout.meta.bars = { coloraxis: grids.map((_, at) => `x${at ? at + 1 : ""}`) };
  return grids.map(({ pair, across, columns, parts }, at) => {
    const suffix = at ? String(at + 1) : "", width = 1 / grids.length;
    layout[`xaxis${suffix}`] = { ...LINE, showgrid: false, domain: [at * width + (at ? 0.04 : 0), (at + 1) * width], anchor: `y${suffix}`, title: { text: `${across} (from 0)` }, range: [-0.5, columns - 0.5], dtick: Math.ceil(columns / 16) };
    layout[`yaxis${suffix}`] = { ...LINE, showgrid: false, anchor: `x${suffix}`, title: { text: at ? "" : "layer (from 0)" }, range: [-0.5, chart.index.layers - 0.5], dtick: Math.ceil(chart.index.layers / 16) };
    layout.annotations.push({ name: "heading", text: literal(pair), x: 0, y: 1, xref: `x${suffix} domain`, yref: `y${suffix} domain`, xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 13 } });
    const custom = parts[1].map((row, y) => row.map((_, x) => [parts[1][y][x], parts[2][y][x], parts[3][y][x]]));
    return {
      type: "heatmap", z: parts[0], x: parts[0][0].map((_, x) => x), y: parts[0].map((_, y) => y), customdata: custom, coloraxis: "coloraxis", xaxis: `x${suffix}`, yaxis: `y${suffix}`, hoverongaps: false, xgap: 1, ygap: 1,
      hovertemplate: `layer %{y}, ${across} %{x}<br>value %{z:.4g}<br>interval %{customdata[0]:.3g} to %{customdata[1]:.3g}<br>p (corrected) %{customdata[2]:.2g}<extra></extra>`,
      meta: { fixed: fixed(pair), x: across, y: "layer", z: "value", custom: ["ci_low", "ci_high", "p_adjusted"] },
    };
  });
}

const COLOURS = [["#0072b2", "solid"], ["#d55e00", "dash"]];

function linesOf(found, record, layout, fixed) {
  layout.xaxis = { ...LINE, title: { text: "layer (from 0)" }, dtick: Math.ceil(chart.index.layers / 16) };
  layout.yaxis = { ...LINE, title: { text: literal(`${record.title} [${record.units}]`) }, ...(record.cosine ? { range: [-1.05, 1.05] } : { rangemode: "tozero" }) };
  layout.showlegend = true;
  return found.flatMap(([pair, [one]], at) => {
    const [value, low, high, p] = [0, 1, 2, 3].map((which) => numbersOf(one, which));
    const layer = value.map((_, index) => index), known = layer.filter((index) => Number.isFinite(low[index]));
    const [colour, dash] = COLOURS[at], name = literal(pair);
    return [
      { type: "scatter", x: [...known, ...[...known].reverse()], y: [...known.map((index) => low[index]), ...[...known].reverse().map((index) => high[index])], fill: "toself", mode: "lines", line: { width: 0 }, fillcolor: `${colour}2e`, legendgroup: name, showlegend: false, hoverinfo: "skip" },
      { type: "scatter", x: layer, y: value, customdata: layer.map((index) => [low[index], high[index], p[index]]), name, legendgroup: name, mode: "lines+markers", line: { color: colour, dash, width: 2.2 }, hovertemplate: `<b>${name}</b><br>layer %{x}: %{y:.4g}<br>interval %{customdata[0]:.3g} to %{customdata[1]:.3g}<extra></extra>`, meta: { fixed: fixed(pair), x: "layer", y: "value", custom: ["ci_low", "ci_high", "p_adjusted"] } },
    ];
  });
}
