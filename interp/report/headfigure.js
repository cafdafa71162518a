// The figure of one head: a panel per condition, aligned on the query's tokens, on one scale.

const PANEL = { row: 17, letter: 5.6, heading: 26, gap: 18, column: 13, left: 110, bar: 86 };

function headFigure(panels, minus) {
  const rows = panels[0]?.rows.length ?? 1, most = Math.max(1, ...panels.map((panel) => panel.columns.length));
  const labels = Math.min(90, 12 + PANEL.letter * Math.max(4, ...panels.flatMap((panel) => panel.columns.map((text) => Math.min(text.length, 14)))));
  const across = most <= 22 && panels.length > 1 && innerWidth > 900 ? 2 : 1;
  const lines = Math.max(1, Math.ceil(panels.length / across));
  const height = Math.max(54, PANEL.row * rows), step = PANEL.heading + height + labels + PANEL.gap;
  const total = lines * step;
  const top = Math.max(1e-9, ...panels.flatMap((panel) => panel.z.flat().map((value) => Math.abs(value ?? 0)).filter(Number.isFinite)));
  const layout = {
    height: total + 10,
    width: Math.max(document.getElementById("head-drawing").clientWidth || 900, PANEL.left + PANEL.bar + across * (PANEL.column * most + 40)),
    margin: { l: PANEL.left, r: PANEL.bar, t: 0, b: 10 },
    font: { family: "Arial, 'DejaVu Sans', sans-serif", size: 12, color: "#222222" },
    paper_bgcolor: "white", plot_bgcolor: "white", template: "none", showlegend: false,
    coloraxis: { cmin: minus ? -top : 0, cmax: top, colorscale: minus ? DIVERGING : SEQUENTIAL, colorbar: { title: { text: minus ? "difference" : "weight", side: "right" }, thickness: 14, outlinewidth: 0, len: Math.min(1, 320 / total), y: 1, yanchor: "top" } },
    annotations: [],
    meta: { title: `Attention of head L${heads.layer}H${heads.head}${minus ? `, minus ${minus}` : ""}`, caption: headCaption(minus), heading: 0, footer: 0 },
  };
  const data = panels.map((panel, number) => {
    const suffix = number ? String(number + 1) : "";
    const column = number % across, start = Math.floor(number / across) * step + PANEL.heading;
    const width = (1 - 0.12 * (across - 1)) / across, left = column * (width + 0.12);
    const low = Math.min(...panels.map((own) => own.places[0] ?? 0)), high = Math.max(...panel.places, 0);
    layout[`xaxis${suffix}`] = { ...AXIS, domain: [left, left + width], anchor: `y${suffix}`, range: [(across === 2 ? panel.places[0] ?? 0 : low) - 0.5, high + 0.5], tickvals: panel.places, ticktext: panel.columns.map(tick), tickangle: -60, tickfont: { size: 10 } };
    layout[`yaxis${suffix}`] = { ...AXIS, domain: [1 - (start + height) / total, 1 - start / total], anchor: `x${suffix}`, range: [rows - 0.5, -0.5], tickvals: panel.rows.map((_, row) => row), ticktext: panel.rows.map(tick), tickfont: { size: 10 } };
    layout.annotations.push({ text: literal(panel.name), x: left, y: 1 - start / total, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 13 } });
    const other = minus ? `<br>${literal(minus)} %{customdata[3]}` : "";
    return {
      type: "heatmap", z: panel.z, x: panel.places, y: panel.rows.map((_, row) => row), customdata: panel.words, coloraxis: "coloraxis", xaxis: `x${suffix}`, yaxis: `y${suffix}`, hoverongaps: false, xgap: 1, ygap: 1,
      hovertemplate: `from %{customdata[0]}<br>to %{customdata[1]}<br>${literal(panel.name)} %{customdata[2]}${other}<extra></extra>`,
      meta: { fixed: { head: `L${heads.layer}H${heads.head}`, condition: panel.name, ...(minus ? { minus } : {}) }, x: "key", y: "row", z: "weight", x_labels: labelled(panel.places, panel.columns), y_labels: labelled(panel.rows.map((_, row) => row), panel.rows) },
    };
  });
  return { data, layout };
}

const AXIS = { showgrid: false, zeroline: false, showline: false, ticks: "", automargin: false, tickmode: "array", fixedrange: false };
const SEQUENTIAL = [[0, "#f7fbff"], [0.25, "#c6dbef"], [0.5, "#6baed6"], [0.75, "#2171b5"], [1, "#08306b"]];
const DIVERGING = [[0, "#2166ac"], [0.25, "#92c5de"], [0.5, "#f7f7f7"], [0.75, "#f4a582"], [1, "#b2182b"]];
const tick = (text) => literal(text.length > 14 ? `${text.slice(0, 13)}…` : text);
const labelled = (places, texts) => Object.fromEntries(places.map((place, at) => [String(place), texts[at]]));

function headCaption(minus) {
  const query = heads.kept.queries[at()];
  const what = pick("measure").value === "content" ? "Weights over the query's own tokens, renormalised" : "Rows: tokens that attend; columns: what they attend to, the context's tokens and the query's own";
  const less = minus ? `. Difference from ${minus}; the context is one column, since contexts differ` : "";
  return `${what}${less}. Query ${query.query}: “${query.text}”. n = 1 query, no interval; weights as kept, to 0.004. ${holder("citation")}`;
}
