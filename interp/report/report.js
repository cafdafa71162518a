"use strict";
(() => {
  const text = (id) => document.getElementById(id).textContent;
  const notice = (words) => {
    for (const box of document.querySelectorAll(".drawing")) box.textContent = words;
  };

  // Inserted as inline text: the page's policy allows it by the hash of plotly.js itself.
  async function loadPlotly() {
    const packed = Uint8Array.from(atob(text("plotly").trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("plotly.js did not start");
  }

  async function main() {
    const figures = JSON.parse(text("figures"));
    await loadPlotly();
    const settings = { responsive: true, displaylogo: false, typesetMath: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    const draw = (box) => {
      if (box.dataset.drawn) return;
      box.dataset.drawn = "yes";
      const figure = figures[box.dataset.figure];
      box.textContent = "";
      window.Plotly.newPlot(box, figure.data, figure.layout, settings);
    };
    const boxes = [...document.querySelectorAll(".drawing")];
    const watcher = new IntersectionObserver((seen) => {
      for (const entry of seen) {
        if (!entry.isIntersecting) continue;
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "400px" });
    boxes.forEach((box) => watcher.observe(box));
    window.addEventListener("beforeprint", () => {
      boxes.forEach(draw);
      boxes.forEach((box) => window.Plotly.Plots.resize(box));
    });
  }

  main().catch((error) => notice(`The figures could not be drawn (${error.message}). Their numbers are in CSV files beside this page.`));
})();
