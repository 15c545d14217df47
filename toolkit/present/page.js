"use strict";
// `data` is what page.py gives; rows are named by their position, in `cells` and in `panels`, too.
const data = JSON.parse(document.getElementById("data").textContent);
const {rows, cells, columns, panels} = data;
const byId = id => document.getElementById(id);
const make = (parent, tag, attributes = {}, text = "") => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;   // never markup: names come from files
  parent.append(node);
  return node;
};
// plotly reads some HTML in texts
const plain = text => text.replace(/[<>&]/g, sign => ({"<": "&lt;", ">": "&gt;", "&": "&amp;"})[sign]);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name);
let sorted = {name: null, down: true}, chosen = null;

data.notes.forEach(note => make(byId("notes"), "p", {}, note));

// ---- table
const headings = make(byId("table").tHead, "tr");
for (const [name, text] of columns) {
  const heading = make(headings, "th", {"aria-sort": "none"});
  make(heading, "button", {type: "button"}, text).addEventListener("click", () => {
    sorted = {name, down: sorted.name === name ? !sorted.down : true};
    [...headings.children].forEach(th => th.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    draw();
  });
}
function visible() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [...rows.keys()].filter(i => {
    const text = cells[i].join(" ").toLowerCase();
    return words.every(word => text.includes(word));
  });
  if (sorted.name) found.sort((i, j) => {
    const [u, v] = [rows[i][sorted.name], rows[j][sorted.name]];
    if (u === v) return i - j;
    if (u === null) return 1;   // the unknown comes last, either way
    if (v === null) return -1;
    return (u < v ? -1 : 1) * (sorted.down ? -1 : 1);
  });
  return found;
}
function drawTable(found) {
  const body = byId("table").tBodies[0];
  body.replaceChildren();
  for (const i of found) {
    const line = make(body, "tr", {class: (rows[i].pareto ? "front " : "") + (i === chosen ? "on" : "")});
    cells[i].forEach(text => make(line, "td", {}, text));
    line.addEventListener("click", () => choose(i));
  }
  byId("count").textContent = `${found.length} of ${rows.length} rows`;
}

// ---- chart
const LOG = {type: "log", dtick: "D2", tickformat: "~g"};   // ticks at 1, 2, 5, 10, …, written out
const LABEL = 12 / 8.5;   // pixels of a label's font per typographic point of that in pareto.png
function drawChart(found) {
  const panel = panels[byId("panel").value], x = byId("x").value, y = byId("y").value;
  const shown = new Set(found), isUsual = x === "items_per_s" && y === "score";
  const has = i => shown.has(i) && typeof rows[i][x] === "number" && typeof rows[i][y] === "number";
  const points = all => {
    const at = all.filter(has);
    return {
      x: at.map(i => rows[i][x]), y: at.map(i => rows[i][y]), customdata: at, hoverinfo: "text",
      hovertext: at.map(i => columns.flatMap(([, text], j) => cells[i][j] ? `${text}: ${cells[i][j]}` : []).map(plain).join("<br>")),
    };
  };
  const outline = (all, usual, colour = css("--ink")) => {
    const at = all.filter(has);
    return {color: at.map(i => i === chosen ? css("--ink") : colour), width: at.map(i => i === chosen ? 3 : usual)};
  };
  const marker = ({colour, marker, fill, rows}) => fill === "full"
    ? {color: colour, symbol: marker, size: 11, line: outline(rows, 0)}
    : {color: css("--paper"), symbol: marker + (fill === "half" ? "-dot" : ""), size: 10, line: outline(rows, 2, colour)};
  const traces = panel.curves.map(curve => ({
    ...points(curve.rows), name: plain(curve.name), mode: "lines+markers",
    line: {color: curve.colour, width: 2, dash: curve.dash.map(length => `${2 * length}px`).join(" ") || "solid"},
    marker: marker(curve),
  }));
  if (isUsual) traces.unshift({
    ...points(panel.front), name: "Pareto front", mode: "lines", hoverinfo: "skip",
    line: {color: css("--front"), width: 9, shape: "vh"},
  });
  if (panel.baseline !== null) traces.push({
    ...points([panel.baseline]), name: "baseline", mode: "markers",
    marker: {color: "gold", symbol: "star", size: 19, line: outline([panel.baseline], 1)},
  });
  const isWide = byId("chart").clientWidth > 600;   // or labels hide each other, and zooming takes the finger's scrolling
  const isLog = byId("log").checked && traces.every(trace => trace.x.every(value => value > 0));
  const axis = {gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true};
  Plotly.react("chart", traces, {
    xaxis: {...axis, title: {text: plain(x) + (isLog ? " (log)" : "")}, ...(isLog ? LOG : {type: "linear"})},
    yaxis: {...axis, title: {text: plain(y === "score" ? `${panel.metric}, %` : y)}},
    annotations: panel.labels.filter(label => isWide && has(label.row)).map(({row, text, dx, dy, has_leader}) => ({
      x: isLog ? Math.log10(rows[row][x]) : rows[row][x], y: rows[row][y], text: plain(text), captureevents: false,
      ax: LABEL * dx, ay: -LABEL * dy, arrowhead: 0, arrowwidth: 1, arrowcolor: has_leader ? css("--soft") : "#0000",
      standoff: 5, borderpad: 0, font: {size: 12},
    })),
    font: {color: css("--ink"), family: "system-ui, sans-serif", size: 13},
    paper_bgcolor: "#0000", plot_bgcolor: "#0000", margin: {l: 20, r: 20, t: 10, b: 20},
    dragmode: isWide && "zoom", hovermode: "closest", hoverlabel: {align: "left", bgcolor: css("--paper"), font: {color: css("--ink")}},
    showlegend: true, legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom", itemclick: false, itemdoubleclick: false},
    uirevision: [panel.title, x, y, isLog].join(),   // what was zoomed stays so
  }, {responsive: true, displayModeBar: false});
}
function draw() {
  const found = visible();
  drawTable(found);
  if (panels.length) drawChart(found);
}
function choose(i) { chosen = chosen === i ? null : i; draw(); }

const option = (select, value, text) => make(byId(select), "option", {value}, text);
panels.forEach((panel, i) => option("panel", i, panel.title));
for (const name of Object.keys(rows[0] ?? {}).filter(name => rows.some(row => typeof row[name] === "number")))
  ["x", "y"].forEach(select => option(select, name, name));
byId("x").value = "items_per_s";
byId("y").value = "score";
const setLog = () => { byId("log").checked = panels[byId("panel").value].is_log; };
byId("panel").addEventListener("change", setLog);
["panel", "x", "y", "log"].forEach(id => byId(id).addEventListener("change", draw));
byId("filter").addEventListener("input", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
byId("plot").hidden = !panels.length;
if (panels.length) setLog();
draw();
if (panels.length) byId("chart").on("plotly_click", event => choose(event.points[0].customdata));
