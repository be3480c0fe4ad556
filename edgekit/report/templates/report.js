"use strict";
/* Draws the pictures, sorts the table, follows the colour scheme. All text and numbers come ready from Python. */
(function () {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const SHAPES = { tflite: "circle", executorch: "square", onnx: "diamond", teacher: "hexagon" };
  const PLACES = { center: "middle center", left: "middle left", right: "middle right", top: "top center", bottom: "bottom center" };
  const CONFIG = { displaylogo: false, responsive: false, displayModeBar: false, scrollZoom: false };
  const BAND = 46; /* px a row of the distribution and course pictures */

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return {
      ink: read("--ink"), soft: read("--soft"), line: read("--line"), panel: read("--panel"), on: read("--on-series"),
      font: getComputedStyle(document.body).fontFamily,
      series: ["--s0", "--s1", "--s2", "--s3", "--s4", "--s5"].map(read),
    };
  }

  function faded(hex, alpha) {
    const value = parseInt(hex.slice(1), 16);
    return `rgba(${value >> 16},${(value >> 8) & 255},${value & 255},${alpha})`;
  }

  function mixed(hex, paper, share) {
    const a = parseInt(hex.slice(1), 16), b = parseInt(paper.slice(1), 16);
    const part = (shift) => Math.round(((a >> shift) & 255) * share + ((b >> shift) & 255) * (1 - share));
    return `rgb(${part(16)},${part(8)},${part(0)})`;
  }

  function layout(t, node, more) {
    return Object.assign({
      width: node.clientWidth, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: t.font, size: 12, color: t.soft }, dragmode: false, hovermode: "closest",
      hoverlabel: { align: "left", bgcolor: t.panel, bordercolor: t.soft, font: { family: t.font, size: 12, color: t.ink } },
    }, more);
  }

  function axis(t, more) {
    return Object.assign({ gridcolor: t.line, linecolor: t.line, zeroline: false, fixedrange: true, automargin: true, tickfont: { color: t.soft } }, more);
  }

  /* ---- quality against latency */

  /* One panel a device, for latencies of two devices do not compare; quality shares its axis. */
  function tradeOff(node, d, t) {
    const small = node.clientWidth < 620;
    const devices = d.devices.map((device, i) => ({ device, colour: t.series[i % t.series.length] })).filter((v) => v.device.points.length);
    const columns = small ? 1 : Math.min(devices.length, 2), rows = Math.ceil(devices.length / columns);
    const panel = small ? 330 : 420, height = rows * panel;
    const more = { height, margin: { l: 50, r: 10, t: 26, b: 44 }, showlegend: false, shapes: [], annotations: [] };
    const traces = [];
    devices.forEach(({ device, colour }, i) => {
      const n = i ? String(i + 1) : "", column = i % columns, row = Math.floor(i / columns);
      const width = 1 / columns, gap = columns > 1 ? 0.03 : 0, inner = height - 70, tall = (inner - (rows - 1) * 76) / rows;
      const left = column * width + (column ? gap : 0), right = (column + 1) * width - (column < columns - 1 ? gap : 0);
      const top = 1 - (row * (tall + 76)) / inner, bottom = top - tall / inner;
      const x = axis(t, { domain: [left, right], anchor: `y${n}`, tickangle: 0, automargin: false, type: d.log ? "log" : "linear", title: { text: d.x_title, standoff: 6, font: { color: t.soft, size: 12 } } });
      if (d.ticks) { x.tickmode = "array"; x.tickvals = d.ticks.map((v) => v[0]); x.ticktext = d.ticks.map((v) => v[1]); }
      more[`xaxis${n}`] = x;
      more[`yaxis${n}`] = axis(t, { domain: [Math.max(0, bottom), Math.min(1, top)], anchor: `x${n}`, matches: i ? "y" : undefined, automargin: false, showticklabels: column === 0, title: column === 0 ? { text: d.y_title, standoff: 6, font: { color: t.soft, size: 12 } } : undefined });
      more.annotations.push({ xref: `x${n} domain`, yref: `y${n} domain`, x: 0, xanchor: "left", y: 1, yanchor: "bottom", text: `<b>${device.name}</b>`, showarrow: false, font: { size: 13, color: colour } });
      if (d.teacher) {
        more.shapes.push({ type: "line", xref: `x${n} domain`, yref: `y${n}`, x0: 0, x1: 1, y0: d.teacher.y, y1: d.teacher.y, line: { color: t.soft, width: 1.2, dash: "dot" }, layer: "below" });
        more.annotations.push({ xref: `x${n} domain`, yref: `y${n}`, x: 0.01, xanchor: "left", y: d.teacher.y, yanchor: "bottom", text: d.teacher.text, showarrow: false, font: { size: 11, color: t.soft } });
      }
      traces.push(...panelTraces(device, colour, t, small).map((trace) => Object.assign(trace, { xaxis: `x${n}`, yaxis: `y${n}` })));
    });
    Plotly.react(node, traces, layout(t, node, more), CONFIG);
  }

  /* a number beside its bubble keeps clear of the ring */
  function spaced(p) {
    return p.place === "left" ? `${p.number}\u00a0\u00a0` : p.place === "right" ? `\u00a0\u00a0${p.number}` : p.number;
  }

  function panelTraces(device, colour, t, small) {
    const points = device.points, best = points.filter((p) => p.pareto);
    const px = (p) => (small ? 16 : 18) + (small ? 15 : 20) * p.size;
    return [
      { type: "scatter", mode: "lines", x: device.front.map((p) => p[0]), y: device.front.map((p) => p[1]), line: { color: colour, width: 1.5, dash: "dash" }, hoverinfo: "skip" },
      {
        type: "scatter", mode: "markers", x: best.map((p) => p.x), y: best.map((p) => p.y), hoverinfo: "skip",
        marker: { symbol: best.map((p) => SHAPES[p.shape]), size: best.map((p) => px(p) + 8), color: t.panel, opacity: 1, line: { color: t.ink, width: 1.8 } },
      },
      {
        type: "scatter", mode: "markers+text", name: device.name, x: points.map((p) => p.x), y: points.map((p) => p.y),
        text: points.map(spaced), textposition: points.map((p) => PLACES[p.place]),
        textfont: { color: points.map((p) => (p.float || p.place !== "center" ? t.ink : t.on)), size: small ? 10 : 11 },
        hovertext: points.map((p) => p.hover), hoverinfo: "text",
        error_y: { type: "data", symmetric: false, array: points.map((p) => p.error[0]), arrayminus: points.map((p) => p.error[1]), color: faded(colour, 0.55), thickness: 1.2, width: 0 },
        marker: {
          symbol: points.map((p) => SHAPES[p.shape]), size: points.map(px), opacity: 1,
          color: points.map((p) => (p.float ? mixed(colour, t.panel, 0.22) : colour)), line: { color: colour, width: 1.5 },
        },
      },
    ];
  }

  /* ---- one band a row: name above, curve below */

  function bandNames(bands, t) {
    const names = [];
    bands.forEach((band, i) => {
      const y = bands.length - i - 0.16;
      names.push({ xref: "paper", x: 0, xanchor: "left", y, yanchor: "middle", text: band.label, showarrow: false, font: { size: 11, color: t.ink } });
      names.push({ xref: "paper", x: 1, xanchor: "right", y, yanchor: "middle", text: band.value, showarrow: false, font: { size: 11, color: t.soft } });
    });
    return names;
  }

  function banded(node, bands, t, traces, x) {
    const rules = bands.slice(1).map((_, i) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: i + 1, y1: i + 1, line: { color: t.line, width: 1 }, layer: "below" }));
    Plotly.react(node, traces, layout(t, node, {
      height: bands.length * BAND + 44, margin: { l: 4, r: 4, t: 4, b: 30 }, showlegend: false, annotations: bandNames(bands, t), shapes: rules,
      xaxis: axis(t, x), yaxis: { visible: false, range: [0, bands.length], fixedrange: true },
    }), CONFIG);
  }

  function nothing(node) {
    const note = document.createElement("p");
    note.className = "needs-js";
    note.textContent = "Nothing was measured that could be drawn here.";
    node.replaceChildren(note);
  }

  function spread(node, d, t, index) {
    const bands = d.bands;
    if (!bands.length) { nothing(node); return; }
    const colour = t.series[index % t.series.length];
    const traces = [];
    let low = 0.98, high = 1.02;
    bands.forEach((band, i) => {
      const floor = bands.length - i - 0.94, tall = 0.58;
      const step = band.x.length > 1 ? (band.x[1] - band.x[0]) / 2 : 0.002;
      const x = [band.x[0] - step], y = [floor];
      band.x.forEach((v, j) => { x.push(v - step, v + step); y.push(floor + tall * band.height[j], floor + tall * band.height[j]); });
      x.push(band.x[band.x.length - 1] + step); y.push(floor);
      low = Math.min(low, x[0], band.p10); high = Math.max(high, x[x.length - 1], band.p90);
      traces.push({ type: "scatter", mode: "lines", x, y, fill: "toself", fillcolor: faded(colour, 0.35), line: { color: colour, width: 1 }, hoverinfo: "skip" });
      traces.push({ type: "scatter", mode: "lines", x: [band.p10, band.p90], y: [floor, floor], line: { color: t.ink, width: 3 }, hoverinfo: "skip" });
      traces.push({ type: "scatter", mode: "markers", x: [1], y: [floor], marker: { color: t.ink, size: 8 }, hovertext: [band.hover], hoverinfo: "text" });
    });
    high = Math.min(high, 3); low = Math.max(low, 0.3);
    banded(node, bands, t, traces, { range: [low - (high - low) * 0.03, high + (high - low) * 0.03], ticksuffix: "×", nticks: 6 });
  }

  function course(node, d, t, index) {
    const bands = d.bands;
    if (!bands.length) { nothing(node); return; }
    const colour = t.series[index % t.series.length];
    let reach = 0.05;
    bands.forEach((band) => band.y.forEach((v) => { reach = Math.max(reach, Math.min(0.5, Math.abs(v - 1))); }));
    const traces = [];
    bands.forEach((band, i) => {
      const middle = bands.length - i - 0.64, half = 0.28;
      const x = band.y.map((_, j) => ((j + 0.5) / band.y.length) * 100);
      traces.push({ type: "scatter", mode: "lines", x: [0, 100], y: [middle, middle], line: { color: t.line, width: 1 }, hoverinfo: "skip" });
      traces.push({
        type: "scatter", mode: "lines", x, y: band.y.map((v) => middle + half * Math.max(-1, Math.min(1, (v - 1) / reach))),
        line: { color: colour, width: 1.6 }, hovertext: band.hover, hoverinfo: "text",
      });
    });
    banded(node, bands, t, traces, { range: [0, 100], ticksuffix: " %", nticks: 6 });
  }

  function draw() {
    const t = theme();
    document.querySelectorAll(".chart").forEach((node) => {
      const kind = node.dataset.chart, index = Number(node.dataset.index);
      const waiting = node.querySelector(".needs-js");
      if (waiting) { waiting.remove(); }
      if (kind === "trade_off") { if (data.trade_off) { tradeOff(node, data.trade_off, t); } else { nothing(node); } }
      if (kind === "spread") { spread(node, data.spread[index], t, index); }
      if (kind === "course") { course(node, data.course[index], t, index); }
    });
  }

  /* ---- the table */

  function sortable() {
    const table = document.getElementById("results-table"), body = table.tBodies[0];
    const heads = Array.from(table.tHead.rows[0].cells), select = document.getElementById("sort-select");
    const original = Array.from(body.rows);
    function value(row, column) {
      const text = row.cells[column].dataset.order;
      if (text === "") { return null; }
      const number = Number(text);
      return Number.isNaN(number) ? text : number;
    }
    function sort(column, direction) {
      const rows = original.slice();
      if (column >= 0) {
        rows.sort((a, b) => {
          const x = value(a, column), y = value(b, column);
          if (x === null || y === null) { return (x === null) - (y === null); } /* not measured: last, either way */
          return (x < y ? -1 : x > y ? 1 : 0) * direction;
        });
      }
      heads.forEach((h, i) => { if (i === column) { h.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending"); } else { h.removeAttribute("aria-sort"); } });
      body.append(...rows);
    }
    select.append(new Option("the report's order", "-1,1"));
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") === "ascending" ? -1 : 1));
      const title = head.querySelector(".title").textContent;
      select.append(new Option(`${title}, rising`, `${column},1`), new Option(`${title}, falling`, `${column},-1`));
    });
    select.addEventListener("change", () => sort(...select.value.split(",").map(Number)));
    select.closest(".sorter").hidden = false;
  }

  let pending = 0;
  function redraw() { cancelAnimationFrame(pending); pending = requestAnimationFrame(draw); }

  sortable();
  draw();
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; redraw(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("print").addEventListener("change", draw);
  window.addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach((d) => { d.open = true; d.dataset.printed = "1"; }));
  window.addEventListener("afterprint", () => document.querySelectorAll("details[data-printed]").forEach((d) => { d.open = false; delete d.dataset.printed; }));
})();
