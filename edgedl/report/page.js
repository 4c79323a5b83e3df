// Draws the page's plots in the page's colours, and again when those or the paper change.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = document.querySelectorAll(".plot");
  const boxes = document.querySelectorAll("input[data-facet]");
  const leftOut = new Set(); // numbers of files
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
      const { data: traces, layout } = resolved(figures[plot.dataset.figure], style);
      const data = traces.filter(({ customdata }) => !leftOut.has(customdata?.[0]));
      const annotations = layout.annotations?.filter(({ name = "" }) => {
        const [where, number] = name.split(" ");
        return (where !== "wide" || width || !narrow.matches) && !leftOut.has(Number(number));
      });
      Plotly.react(plot, data, { ...layout, annotations, width }, { displayModeBar: false, responsive: true });
    }
  }

  // Where several runs stand side by side: what is ticked off goes from tables and plots, and from the paper.
  function filter() {
    const off = [...boxes].filter((box) => !box.checked);
    const rows = [...document.querySelectorAll("tr[data-file]")];
    leftOut.clear();
    for (const row of rows) {
      row.hidden = off.some((box) => row.dataset[box.dataset.facet] === box.value);
      if (row.hidden) leftOut.add(Number(row.dataset.file));
    }
    for (const group of document.querySelectorAll("[data-group]")) {
      group.hidden = !group.querySelector("tr[data-file]:not([hidden])");
    }
    const names = off.map((box) => box.value).join(", ");
    document.getElementById("left-out").textContent = off.length
      ? `${leftOut.size} files are left out: ${names}. The front is that of all files, whether shown or not.` : "";
    draw();
  }

  for (const box of boxes) box.addEventListener("change", filter);
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
