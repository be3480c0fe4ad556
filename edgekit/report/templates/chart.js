"use strict";
/* What every page with one chart shares; the page's own script calls `chart(id, figure)`. */
function chart(id, figure) {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const node = document.getElementById(id);

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const soft = read("--soft"), line = read("--line");
    const theme = {
      read, soft, ink: read("--ink"), fail: read("--fail"), line,
      axis: (more) => Object.assign({ gridcolor: line, linecolor: line, zeroline: false, automargin: true, tickfont: { color: soft } }, more),
    };
    const { traces, layout } = figure(data, theme);
    Plotly.react(node, traces, Object.assign({
      width: node.clientWidth, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: soft },
    }, layout), { displaylogo: false, responsive: false, displayModeBar: false });
  }

  node.textContent = "";
  draw();
  let waiting = 0;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 100); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
