// A layer (or head) under the pointer is marked in the other figures on the screen.

// Drawn figures -> marks of their panels. A mark has its size when it is made; later only its
// transform and visibility change, so that no move of the pointer asks for a new layout.
const marks = new Map(), onScreen = new Set();
const screenWatcher = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (isIntersecting) onScreen.add(target);
    else onScreen.delete(target);
    if (!isIntersecting) (marks.get(target) ?? []).forEach(hide);
  }
});

// Marks of every panel with layers along an axis: of a layer, and where it has heads of one head.
function prepareMarks(box) {
  for (const { element } of marks.get(box) ?? []) element.remove();
  const panels = new Map();
  for (const { meta, xaxis = "x", yaxis = "y" } of box.data) {
    if (meta?.x === "layer" || meta?.y === "layer") panels.set(xaxis, { x: meta.x, y: meta.y, across: axisOf(box, xaxis), down: axisOf(box, yaxis) });
  }
  marks.set(box, [...panels.values()].flatMap(({ x, y, across, down }) => {
    const heads = x === "head", layer = { x: x === "layer" ? x : null, y: y === "layer" ? y : null };
    return [{ ...layer, heads, cell: false }, ...(heads ? [{ x, y, heads, cell: true }] : [])].map((one) => made(box, { ...one, across, down }));
  }));
  screenWatcher.observe(box);
}

const axisOf = (box, id) => box._fullLayout[`${id[0]}axis${id.slice(1)}`];
const step = (axis) => Math.abs(axis.d2p(1) - axis.d2p(0));
const hide = ({ element }) => { element.style.visibility = "hidden"; };

function made(box, mark) {
  const wide = mark.x ? step(mark.across) : mark.across._length, high = mark.y ? step(mark.down) : mark.down._length;
  const element = make("div", { className: mark.heads || mark.y ? "mark" : "mark band" });
  Object.assign(element.style, { width: `${wide}px`, height: `${high}px` });
  box.append(element);
  return { ...mark, element, wide, high };
}

// What is under the pointer; null where a point is of no single layer, or head.
function placeOf({ data: { meta = {} }, x, y, pointNumber }) {
  const named = /^L(\d+)H(\d+)$/.exec(meta.columns?.head?.[pointNumber] ?? "");
  if (named) return { layer: Number(named[1]), head: Number(named[2]) };
  const at = { [meta.x]: x, [meta.y]: y };
  return { layer: at.layer ?? meta.columns?.layer?.[pointNumber] ?? meta.fixed?.layer ?? null, head: at.head ?? null };
}

function markPlace(place) {
  for (const box of onScreen) for (const mark of marks.get(box) ?? []) {
    if (place.layer !== null && (!mark.heads || mark.cell === (place.head !== null))) show(mark, place);
    else hide(mark);
  }
}

function show(mark, place) {
  const x = mark.x ? mark.across.d2p(place[mark.x]) : mark.wide / 2, y = mark.y ? mark.down.d2p(place[mark.y]) : mark.high / 2;
  if (x < 0 || x > mark.across._length || y < 0 || y > mark.down._length) return hide(mark);
  const left = mark.across._offset + x - mark.wide / 2, top = mark.down._offset + y - mark.high / 2;
  return Object.assign(mark.element.style, { transform: `translate(${left}px, ${top}px)`, visibility: "visible" });
}
