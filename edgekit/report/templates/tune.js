"use strict";
/* Draws the drop of each rung beside the gate. All text and numbers come ready from Python. */
(function () {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const node = document.getElementById("ladder");

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const soft = read("--soft"), line = read("--line"), ink = read("--ink"), fail = read("--fail");
    const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: soft };
    const traces = [
      { type: "bar", name: "search data", x: data.rungs, y: data.search, marker: { color: read("--s0") }, hovertemplate: "%{x}: %{y:.2f} points<extra></extra>" },
      { type: "scatter", mode: "markers", name: "evaluation data, 95 % interval", x: data.evaluation.x, y: data.evaluation.y, error_y: { type: "data", symmetric: false, array: data.evaluation.above, arrayminus: data.evaluation.below, color: ink }, marker: { size: 10, color: read("--s1") }, hovertemplate: "%{x}: %{y:.2f} points<extra></extra>" },
    ];
    const shapes = data.gate === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: data.gate, y1: data.gate, line: { color: fail, width: 2, dash: "dash" } }];
    const axis = (more) => Object.assign({ gridcolor: line, linecolor: line, zeroline: true, zerolinecolor: line, automargin: true, tickfont: { color: soft } }, more);
    Plotly.react(node, traces, {
      width: node.clientWidth, height: 360, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font, shapes,
      margin: { l: 50, r: 10, t: 10, b: 60 }, hovermode: "closest", legend: { orientation: "h", y: 1.15, font: { color: ink } },
      xaxis: axis({ type: "category", categoryorder: "array", categoryarray: data.rungs }),
      yaxis: axis({ title: { text: "points under the teacher", font: { color: soft } } }),
    }, { displaylogo: false, responsive: false, displayModeBar: false });
  }

  node.textContent = "";
  draw();
  let waiting = 0;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 100); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
