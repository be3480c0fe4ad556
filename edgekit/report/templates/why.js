/* Draws SQNR layer by layer. All text and numbers come ready from Python. */
chart("layers", (data, { read, soft, ink, fail, axis }) => {
  const series = ["--s0", "--s1", "--s2", "--s3", "--s4", "--s5"].map(read);
  const traces = [];
  data.lines.forEach((file, i) => {
    const colour = series[i % series.length];
    traces.push({ type: "scatter", mode: "lines+markers", name: file.name, legendgroup: file.name, x: file.x, y: file.y, hovertext: file.hover, hoverinfo: "text", connectgaps: true, line: { color: colour, width: 2 }, marker: { size: 6, color: colour } });
    traces.push({ type: "scatter", mode: "lines", name: file.name + " (own error)", legendgroup: file.name, showlegend: false, x: file.x, y: file.own, hoverinfo: "skip", connectgaps: true, line: { color: colour, width: 1, dash: "dot" } });
    if (file.broken.x.length) {
      traces.push({ type: "scatter", mode: "markers", name: file.name + ": breaks", legendgroup: file.name, showlegend: false, x: file.broken.x, y: file.broken.y, hoverinfo: "skip", marker: { size: 16, symbol: "circle-open", color: fail, line: { width: 3, color: fail } } });
    }
  });
  return { traces, layout: {
    height: 460, margin: { l: 50, r: 10, t: 10, b: 110 },
    hoverlabel: { align: "left", bgcolor: read("--panel"), bordercolor: soft, font: { size: 12, color: ink } },
    legend: { orientation: "h", y: 1.12, font: { color: ink } },
    xaxis: axis({ type: "category", categoryorder: "array", categoryarray: data.layers, tickangle: -60 }),
    yaxis: axis({ title: { text: "SQNR, dB", font: { color: soft } } }),
  } };
});
