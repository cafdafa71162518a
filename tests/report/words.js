// Of a drawn figure: texts that cross (as they lie, turned or not), texts beyond the page, the
// places of its panels, and how many of its headings are seen.
(selector) => {
  const box = document.querySelector(selector), page = document.documentElement.clientWidth;
  const classes = [".infolayer", ".xtick", ".ytick", ".textpoint", ".menulayer", ".heatmap-label"];
  const seen = (text) => text.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const texts = [...box.querySelectorAll(classes.map((one) => `${one} text`).join())]
    .filter((text) => text.textContent.trim() && seen(text));

  const corners = (text) => {
    const { x, y, width, height } = text.getBBox(), place = text.getScreenCTM(), slack = 2;
    return [[x + slack, y + slack], [x + width - slack, y + slack],
      [x + width - slack, y + height - slack], [x + slack, y + height - slack]]
      .map(([a, b]) => new DOMPoint(a, b).matrixTransform(place));
  };
  const shapes = texts.map((text) => [text.textContent, corners(text)]);

  // Two rectangles are apart where their shadows along a side of one of them are.
  const sides = (shape) => shape.map((p, at) => {
    const next = shape[(at + 1) % 4];
    return [next.y - p.y, p.x - next.x];
  });
  const shadow = (shape, [a, b]) => shape.map((p) => a * p.x + b * p.y);
  const before = (one, other) => Math.max(...one) <= Math.min(...other);
  const apart = (one, other, side) => {
    const [a, b] = [shadow(one, side), shadow(other, side)];
    return before(a, b) || before(b, a);
  };
  const cross = (one, other) => ![...sides(one), ...sides(other)].some((side) => apart(one, other, side));

  const areas = [...box.querySelectorAll(".nsewdrag")].map((area) => area.getBoundingClientRect());
  const bare = (text) => text.replace(/\s/g, "");
  const plain = (text) => {
    const holder = document.createElement("template");
    holder.innerHTML = text.replace(/<br>/g, "");
    return bare(holder.content.textContent);
  };
  const said = new Set(texts.map((text) => bare(text.textContent)));
  const headings = (box.layout.annotations ?? []).filter((one) => one.name === "heading" && one.text);
  return {
    crossing: shapes.flatMap(([name, one], at) => shapes.slice(at + 1)
      .filter(([, other]) => cross(one, other)).map(([other]) => `${name} | ${other}`)),
    outside: shapes.filter(([, own]) => own.some((p) => p.x < 0 || p.x > page)).map(([name]) => name),
    panels: areas.map((area) => Math.round(area.width)),
    lefts: new Set(areas.map((area) => Math.round(area.left))).size,
    headings: headings.length,
    shown: headings.filter((one) => said.has(plain(one.text))).length,
  };
}
