// Figures: drawn when seen, in the colours of the scheme, and written out as files.

// One configuration for every figure: no bar of plotly's own buttons, of which one leads to a cloud.
const SETTINGS = { responsive: true, displaylogo: false, typesetMath: false, displayModeBar: false, showSendToCloud: false, showEditInChartStudio: false, scrollZoom: false };

const FIGURES = new Map();
const dark = matchMedia("(prefers-color-scheme: dark)");
const DUSK = { "#222222": "#e6e6e6", "#5f5f5f": "#b0b0b0", "#9a9a9a": "#7d7d7d", "#e7e7e7": "#333a42", "#b4b4b4": "#59616b", white: "#15191e", "#555555": "#b9b9b9", "#0072b2": "#4aa8e0", "#b00020": "#ff7b8a", "#6e6e6e": "#a8a8a8", "#7a7a7a": "#a0a0a0", "#0063a0": "#79bdec", "#a04000": "#f2a477" };

const INKED = ["line", "marker", "error_x", "error_y", "textfont"];

// A copy in which the colours of paper and ink are exchanged.
function dusky(value) {
  if (typeof value === "string") return DUSK[value.toLowerCase()] ?? value;
  if (Array.isArray(value)) return value.length && typeof value[0] === "number" ? value : value.map(dusky);
  if (!value || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, own]) => [name, dusky(own)]));
}

// Plotly sizes; the layout is copied, since plotly writes into it. Names of lines that are off are faint.
function scheme(figure) {
  const layout = structuredClone(figure.layout);
  const off = new Set(figure.data.filter((trace) => trace.visible === "legendonly").map((trace) => trace.legendgroup));
  for (const note of layout.annotations ?? []) if (note.captureevents) note.opacity = off.has(note.name) ? 0.35 : 1;
  if (!dark.matches) return { data: figure.data, layout };
  const night = (trace) => Object.fromEntries(Object.entries(trace).map(([name, own]) => [name, INKED.includes(name) ? dusky(own) : own]));
  return { data: figure.data.map(night), layout: dusky({ ...layout, updatemenus: layout.updatemenus?.map((menu) => ({ ...menu, font: { ...menu.font, color: "#222222" } })) }) };
}

function draw(box) {
  const figure = FIGURES.get(box.dataset.figure);
  if (!figure) return Promise.resolve();
  const narrow = phone.matches && box.id !== "head-drawing";
  const { data, layout } = narrow ? stacked(scheme(figure), box.clientWidth) : scheme(figure);
  if (!box.dataset.drawn) box.textContent = "";
  box.style.minHeight = `${Math.round(layout.height)}px`;
  box.dataset.drawn = "yes";
  return window.Plotly.react(box, data, layout, SETTINGS).then(() => roomy(box)).then(() => {
    settled(box);
    if (box.dataset.listens) return;
    box.dataset.listens = "yes";
    box.on("plotly_afterplot", () => settled(box));
    box.on("plotly_click", ({ points: [point] }) => clicked(point));
    box.on("plotly_clickannotation", ({ annotation }) => turned(box, annotation.name));
    box.on("plotly_hover", ({ points: [point] }) => markPlace(placeOf(point)));
    box.on("plotly_unhover", () => markPlace({ layer: null, head: null }));
  });
}

// What depends on where things have come to stand.
function settled(box) {
  if (box.id === "head-drawing") return;
  prepareMarks(box);
  if (phone.matches) uncrowd(box);
}

// On a narrow page a legend takes more lines than are kept for it: the drawing moves down.
function roomy(box) {
  const legend = box.querySelector(".legend .bg"), { meta, margin, height } = box.layout;
  const lacking = legend && meta?.above !== undefined ? Math.ceil(legend.getBoundingClientRect().height) + meta.above - margin.t : 0;
  if (lacking <= 0) return null;
  box.style.minHeight = `${Math.round(height + lacking)}px`;
  return window.Plotly.relayout(box, { "margin.t": margin.t + lacking, height: height + lacking });
}

// A cell of a layer x head map opens that head.
function clicked(point) {
  const meta = point.data.meta ?? {};
  if (meta.x === "head" && meta.y === "layer") location.hash = `#L${point.y}H${point.x}`;
}

// A line is turned off and on by its name, where that stands beside it and not in the legend.
function turned(box, group) {
  const own = FIGURES.get(box.dataset.figure).data.filter((trace) => trace.legendgroup === group);
  const off = own.some((trace) => trace.visible !== "legendonly");
  for (const trace of own) trace.visible = off ? "legendonly" : true;
  draw(box);
}

// Only the traces of a pair, by its name in the legend.
function only(name, pair) {
  const box = document.querySelector(`[data-figure="${CSS.escape(name)}"]`);
  const figure = FIGURES.get(name);
  if (!box || !figure) return;
  const wanted = pair.toLowerCase();
  const pairOf = ({ meta }) => [meta?.fixed?.condition, meta?.fixed?.reference].filter(Boolean).join(" vs ").toLowerCase();
  const groups = new Set(figure.data.filter((trace) => pairOf(trace) === wanted).map((trace) => trace.legendgroup));
  if (!groups.size) return;
  for (const trace of figure.data) if (trace.legendgroup) trace.visible = groups.has(trace.legendgroup) ? true : "legendonly";
  draw(box);
}

// --- files ---------------------------------------------------------------------------------------

function save(name, content, type) {
  const url = content.startsWith("data:") ? content : URL.createObjectURL(new Blob([content], { type }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  announce(`${name} saved`);
}

// The figure with its title and caption, as the run's own pictures have them.
function still(figure) {
  const { layout, data } = figure, { still: kept, heading, footer } = layout.meta;
  if (!kept) return { data, layout: { ...layout, width: layout.width ?? 1000, height: layout.height + 44, margin: { ...layout.margin, t: layout.margin.t + 44 }, title: { text: literal(layout.meta.title), x: 0, xanchor: "left", y: 1, yanchor: "top", pad: { l: 12, t: 12 } } } };
  const margin = { ...layout.margin, t: layout.margin.t + heading, b: layout.margin.b + footer };
  return {
    data: data.filter((trace) => trace.visible !== false),
    layout: { ...structuredClone(layout), autosize: false, width: kept.width, height: layout.height + heading + footer, margin, title: kept.title, annotations: [...(layout.annotations ?? []), ...kept.caption], legend: { ...layout.legend, y: kept.legend_y }, updatemenus: [] },
  };
}

async function savePicture(name, figure, format) {
  const whole = still(figure);
  const url = await window.Plotly.toImage(whole, { format, width: whole.layout.width, height: whole.layout.height, scale: format === "png" ? 2 : 1 });
  save(`${name}.${format}`, url);
}

// One row per plotted number, from what traces say about themselves (as NAME.csv beside the page).
function rowsOf(figure) {
  return figure.data.filter((trace) => trace.meta).flatMap(rowsOfTrace);
}

function rowsOfTrace(trace) {
  const { meta } = trace, fixed = meta.fixed ?? {};
  if (meta.table) {
    const names = Object.keys(meta.table);
    return meta.table[names[0]].map((_, at) => ({ ...fixed, ...Object.fromEntries(names.map((name) => [name, meta.table[name][at]])) }));
  }
  const named = (axis, value) => {
    if (!meta[axis]) return {};
    const label = meta[`${axis}_labels`]?.[String(value)];
    return label === undefined ? { [meta[axis]]: value } : { [meta[axis]]: value, [`${meta[axis]}_label`]: label };
  };
  const custom = (values) => Object.fromEntries((meta.custom ?? []).map((name, at) => [name, values?.[at]]));
  const known = (value) => typeof value === "number" && !Number.isNaN(value);
  if (meta.z) {
    const rows = trace.z.flatMap((line, y) => Array.from(line, (value, x) => ({ ...fixed, ...named("y", trace.y[y]), ...named("x", trace.x[x]), [meta.z]: value, ...custom(trace.customdata?.[y]?.[x]) })));
    return rows.filter((row) => [meta.z, ...(meta.custom ?? [])].some((name) => known(row[name])));
  }
  const length = (trace.x ?? trace.y).length;
  const columns = meta.columns ?? {};
  const rows = Array.from({ length }, (_, at) => ({ ...fixed, ...Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[at]])), ...named("x", trace.x?.[at]), ...named("y", trace.y?.[at]), ...custom(trace.customdata?.[at]) }));
  return meta.gaps ? rows.filter((row) => known(row[meta.y])) : rows;
}

function csv(rows) {
  const names = [...new Set(rows.flatMap(Object.keys))];
  const cell = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    const text = typeof value === "number" ? String(Number(value.toPrecision(7))) : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [names, ...rows.map((row) => names.map((name) => row[name]))].map((line) => line.map(cell).join(",")).join("\n") + "\n";
}
