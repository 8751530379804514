"use strict";
(() => {
  document.getElementById("no-script").remove();
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const elements = [...document.querySelectorAll("[data-chart]")];
  const dashes = ["solid", "6px,4px", "2px,3px"];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // Plotly reads a part of HTML in its texts.
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function trace(line, figure) {
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
      hovertemplate: `%{y:${figure.digits}}`,
    };
  }

  function layout(figure) {
    const end = Math.max(...figure.lines.map((line) => line.x.at(-1)));
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
      hovermode: figure.lines.length > 12 ? "closest" : "x unified",
      hoverlabel: { bgcolor: card, bordercolor: quiet, font: { color: ink }, namelength: -1 },
      dragmode: axis.fixedrange ? false : "zoom",
      xaxis: {
        ...axis, title: { text: figure.time, font: { color: quiet }, standoff: 6 },
        range: [0, end], ...(end <= 10 && { dtick: 1 }),
        unifiedhovertitle: { text: `${figure.time} %{x:.4~g}` },
      },
      yaxis: {
        ...axis, type: figure.logarithmic ? "log" : "linear", exponentformat: "power", nticks: 7,
        ...(figure.logarithmic && { dtick: 1 }),
        ...(figure.limits && { range: figure.limits }),
      },
      shapes: figure.level === null ? [] : [{
        type: "line", xref: "paper", x0: 0, x1: 1, y0: figure.level, y1: figure.level, layer: "below",
        line: { color: quiet, width: 1, dash: "dot" },
      }],
    };
  }

  function draw(element) {
    const figure = figures[element.dataset.chart];
    const traces = figure.lines.map((line) => trace(line, figure));
    Plotly.react(element.querySelector(".plot"), traces, layout(figure), { displayModeBar: false, responsive: true });
  }

  for (const element of elements) {
    element.querySelectorAll(".keys button").forEach((button, k) => {
      button.addEventListener("click", () => {
        const line = figures[element.dataset.chart].lines[k];
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
