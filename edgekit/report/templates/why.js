"use strict";
/* Draws SQNR layer by layer. All text and numbers come ready from Python. */
(function () {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const node = document.getElementById("layers");

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const soft = read("--soft"), line = read("--line"), ink = read("--ink"), fail = read("--fail");
    const series = ["--s0", "--s1", "--s2", "--s3", "--s4", "--s5"].map(read);
    const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: soft };
    const traces = [];
    data.lines.forEach((file, i) => {
      const colour = series[i % series.length];
      traces.push({ type: "scatter", mode: "lines+markers", name: file.name, legendgroup: file.name, x: file.x, y: file.y, hovertext: file.hover, hoverinfo: "text", connectgaps: true, line: { color: colour, width: 2 }, marker: { size: 6, color: colour } });
      traces.push({ type: "scatter", mode: "lines", name: file.name + " (own error)", legendgroup: file.name, showlegend: false, x: file.x, y: file.own, hoverinfo: "skip", connectgaps: true, line: { color: colour, width: 1, dash: "dot" } });
      if (file.broken.x.length) {
        traces.push({ type: "scatter", mode: "markers", name: file.name + ": breaks", legendgroup: file.name, showlegend: false, x: file.broken.x, y: file.broken.y, hoverinfo: "skip", marker: { size: 16, symbol: "circle-open", color: fail, line: { width: 3, color: fail } } });
      }
    });
    const axis = (more) => Object.assign({ gridcolor: line, linecolor: line, zeroline: false, automargin: true, tickfont: { color: soft } }, more);
    Plotly.react(node, traces, {
      width: node.clientWidth, height: 460, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font,
      margin: { l: 50, r: 10, t: 10, b: 110 }, hovermode: "closest",
      hoverlabel: { align: "left", bgcolor: read("--panel"), bordercolor: soft, font: { size: 12, color: ink } },
      legend: { orientation: "h", y: 1.12, font: { color: ink } },
      xaxis: axis({ type: "category", categoryorder: "array", categoryarray: data.layers, tickangle: -60 }),
      yaxis: axis({ title: { text: "SQNR, dB", font: { color: soft } } }),
    }, { displaylogo: false, responsive: false, displayModeBar: false });
  }

  node.textContent = "";
  draw();
  let waiting = 0;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 100); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
