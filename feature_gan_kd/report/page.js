"use strict";
(() => {
  document.getElementById("no-script").remove();
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const elements = [...document.querySelectorAll("[data-chart]")];
  const dashes = ["solid", "6px,4px", "2px,3px"];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // Plotly interprets some HTML in its texts.
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function trace(line, chart) {
    const own = color(line.color === "ink" ? "ink" : `c${line.color}`);
    const last = line.x.length - 1;
    const single = last === 0 && line.best === null;
    const size = line.x.map((_, i) => (single ? 6 : line.best === null ? 0 : i === line.best ? 10 : i === last ? 7 : 0));
    const symbol = line.x.map((_, i) => (i !== line.best ? "circle" : i === last ? "circle-open-dot" : "circle-open"));
    return {
      x: line.x,
      y: line.y,
      name: escaped(line.name),
      visible: line.hidden !== true,
      mode: size.some((one) => one > 0) ? "lines+markers" : "lines",
      line: { color: own, width: 2, dash: dashes[line.dashes % 3], shape: line.steps ? "hv" : "linear" },
      marker: { color: own, size, symbol, line: { width: 2, color: own }, opacity: 1 },
      cliponaxis: false,
      hovertemplate: `%{y:${chart.digits}}`,
    };
  }

  function layout(chart) {
    const end = Math.max(...chart.lines.map((line) => line.x.at(-1)));
    // With ticks at powers of ten alone, an axis of less than two decades would have one label or none.
    const values = chart.lines.flatMap((line) => line.y);
    const decades = chart.logarithmic ? Math.log10(Math.max(...values) / Math.min(...values)) : 0;
    const ink = color("ink"), quiet = color("quiet"), rule = color("rule"), card = color("card");
    const axis = {
      gridcolor: rule, linecolor: rule, zeroline: false, automargin: true,
      tickfont: { color: quiet }, fixedrange: !matchMedia("(pointer: fine)").matches,
    };
    return {
      uirevision: "kept",
      autosize: true,
      margin: { l: 36, r: 12, t: 10, b: 40 },
      paper_bgcolor: card,
      plot_bgcolor: card,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      showlegend: false,
      hovermode: chart.lines.length > 12 ? "closest" : "x unified",
      hoverlabel: { bgcolor: card, bordercolor: quiet, font: { color: ink }, namelength: -1 },
      dragmode: axis.fixedrange ? false : "zoom",
      xaxis: {
        ...axis, title: { text: chart.time, font: { color: quiet }, standoff: 6 },
        range: [0, end], ...(end <= 10 && { dtick: 1 }),
        unifiedhovertitle: { text: `${chart.time} %{x:.4~g}` },
      },
      yaxis: {
        ...axis, type: chart.logarithmic ? "log" : "linear", exponentformat: "power", nticks: chart.logarithmic ? 4 : 7,
        ...(decades >= 2 && { dtick: 1 }),
        ...(chart.limits && { range: chart.limits }),
      },
      shapes: chart.level === null ? [] : [{
        type: "line", xref: "paper", x0: 0, x1: 1, y0: chart.level, y1: chart.level, layer: "below",
        line: { color: quiet, width: 1, dash: "dot" },
      }],
    };
  }

  function draw(element) {
    const chart = charts[element.dataset.chart];
    const traces = chart.lines.map((line) => trace(line, chart));
    Plotly.react(element.querySelector(".plot"), traces, layout(chart), { displayModeBar: false, responsive: true });
  }

  for (const element of elements) {
    element.querySelectorAll(".keys button").forEach((button, k) => {
      button.addEventListener("click", () => {
        const line = charts[element.dataset.chart].lines[k];
        line.hidden = !line.hidden;
        button.setAttribute("aria-pressed", String(!line.hidden));
        draw(element);
      });
    });
    draw(element);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => elements.forEach(draw));
  for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      document.documentElement.classList.toggle("printing", printing);
      elements.forEach((element) => {
        draw(element);
        Plotly.Plots.resize(element.querySelector(".plot"));
      });
    });
  }
})();
