/* Draws the drop of each rung beside the gate. All text and numbers come ready from Python. */
chart("ladder", (data, { read, soft, ink, fail, line, axis }) => {
  const traces = [
    { type: "bar", name: "search data", x: data.rungs, y: data.search, marker: { color: read("--s0") }, hovertemplate: "%{x}: %{y:.2f} points<extra></extra>" },
    { type: "scatter", mode: "markers", name: "evaluation data, 95 % interval", x: data.evaluation.x, y: data.evaluation.y, error_y: { type: "data", symmetric: false, array: data.evaluation.above, arrayminus: data.evaluation.below, color: ink }, marker: { size: 10, color: read("--s1") }, hovertemplate: "%{x}: %{y:.2f} points<extra></extra>" },
  ];
  const shapes = data.gate === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: data.gate, y1: data.gate, line: { color: fail, width: 2, dash: "dash" } }];
  return { traces, layout: {
    height: 360, shapes, margin: { l: 50, r: 10, t: 10, b: 60 }, legend: { orientation: "h", y: 1.15, font: { color: ink } },
    xaxis: axis({ type: "category", categoryorder: "array", categoryarray: data.rungs, zeroline: true, zerolinecolor: line }),
    yaxis: axis({ title: { text: "points under the teacher", font: { color: soft } }, zeroline: true, zerolinecolor: line }),
  } };
});
