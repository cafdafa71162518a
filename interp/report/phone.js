// On a phone the panels of a figure stand one under another, each as wide as the page.

const phone = matchMedia("(max-width: 480px)");
const LETTER = 6.6, STACK = { right: 16, least: 204, low: 150, high: 420, bar: 74, gap: 16, menu: 40 };

// Changes the layout (a copy) for a page of this width; returns the figure.
function stacked({ data, layout }, width) {
  const panels = panelsOf(layout), shows = (axis) => axis.showticklabels !== false;
  if (!panels.some(({ x, y }) => shows(x) || shows(y))) return { data, layout };
  const unnamed = named(layout);
  for (const letter of ["x", "y"]) speakAgain(new Map(panels.map((panel) => [panel.id[letter], panel[letter]])));
  for (const panel of panels) inherit(layout, panel, panels);
  const left = Math.min(width - STACK.right - STACK.least, Math.max(40, ...panels.map(({ y }) => roomBeside(y))));
  const across = width - left - STACK.right, bars = barsOf(layout, panels);
  const room = layout.height - layout.margin.t - layout.margin.b;
  let down = 0;
  const place = panels.map((panel) => {
    shortened(panel.y, left);
    thinned(panel.x, across);
    down += headed(layout, panel, width, left);
    const share = (panel.y.domain ?? [0, 1])[1] - (panel.y.domain ?? [0, 1])[0];
    const least = Math.max(STACK.low, LETTER * letters(panel.y.title?.text) + 12);
    const height = panel.y.scaleanchor ? across : Math.min(STACK.high, Math.max(least, share * room));
    const top = down;
    down += height + roomBelow(panel.x);
    for (const bar of bars.get(panel.id.x) ?? []) {
      bar.top = down + 10;
      down += STACK.bar;
    }
    down += STACK.gap;
    return { panel, top, bottom: top + height };
  });
  for (const { panel, top, bottom } of place) {
    panel.y.domain = [1 - bottom / down, 1 - top / down];
    panel.x.domain = [0, 1];
  }
  for (const { axis, top } of [...bars.values()].flat()) lying(axis.colorbar, 1 - top / down, left, width);
  const above = 8 + (layout.updatemenus?.length ? STACK.menu : 0);
  for (const menu of layout.updatemenus ?? []) menu.pad = { b: 6 };
  layout.margin = { ...layout.margin, l: left, r: STACK.right, t: above, b: 8 };
  layout.meta = { ...layout.meta, above: 8 };
  layout.height = Math.round(down + above + 8);
  if (unnamed.size) layout.showlegend = true;
  const cell = (trace) => across / (trace.x?.length || 1);
  const fitted = (trace) => {
    if (trace.texttemplate && cell(trace) < 30) return { ...trace, texttemplate: "" };
    return trace.name && unnamed.delete(trace.legendgroup) ? { ...trace, showlegend: true } : trace;
  };
  return { data: data.map(fitted), layout };
}

// There is no room for names beside the ends of lines: these are taken away, for the legend to say.
function named(layout) {
  const beside = (layout.annotations ?? []).filter((note) => note.captureevents);
  layout.annotations = (layout.annotations ?? []).filter((note) => !note.captureevents);
  return new Set(beside.map((note) => note.name));
}

// From the upper left to the lower right.
function panelsOf(layout) {
  const at = ({ x, y }) => [-(y.domain ?? [0, 1])[1], (x.domain ?? [0, 1])[0]];
  const found = Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name)).map((name) => {
    const x = layout[name], id = x.anchor ?? "y";
    return { x, y: layout[`yaxis${id.slice(1)}`], id: { x: `x${name.slice(5)}`, y: id } };
  });
  const order = (a, b) => (Math.abs(a[0] - b[0]) > 1e-6 ? a[0] - b[0] : a[1] - b[1]);
  return found.sort((a, b) => order(at(a), at(b)));
}

// Axes of one letter, by name: one for which another spoke gets its labels and title back.
function speakAgain(axes) {
  const root = (id) => (axes.has(axes.get(id).matches) ? root(axes.get(id).matches) : id);
  const ends = (axis) => JSON.stringify(axis.range ?? null);
  const loud = [...axes].filter(([, axis]) => axis.showticklabels !== false);
  for (const [id, axis] of axes) {
    if (axis.showticklabels !== false) continue;
    const [, speaker] = loud.find(([other]) => root(other) === root(id)) ?? loud.find(([, other]) => ends(other) === ends(axis)) ?? [];
    if (speaker) Object.assign(axis, { showticklabels: true, title: speaker.title });
  }
}

// Characters of a label as it is seen, and the length of the longest of an axis's.
const letters = (text) => String(text ?? "").replace(/<[^>]*>/g, "").replace(/&[#\w]+;/g, "x").length;
const longest = (axis) => (axis.showticklabels === false ? 0 : axis.ticktext?.length ? Math.max(...axis.ticktext.map(letters)) : 5);
const size = (axis) => (LETTER * (axis.tickfont?.size ?? 12)) / 12;
const titled = (axis) => (axis.title?.text ? 22 : 0);
const roomBeside = (axis) => 10 + size(axis) * longest(axis) + titled(axis);

function roomBelow(axis) {
  if (axis.showticklabels === false) return 8;
  const turned = Math.abs(Math.sin(((axis.tickangle || 0) * Math.PI) / 180));
  return 12 + 12 * (1 - turned) + turned * size(axis) * longest(axis) + titled(axis);
}

// Names beside a panel that are longer than their room end in an ellipsis.
function shortened(axis, left) {
  if (!axis.ticktext || axis.showticklabels === false) return;
  const most = Math.max(4, Math.floor((left - 10 - titled(axis)) / size(axis)));
  axis.ticktext = axis.ticktext.map((text) => (text.includes("<") || letters(text) <= most ? text : `${text.match(/&[#\w]+;|./gsu).slice(0, most - 1).join("")}…`));
}

// Numbers that do not fit below a panel are thinned out; names stand at an angle, or upright.
function thinned(axis, across) {
  if (axis.showticklabels === false) return;
  const [low, high] = axis.range ?? [0, 1], span = Math.abs(high - low) || 1;
  if (!axis.ticktext) {
    if (axis.tickmode === "linear") while ((span / axis.dtick) * 24 > across) axis.dtick *= 2;
    return;
  }
  const count = axis.ticktext.length, wide = size(axis) * longest(axis) + 6;
  const numbers = axis.ticktext.slice(0, -1).every((text) => /^[−\d.]*$/.test(text.replace(/<[^>]*>/g, "")));
  const keep = (step) => {
    const kept = (_, at) => at === count - 1 || (at % step === 0 && at + step / 2 < count);
    Object.assign(axis, { tickvals: axis.tickvals.filter(kept), ticktext: axis.ticktext.filter(kept) });
  };
  if (numbers && !axis.tickangle) {
    if (count * wide > across) keep(Math.ceil((count * wide) / across));
    axis.tickangle = 0;
    return;
  }
  const each = across / (axis.type === "log" ? count : span);
  if (!axis.tickangle && wide > each) axis.tickangle = -60;
  if (axis.tickangle && each * Math.abs(Math.sin((axis.tickangle * Math.PI) / 180)) < 13) axis.tickangle = -90;
  if (axis.tickangle === -90 && each < 12) keep(Math.ceil(12 / each));
}

const headingOf = (layout, { id }) => layout.annotations.find((one) => one.name === "heading" && one.xref === `${id.x} domain`);

// A panel without a heading has that of its column.
function inherit(layout, panel, panels) {
  if (headingOf(layout, panel)) return;
  const column = (one) => String(one.x.domain), above = panels.find((one) => column(one) === column(panel) && headingOf(layout, one));
  if (above) layout.annotations.push({ ...headingOf(layout, above), xref: `${panel.id.x} domain`, yref: `${panel.id.y} domain` });
}

// A heading above its panel, in as many lines as it needs; returns how many pixels.
function headed(layout, panel, width, left) {
  const note = headingOf(layout, panel);
  if (!note) return 6;
  const lines = folded(note.text, Math.floor((width - 16) / (LETTER + 0.6)));
  Object.assign(note, { text: lines.join("<br>"), xshift: 8 - left, align: "left" });
  return 10 + 17 * lines.length;
}

function folded(text, most) {
  return text.split(" ").reduce((lines, word) => {
    const last = lines.at(-1);
    if (last !== undefined && letters(`${last} ${word}`) <= most) return [...lines.slice(0, -1), `${last} ${word}`];
    return [...lines, word];
  }, []);
}

// Colour bars by the panel below which they lie: the last one that they stand beside.
function barsOf(layout, panels) {
  const found = new Map();
  for (const name of Object.keys(layout).filter((one) => /^coloraxis\d*$/.test(one) && layout[one].colorbar)) {
    const last = panels.findLast(({ id }) => (layout.meta.bars?.[name] ?? [id.x]).includes(id.x)).id.x;
    found.set(last, [...(found.get(last) ?? []), { axis: layout[name], top: 0 }]);
  }
  return found;
}

function lying(bar, y, left, width) {
  const words = folded(bar.title?.text ?? "", Math.floor((width - 24) / LETTER)).join("<br>");
  if (bar.ticktext?.length > 6) for (const name of ["tickvals", "ticktext"]) bar[name] = bar[name].filter((_, at) => at % 2 === 0);
  Object.assign(bar, { orientation: "h", x: 0, xanchor: "left", y, yanchor: "top", len: 1, lenmode: "fraction", thickness: 12, tickangle: 0, title: { ...bar.title, text: words, side: "top" } });
}

// Names of points and notes that would lie over other words are left out: a touch tells them.
function uncrowd(box) {
  const notes = [...box.querySelectorAll(".annotation")].filter((note) => box.layout.annotations?.[note.dataset.index]?.name !== "heading");
  const loose = [...box.querySelectorAll(".textpoint text"), ...notes];
  for (const one of loose) one.style.display = "";
  const kept = [...box.querySelectorAll(".xtick text, .ytick text, .infolayer > g:not(.annotation):not(.legend) text, .annotation")].filter((one) => !notes.includes(one)).map((one) => one.getBoundingClientRect());
  const page = box.getBoundingClientRect();
  for (const one of loose) {
    const own = one.getBoundingClientRect();
    const crossed = own.left < page.left || own.right > page.right || kept.some((other) => own.left < other.right && other.left < own.right && own.top < other.bottom && other.top < own.bottom);
    if (crossed) one.style.display = "none";
    else kept.push(own);
  }
}
