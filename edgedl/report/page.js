// Draws the page's plots in the page's colours, and again when those or the paper change.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = document.querySelectorAll(".plot");
  const root = document.documentElement;
  const narrow = matchMedia("(max-width: 700px)");
  const paperWidth = 660; // of what A4 and Letter leave between their margins

  // Figures name their colours as CSS does; plotly wants the values.
  function resolved(value, style) {
    if (typeof value === "string") {
      const variable = /^var\((--[\w-]+)\)$/.exec(value);
      return variable ? style.getPropertyValue(variable[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolved(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item, style)]));
  }

  function draw(width) {
    const style = getComputedStyle(root);
    for (const plot of plots) {
      const { data, layout } = resolved(figures[plot.dataset.figure], style);
      const annotations = layout.annotations?.filter(({ name }) => name !== "wide" || width || !narrow.matches);
      Plotly.react(plot, data, { ...layout, annotations, width }, { displayModeBar: false, responsive: true });
    }
  }

  narrow.addEventListener("change", () => draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  addEventListener("beforeprint", () => {
    root.dataset.print = "";
    draw(paperWidth);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.print;
    draw();
  });
  draw();
})();
