"use strict";
(() => {
  const run = JSON.parse(document.getElementById("run").textContent);
  const $ = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = () => innerWidth < 640;

  // Plotly reads a little HTML in its texts; names are not HTML.
  const text = (s) => String(s).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const cut = (s, n) => text(s.length > n ? s.slice(0, n - 1) + "…" : s);
  const words = (s) => text(s.replace(/_/g, " "));
  const clock = (s) => {
    const a = Math.round(Math.abs(s)), two = (n) => String(n).padStart(2, "0");
    return (s < 0 && a ? "-" : "") + Math.floor(a / 3600) + ":" + two(Math.floor(a / 60) % 60) + ":" + two(a % 60);
  };

  // Okabe and Ito's palette, told apart also by colour-blind readers; lightness is lifted on dark ground.
  const KINDS = {
    high_cpu: ["#b34a00", "#ff9a5a"], high_memory: ["#8e3a74", "#e79bcb"], traffic_spike: ["#0b6fa8", "#62bff0"],
    step_load: ["#00795a", "#4fd6ae"], network_latency: ["#7d6a00", "#ecd95c"], unknown: ["#5b4bb0", "#b3a6ff"],
    false_positive: ["#7a828c", "#98a2ad"],
  };
  const colour = (kind) => (KINDS[kind] || ["#a3262a", "#ff8d8d"])[dark.matches ? 1 : 0];

  const ticks = () => {
    const from = Math.min(run.first, 0), span = run.end - from;
    const step = [60, 300, 600, 900, 1800, 3600, 7200, 21600, 86400].find((s) => span / s <= (narrow() ? 4 : 10)) || 86400 * 7;
    const at = [];
    for (let t = Math.ceil(from / step) * step; t <= run.end; t += step) at.push(t);
    return at;
  };
  const layout = (more) => {
    const { xaxis, yaxis, ...rest } = more;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", dragmode: narrow() ? false : "zoom",
      font: { family: "system-ui, sans-serif", size: 12.5, color: css("--ink") },
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1.0, yanchor: "bottom", font: { size: 12 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
      margin: { l: narrow() ? 48 : 70, r: 12, t: 40, b: 40 },
      xaxis: { gridcolor: css("--line"), zeroline: false, linecolor: css("--line"), ...xaxis },
      yaxis: { gridcolor: css("--line"), zeroline: false, linecolor: css("--line"), automargin: true, ...yaxis },
      ...rest,
    };
  };
  const time = (more) => { const at = ticks(); return { tickvals: at, ticktext: at.map((t) => clock(t).slice(0, -3)), title: { text: "h:mm since the loop took charge" }, ...more }; };
  const draw = (id, traces, lay) => Plotly.react($(id), traces, lay, { responsive: true, displaylogo: false, displayModeBar: narrow() ? false : "hover", modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });

  function lanes() {
    const row = new Map(run.lanes.map((name, i) => [name, i])), traces = [];
    const push = (trace) => { if (trace.x.length) traces.push(trace); };
    const minimum = (run.end - Math.max(run.first, 0)) / 250;
    const kinds = [...new Set(run.truth.map((e) => e[1]))];
    for (const kind of kinds) {
      const x = [], y = [], info = [];
      for (const [c, k, a, b] of run.truth) if (k === kind && row.has(c)) {
        x.push(a, Math.max(b, a + minimum), null); y.push(row.get(c) - 0.3, row.get(c) - 0.3, null);
        const hint = `<b>truth: ${words(k)}</b><br>${text(c)}<br>${clock(a)} to ${clock(b)}`; info.push(hint, hint, "");
      }
      push({ x, y, text: info, mode: "lines", line: { width: 9, color: colour(kind) }, name: "truth: " + words(kind), hoverinfo: "text" });
    }
    const v = run.verdicts.filter((e) => row.has(e[0]));
    push({ x: v.map((e) => e[2]), y: v.map((e) => row.get(e[0])), mode: "markers", name: "verdict (colour: its class)", hoverinfo: "text",
      marker: { symbol: "line-ns-open", size: 5, line: { width: 2 }, color: v.map((e) => colour(e[1])) },
      text: v.map((e) => `<b>verdict: ${words(e[1])}</b><br>${text(e[0])} at ${clock(e[2])}<br>stage 1 ${e[3]}, stage 2 ${e[4]}`) });
    const bars = { x: [], y: [], text: [] }; // long enough to be seen beside the decision's diamond
    for (const [c, n, a, b, done, down] of run.actions) if (row.has(c)) {
      bars.x.push(a, Math.max(b, a + (narrow() ? 14 : 5) * minimum), null); bars.y.push(row.get(c) + 0.3, row.get(c) + 0.3, null);
      const hint = `<b>action: ${words(n)}</b> ${done ? "done" : "failed"}<br>${text(c)}<br>${clock(a)} to ${clock(b)}, downtime ${down} s`; bars.text.push(hint, hint, "");
    }
    push({ ...bars, mode: "lines", line: { width: 7, color: css("--accent") }, name: "action", hoverinfo: "text" });
    const d = run.decisions.filter((e) => row.has(e[0]));
    push({ x: d.map((e) => e[2]), y: d.map((e) => row.get(e[0]) + 0.3), mode: "markers", name: "decision", hoverinfo: "text", customdata: d.map((e) => e[3]),
      marker: { symbol: "diamond", size: 11, color: css("--card"), line: { width: 2, color: css("--ink") } },
      text: d.map((e) => `<b>decision: ${words(e[1])}</b> (${words(e[4])})<br>${text(e[0])} at ${clock(e[2])}<br>${text(e[3])}`) });
    const n = run.lanes.length;
    draw("plot-lanes", traces, layout({
      height: 150 + 38 * n + (narrow() ? 120 : 0), showlegend: true, margin: { l: 60, r: 12, t: narrow() ? 190 : 92, b: 44 },
      xaxis: time({ range: [Math.max(run.first, -0.02 * run.end), run.end * 1.01] }),
      yaxis: { tickvals: run.lanes.map((_, i) => i), ticktext: run.lanes.map((c) => cut(c, narrow() ? 13 : 28) + " "), range: [n - 0.5, -0.5], showgrid: false, fixedrange: true },
      shapes: run.lanes.slice(1).map((_, i) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: i + 0.5, y1: i + 0.5, line: { width: 1, color: css("--line") } })),
    }));
  }

  const UNITS = { bytes_per_s: ["B/s", "~s"], bytes: ["B", "~s"], utilization: ["", ".0%"], _s: ["s", "~s"], per_s: ["/s", "~s"] };
  const unit = (metric) => UNITS[Object.keys(UNITS).find((ending) => metric.endsWith(ending) && (ending !== "_s" || !metric.endsWith("per_s")))] || ["", ""];

  function metric() {
    const c = $("pick-container").value, m = $("pick-metric").value;
    const i = run.containers.indexOf(c), y = run.values[i][run.metrics.indexOf(m)];
    const x = y.map((_, k) => run.first + k * run.step), [suffix, format] = unit(m);
    const near = (t) => { const k = Math.round((t - run.first) / run.step); return y[Math.min(y.length - 1, Math.max(0, k))]; };
    const seen = y.filter((q) => q !== null), low = Math.min(0, ...seen), high = Math.max(...seen, 1e-12), top = high + 0.14 * (high - low);
    const mine = (list) => list.filter((e) => e[0] === c);
    const traces = [{ x, y, mode: "lines", name: words(m), line: { width: 1.6, color: css("--accent") }, connectgaps: false,
      text: x.map(clock), hovertemplate: `%{text}: %{y:${format === ".0%" ? ".1%" : ".4s"}}${suffix}<extra></extra>` }];
    const v = mine(run.verdicts);
    if (v.length) traces.push({ x: v.map((e) => e[2]), y: v.map((e) => near(e[2])), mode: "markers", name: "verdict", hoverinfo: "text",
      marker: { symbol: "x-thin-open", size: 9, line: { width: 2.2 }, color: v.map((e) => colour(e[1])) },
      text: v.map((e) => `<b>verdict: ${words(e[1])}</b><br>${clock(e[2])}, stage 1 ${e[3]}, stage 2 ${e[4]}`) });
    const d = mine(run.decisions), a = mine(run.actions);
    if (d.length) traces.push({ x: d.map((e) => e[2]), y: d.map(() => high + 0.07 * (high - low)), mode: "markers", name: "decision", hoverinfo: "text", customdata: d.map((e) => e[3]),
      marker: { symbol: "diamond", size: 12, color: css("--card"), line: { width: 2, color: css("--ink") } },
      text: d.map((e) => `<b>decision: ${words(e[1])}</b> (${words(e[4])})<br>${clock(e[2])}, ${text(e[3])}`) });
    if (a.length) traces.push({ x: a.map((e) => e[2]), y: a.map(() => low), mode: "markers", name: "action", hoverinfo: "text",
      marker: { symbol: "triangle-up", size: 12, color: css("--accent") },
      text: a.map((e) => `<b>action: ${words(e[1])}</b> ${e[4] ? "done" : "failed"}<br>${clock(e[2])} to ${clock(e[3])}, downtime ${e[5]} s`) });
    const shapes = [], annotations = [];
    const band = (x0, x1, fill, opacity) => shapes.push({ type: "rect", xref: "x", yref: "paper", x0, x1, y0: 0, y1: 1, fillcolor: fill, opacity, line: { width: 0 }, layer: "below" });
    if (run.first < 0) {
      band(run.first, 0, css("--soft"), 0.1);
      annotations.push({ x: run.first, y: 0.99, xref: "x", yref: "paper", text: "commissioning", showarrow: false, xanchor: "left", yanchor: "top", font: { color: css("--soft"), size: 11 } });
    }
    mine(run.truth).forEach(([, kind, from, to]) => {
      band(from, Math.max(to, from + run.step), colour(kind), 0.2);
      annotations.push({ x: (from + to) / 2, y: 1, xref: "x", yref: "paper", text: words(kind), showarrow: false, yanchor: "bottom", textangle: narrow() ? -30 : 0, font: { color: colour(kind), size: 11 } });
    });
    for (const e of d) shapes.push({ type: "line", xref: "x", yref: "paper", x0: e[2], x1: e[2], y0: 0, y1: 1, line: { width: 1, dash: "dot", color: css("--ink") } });
    draw("plot-metric", traces, layout({
      height: narrow() ? 380 : 420, showlegend: true, shapes, annotations, margin: { l: 60, r: 12, t: narrow() ? 100 : 84, b: 44 },
      legend: { orientation: "h", x: 0, y: narrow() ? 1.14 : 1.08, yanchor: "bottom" },
      xaxis: time({ range: [run.first, run.end * 1.005] }), yaxis: { tickformat: format, ticksuffix: suffix, range: [low - 0.05 * (high - low), top] },
    }));
  }

  function quota() {
    if (!run.quota.length) return;
    const q = run.quota, share = (s, b) => (b ? (100 * s) / b : 0);
    const names = q.map((e) => cut(e[0], narrow() ? 13 : 28) + " "), at = q.map((_, i) => i);
    const most = Math.max(...q.map((e) => share(e[1] + e[2], e[3])));
    const bar = (k, name, fill) => ({ type: "bar", orientation: "h", y: at, x: q.map((e) => share(e[k], e[3])), name, marker: { color: fill }, hoverinfo: "text",
      text: q.map((e) => k === 1 && e[1] ? ` ${e[1].toFixed(2)} s` : ""), textposition: "outside", cliponaxis: false, textfont: { color: css("--soft") },
      hovertext: q.map((e) => `<b>${text(e[0])}</b><br>spent ${e[1]} s, reserved ${e[2]} s<br>budget ${e[3]} s`) });
    const whole = most > 60;
    draw("plot-quota", [bar(1, "spent", css("--accent")), bar(2, "reserved", css("--warn"))], layout({
      height: 110 + 26 * q.length, barmode: "stack", bargap: 0.35, showlegend: true,
      xaxis: { range: [0, whole ? Math.max(105, most * 1.1) : Math.max(most * 1.3, 0.05)], ticksuffix: " %", title: { text: whole ? "share of the budget (line: all of it)" : "share of the budget (axis is cut)" } },
      yaxis: { tickvals: at, ticktext: names, range: [q.length - 0.5, -0.5], showgrid: false, fixedrange: true },
      shapes: whole ? [{ type: "line", x0: 100, x1: 100, yref: "paper", y0: 0, y1: 1, line: { color: css("--bad"), width: 2 } }] : [],
    }));
  }

  function nodes() {
    const k = Number($("pick-resource").value), dashes = ["solid", "dash", "dot", "dashdot"];
    const pens = [css("--accent"), ...["high_cpu", "step_load", "high_memory", "network_latency", "unknown"].map(colour)];
    const traces = run.nodes.map((e, i) => ({ x: e[1], y: e[k], name: cut(e[0], 24), mode: "lines", line: { width: 1.8, color: pens[i % pens.length], dash: dashes[Math.floor(i / pens.length) % 4] },
      text: e[1].map(clock), hovertemplate: `${text(e[0])} at %{text}: %{y:.1%}<extra></extra>` }));
    if (!traces.length) { $("plot-nodes").textContent = "This backend measures no nodes."; return; }
    draw("plot-nodes", traces, layout({ height: 320, showlegend: true, margin: { l: 60, r: 12, t: narrow() ? 80 : 50, b: 44 }, xaxis: time({}), yaxis: { tickformat: ".0%", rangemode: "tozero" } }));
  }

  const option = (select, value, label) => { const o = document.createElement("option"); o.value = value; o.textContent = label; select.append(o); };
  run.containers.forEach((c) => option($("pick-container"), c, c));
  run.metrics.forEach((m) => option($("pick-metric"), m, m.replace(/_/g, " ")));
  const pick = (container) => {
    if (!run.containers.includes(container)) return;
    $("pick-container").value = container;
    const driven = run.verdicts.find((v) => v[0] === container && run.metrics.includes(v[5]) && run.decisions.some((d) => d[0] === container && d[2] >= v[2]))
      || run.verdicts.find((v) => v[0] === container && run.metrics.includes(v[5]));
    $("pick-metric").value = driven ? driven[5] : "cpu_utilization";
  };
  pick((run.decisions.find((d) => run.containers.includes(d[0])) || run.truth[0] || run.containers)[0]);
  const notes = [];
  if (run.leftOut) notes.push(`Metrics of ${run.leftOut} containers are left out to keep this file small; those with a story are here.`);
  if (run.thinned) notes.push("Curves are thinned: the smallest and the largest value of each stretch are kept.");
  $("metrics-note").textContent = notes.join(" ");

  const open = (id) => { const card = id && document.getElementById(id); if (card && card.matches("details.decision")) { card.open = true; card.scrollIntoView({ block: "start" }); } };
  const all = () => { lanes(); if (run.containers.length) metric(); quota(); nodes(); };
  all();
  $("pick-container").addEventListener("change", metric);
  $("pick-metric").addEventListener("change", metric);
  $("pick-resource").addEventListener("change", nodes);
  for (const id of ["plot-lanes", "plot-metric"]) {
    if (!$(id).on) continue;
    $(id).on("plotly_click", (event) => {
      const point = event.points[0];
      if (point.customdata !== undefined) { open(point.customdata); return; }
      if (id === "plot-lanes") { pick(run.lanes[Math.round(point.y)]); metric(); $("metrics").scrollIntoView({ block: "start" }); }
    });
  }
  dark.addEventListener("change", all);
  let wide = narrow();
  addEventListener("resize", () => { if (narrow() !== wide) { wide = narrow(); all(); } });
  addEventListener("hashchange", () => open(decodeURIComponent(location.hash.slice(1))));
  open(decodeURIComponent(location.hash.slice(1)));
})();
