// The page as a whole: figures drawn when they are seen, addresses followed.

const boxes = () => [...document.querySelectorAll(".drawing")];
const notice = (words) => boxes().forEach((box) => { box.textContent = words; });

// Inserted as inline text: the page's policy allows it by the hash of plotly.js itself.
async function loadPlotly() {
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await unpacked("plotly"));
  document.head.append(script);
  if (!window.Plotly) throw new Error("plotly.js did not start");
}

function watchFigures() {
  const watcher = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting || target.dataset.drawn) continue;
      watcher.unobserve(target);
      if (target.id === "chart") drawChart(asking(), false);
      else draw(target);
    }
  }, { rootMargin: "400px" });
  boxes().filter((box) => !["head-drawing", "chart"].includes(box.id)).forEach((box) => watcher.observe(box));
  for (const changed of [dark, phone]) changed.addEventListener("change", () => boxes().filter((box) => box.dataset.drawn).forEach(draw));
  window.addEventListener("beforeprint", () => {
    boxes().filter((box) => !box.dataset.drawn && FIGURES.has(box.dataset.figure)).forEach(draw);
    boxes().filter((box) => box.dataset.drawn).forEach((box) => window.Plotly.Plots.resize(box));
  });
  return watcher;
}

// #L5H3 opens a head, #explore?... sets the pickers, #layers?pair=a vs b shows one pair alone.
function follow() {
  const { name, asked } = address.read();
  const head = /^L(\d+)H(\d+)$/i.exec(name);
  if (head) {
    openHead(Number(head[1]), Number(head[2]), asked);
    return;
  }
  const place = document.getElementById(name) ?? document.getElementById(`figure-${name}`);
  if (!place) return;
  for (let fold = place.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  if (Object.keys(asked).length || place.id !== name) place.scrollIntoView();
  if (name === "explore" && chart.index && Object.keys(asked).length) drawChart(asked, false);
  else if (asked.pair) only(name.replace(/^figure-/, ""), asked.pair);
}

// The section that is read is marked in the navigation.
function markSection() {
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  for (const id of links.keys()) if (document.getElementById(id)) watcher.observe(document.getElementById(id));
}

function goToHead() {
  const form = document.getElementById("go-to-head");
  form?.addEventListener("submit", (event) => {
    event.preventDefault();
    const match = /^\s*L?(\d+)\s*[H.,\s]\s*(\d+)\s*$/i.exec(form.elements.name.value);
    if (match) location.hash = `#L${match[1]}H${match[2]}`;
    else announce("Write a head like L5H3: layer and head, counted from 0.");
  });
}

async function main() {
  prepareTables();
  markSection();
  goToHead();
  listenToTools({ "figure": ofFigure, ".table": ofTable });
  const [figures] = await Promise.all([unpackedJson("figures"), loadPlotly()]);
  for (const [name, figure] of Object.entries(figures)) FIGURES.set(name, decoded(figure));
  const watcher = watchFigures();
  await Promise.all([loadHeads(), loadNumbers()]);
  if (chart.index) watcher.observe(document.getElementById("chart"));
  reach();
  document.documentElement.dataset.ready = "yes";
  follow();
  window.addEventListener("hashchange", follow);
}

main().catch((error) => notice(`The figures could not be drawn (${error.message}). Their numbers are in CSV files beside this page.`));
