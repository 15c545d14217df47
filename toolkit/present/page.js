"use strict";
// `data` is what page.py gives; rows are named by their position, in `cells` and in `panels`, too.
const data = JSON.parse(document.getElementById("data").textContent);
const {rows, cells, columns, panels, answers} = data;
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
// A colour as this scheme has it: light-dark() is resolved on elements only.
const css = name => {
  document.body.style.outlineColor = `var(${name})`;
  return getComputedStyle(document.body).outlineColor;
};
const isWide = () => document.documentElement.clientWidth > 600;
const facets = data.facets.map(facet => ({...facet, off: new Set()}));
let sorted = {name: null, down: true}, chosen = null, library = null;

// ---- what comes first
function drawAnswers() {
  byId("answers").replaceChildren();
  for (const {panel, lead, name, facts, row} of answers) {
    if (panel !== null && panel !== Number(byId("panel").value)) continue;
    const card = make(byId("answers"), "div", {class: "answer"});
    make(card, "p", {class: "lead"}, lead);
    make(card, "p", {class: "name"}, name);
    make(card, "p", {}, facts);
    drawCommand(card, row);
  }
}
function drawCommand(parent, i) {
  if (!rows[i].command) return;
  const line = make(parent, "div", {class: "command"});
  make(line, "code", {}, rows[i].command);
  if (!navigator.clipboard) return;
  const button = make(line, "button", {type: "button"}, "copy");
  button.addEventListener("click", () => navigator.clipboard.writeText(rows[i].command).then(() => { button.textContent = "copied"; }));
}

// ---- which rows
function visible() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [...rows.keys()].filter(i => {
    const text = data.told[i].join(" ").toLowerCase();
    return words.every(word => text.includes(word)) && facets.every(({values, off}) => !off.has(values[i]));
  });
  if (sorted.name) found.sort((i, j) => {
    const [u, v] = [rows[i][sorted.name] ?? null, rows[j][sorted.name] ?? null];
    if (u === v) return i - j;
    if (u === null) return 1;   // the unknown comes last, either way
    if (v === null) return -1;
    return (u < v ? -1 : 1) * (sorted.down ? -1 : 1);
  });
  return found;
}
for (const facet of facets) {
  const box = make(byId("facets"), "details", {class: "facet"});
  make(box, "summary", {}, facet.name);
  const list = make(box, "div");
  for (const option of facet.options) {
    const label = make(list, "label");
    const tick = make(label, "input", {type: "checkbox", name: facet.name, value: option});
    label.append(option);
    tick.checked = true;
    tick.addEventListener("change", () => { facet.off[tick.checked ? "delete" : "add"](option); draw(); });
  }
  facet.box = box;
}
const closeFacets = event => facets.forEach(({box}) => { if (!box.contains(event.target)) box.open = false; });
document.addEventListener("click", closeFacets);
document.addEventListener("keydown", event => { if (event.key === "Escape") facets.forEach(({box}) => { box.open = false; }); });
byId("reset").addEventListener("click", () => {
  byId("filter").value = "";
  for (const {off, box} of facets) {
    off.clear();
    box.querySelectorAll("input").forEach(tick => { tick.checked = true; });
  }
  draw();
});

// ---- table
const headings = make(byId("table").tHead, "tr");
for (const {name, text, priority} of columns) {
  const heading = make(headings, "th", {"aria-sort": "none", "data-priority": priority});
  make(heading, "button", {type: "button"}, text).addEventListener("click", () => {
    sorted = {name, down: sorted.name === name ? !sorted.down : true};
    [...headings.children].forEach(th => th.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    draw();
  });
}
function drawTable(found) {
  const body = byId("table").tBodies[0];
  body.replaceChildren();
  for (const i of found) {
    const line = make(body, "tr", {class: (rows[i].pareto ? "front " : "") + (i === chosen ? "on" : "")});
    cells[i].forEach((text, column) => {
      if (column) make(line, "td", {}, text);
      else make(make(line, "td"), "button", {type: "button", title: text}, text);
    });
    line.addEventListener("click", () => choose(i));
  }
  const some = found.length < rows.length;
  byId("count").textContent = `${found.length} of ${rows.length} rows`;
  byId("reset").hidden = !some;
  facets.forEach(({off, name, options, box}) => {
    box.classList.toggle("on", off.size > 0);
    box.firstChild.textContent = off.size ? `${name}: ${options.length - off.size} of ${options.length}` : name;
  });
}
// Of each table, drops the columns that matter least until it is no wider than its place.
function fit() {
  let rules = "";
  for (const place of document.querySelectorAll(".fit")) {
    const table = place.firstElementChild, all = [...table.querySelectorAll("th")];
    const order = [...all.keys()].sort((i, j) => all[j].dataset.priority - all[i].dataset.priority);
    byId("fit").textContent = rules;
    for (const column of order.slice(0, -3)) {
      if (table.offsetWidth <= place.clientWidth) break;
      rules += `#${place.parentElement.id} .fit :is(th, td):nth-child(${column + 1}) { display: none }\n`;
      byId("fit").textContent = rules;
    }
  }
}
function drawChanges() {
  const {header, cells} = data.changes;
  byId("changes").hidden = false;
  byId("summary").textContent = data.summary;
  const table = document.querySelector("#changes table"), heading = make(make(table, "thead"), "tr");
  const first = ["run", "times as fast", "speed", "change", "score", "texts/s", "score %"];
  header.forEach((text, i) => make(heading, "th", {"data-priority": first.includes(text) ? first.indexOf(text) : 9 + i}, text));
  const body = make(table, "tbody");
  for (const line of cells) {
    const tr = make(body, "tr");
    line.forEach((text, i) => make(tr, "td", ["speed", "score"].includes(header[i]) && ["better", "worse"].includes(text) ? {class: text} : {}, text));
  }
}

// ---- chart
const LOG = {type: "log", dtick: "D2", tickformat: "~g"};   // ticks at 1, 2, 5, 10, …, written out
const LABEL = 12 / 8.5;   // pixels of a label's font per typographic point of that in pareto.png
const SHARES = ["encoder_sparsity", "model_sparsity", "recovery"];
const wrap = text => (text.match(/.{1,70}(?=\s|$)|\S{1,70}/g) ?? []).map(line => line.trim());
const told = i => [
  ...data.known.flatMap((name, j) => data.told[i][j] && name !== "folder" ? [`${data.facts.find(fact => fact[1] === name)?.[0] ?? name}: ${data.told[i][j]}`] : []),
  ...wrap(rows[i].command ?? ""),
].map(plain).join("<br>");
const layout = {
  paper_bgcolor: "#0000", plot_bgcolor: "#0000", margin: {l: 20, r: 20, t: 10, b: 20}, hovermode: "closest",
};
const themed = () => ({
  ...layout, font: {color: css("--ink"), family: "system-ui, sans-serif", size: isWide() ? 13 : 11},
  hoverlabel: {align: "left", bgcolor: css("--paper"), bordercolor: css("--line"), font: {color: css("--ink")}},
});
const axisOf = () => ({gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true});
const title = name => ({text: plain(name)});
// Colours are depths and shapes are engines, so two short lists say what each curve is.
const SHAPES = {
  "circle": "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0", "square": "M-4.5,-4.5h9v9h-9z", "diamond": "M0,-6 6,0 0,6 -6,0z",
  "triangle-up": "M0,-5.5 5.5,4.5 -5.5,4.5z", "triangle-down": "M0,5.5 5.5,-4.5 -5.5,-4.5z", "x": "M-4,-4 4,4M4,-4 -4,4",
  "pentagon": "M0,-5.5 5.2,-1.7 3.2,4.5 -3.2,4.5 -5.2,-1.7z", "star": "M0,-7 1.8,-2.2 6.7,-2.2 2.8,.8 4.1,5.7 0,2.9 -4.1,5.7 -2.8,.8 -6.7,-2.2 -1.8,-2.2z",
};
function symbol(parent, width, marks) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of Object.entries({width, height: 16, viewBox: `${-width / 2} -8 ${width} 16`, "aria-hidden": true})) svg.setAttribute(name, value);
  for (const attributes of marks) {
    const path = document.createElementNS(svg.namespaceURI, "path");
    for (const [name, value] of Object.entries(attributes)) path.setAttribute(name, value);
    svg.append(path);
  }
  parent.append(svg);
}
function drawLegend(curves, hasFront, hasBaseline) {
  const legend = byId("legend");
  legend.replaceChildren();
  const entry = (text, width, ...marks) => {
    const span = make(legend, "span");
    symbol(span, width, marks);
    span.append(text);
  };
  for (const [depth, colour] of new Map(curves.map(({depth, colour}) => [depth, colour])))
    entry(depth, 14, {d: "M-6,-5h12v10h-12z", fill: colour});
  for (const [style, {marker, fill, dash, is_faint}] of new Map(curves.map(curve => [curve.style, curve]))) {
    const ink = css("--ink"), shape = {d: SHAPES[marker], stroke: ink, "stroke-width": 1.8};
    entry(style, 38, {d: "M-18,0h36", stroke: ink, "stroke-width": 2, "stroke-dasharray": dash.join(" "), opacity: is_faint ? 0.4 : 1},
      {...shape, fill: fill === "full" ? ink : css("--paper"), opacity: is_faint ? 0.4 : 1}, ...(fill === "half" ? [{d: "M-1.5,0a1.5,1.5 0 1,0 3,0a1.5,1.5 0 1,0 -3,0", fill: ink}] : []));
  }
  if (hasFront) entry("Pareto front", 30, {d: "M-14,0h28", stroke: css("--front"), "stroke-width": 9});
  if (hasBaseline) entry("baseline", 20, {d: SHAPES.star, fill: "gold", stroke: css("--ink")});
}
function drawChart(found) {
  const panel = panels[byId("panel").value], x = byId("x").value, y = byId("y").value;
  const shown = new Set(found), isUsual = x === "items_per_s" && y === "score";
  const points = (all, height = y) => {
    const at = all.filter(i => shown.has(i) && typeof rows[i][x] === "number" && typeof rows[i][height] === "number");
    return {x: at.map(i => rows[i][x]), y: at.map(i => rows[i][height]), customdata: at, hoverinfo: "text", hovertext: at.map(told)};
  };
  const outline = (all, usual, colour = css("--ink")) =>
    ({color: all.map(i => i === chosen ? css("--ink") : colour), width: all.map(i => i === chosen ? 3 : usual)});
  const marker = ({colour, marker, fill}, at) => fill === "full"
    ? {color: colour, symbol: marker, size: 11, line: outline(at, 0)}
    : {color: css("--paper"), symbol: marker + (fill === "half" ? "-dot" : ""), size: 10, line: outline(at, 2, colour)};
  const traces = panel.curves.filter(curve => curve.y === "score" || y === "score").map(curve => {
    const drawn = points(curve.rows, curve.y === "score" ? y : curve.y);
    return {
      ...drawn, name: plain(`${curve.depth}, ${curve.style}`), mode: "lines+markers", opacity: curve.is_faint ? 0.4 : 1,
      line: {color: curve.colour, width: 2, dash: curve.dash.map(length => `${2 * length}px`).join(" ") || "solid"},
      marker: marker(curve, drawn.customdata), curve,
    };
  }).filter(trace => trace.x.length);
  const legend = traces.map(trace => trace.curve);
  const front = points(panel.front), star = panel.baseline === null ? [] : [panel.baseline];
  const baseline = points(star, y === "score" && star.every(i => rows[i].score === null) ? "published" : y);
  if (isUsual && front.x.length) traces.unshift({
    ...front, name: "Pareto front", mode: "lines", hoverinfo: "skip",
    line: {color: css("--front"), width: 9, shape: "vh"},
  });
  if (baseline.x.length) traces.push({
    ...baseline, name: "baseline", mode: "markers",
    marker: {color: "gold", symbol: "star", size: 19, line: outline(baseline.customdata, 1)},
  });
  drawLegend(legend, isUsual && front.x.length > 0, baseline.x.length > 0);
  const isLog = byId("log").checked && traces.every(trace => trace.x.every(value => value > 0));
  const heights = {score: panel.metric ? `${panel.metric}, %` : "score, %"};
  const kind = name => SHARES.includes(name) ? {tickformat: ".0%"} : {};
  // only as many labels as have room, and zooming would take the finger's scrolling
  const labels = isUsual && isWide() ? panel.labels.filter(label => shown.has(label.row)) : [];
  Plotly.react("chart", traces, {
    ...themed(),
    xaxis: {...axisOf(), ...kind(x), title: title(data.axes[x] + (isLog ? " (log)" : "")), ...(isLog ? LOG : {type: "linear"})},
    yaxis: {...axisOf(), ...kind(y), title: title(heights[y] ?? data.axes[y])},
    annotations: labels.map(({row, y: height, text, dx, dy, has_leader}) => ({
      x: isLog ? Math.log10(rows[row][x]) : rows[row][x], y: rows[row][height], text: plain(text), captureevents: false,
      ax: LABEL * dx, ay: -LABEL * dy, arrowhead: 0, arrowwidth: 1, arrowcolor: has_leader ? css("--soft") : "#0000",
      standoff: 5, borderpad: 0, font: {size: 12},
    })),
    dragmode: isWide() && "zoom",
    showlegend: false,
    uirevision: [panel.title, x, y, isLog].join(),   // what was zoomed stays so
  }, {responsive: true, displayModeBar: false});
}

// ---- one run
function drawRun() {
  byId("run").hidden = chosen === null;
  if (chosen === null) return;
  const row = rows[chosen], {layers, profile, roofline} = data.details[chosen];
  byId("named").textContent = row.engine ? `${row.run} through ${row.engine}` : row.run;
  byId("facts").replaceChildren();
  data.known.forEach((name, j) => {
    const fact = data.facts.find(fact => fact[1] === name);
    if (!fact || !data.told[chosen][j]) return;
    const item = make(byId("facts"), "div");
    make(item, "dt", {}, fact[0]);
    make(item, "dd", {}, data.told[chosen][j]);
  });
  const item = make(byId("facts"), "div", {class: "long"});
  make(item, "dt", {}, "folder");
  make(item, "dd", {}, row.folder);
  byId("command").replaceChildren();
  if (!answers.some(({row, panel}) => row === chosen && (panel === null || panel === Number(byId("panel").value)))) drawCommand(byId("command"), chosen);
  byId("layers").hidden = !layers;
  if (layers) drawLayers(layers);
  byId("operations").hidden = !profile;
  if (profile) drawOperations(profile);
  byId("roofs").hidden = !roofline;
  if (roofline && library) drawRoofline(roofline);
}
function drawLayers({parts, zeros}) {
  const table = document.querySelector("#layers table");
  table.replaceChildren();
  const heading = make(make(table, "thead"), "tr"), body = make(table, "tbody");
  ["layer", ...parts].forEach(part => make(heading, "th", {}, part));
  for (const {layer, values} of zeros) {
    const line = make(body, "tr");
    make(line, "td", {}, layer);
    for (const value of values) {
      const cell = make(line, "td", {}, value === null ? "" : (100 * value).toFixed(value > 0.995 && value < 1 ? 1 : 0));
      if (value !== null) cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(60 * value)}%, var(--tint))`;
    }
  }
}
function drawOperations(profile) {
  const table = document.querySelector("#operations table");
  table.replaceChildren();
  const heading = make(make(table, "thead"), "tr"), body = make(table, "tbody");
  ["operation", "share of the time", "ms", "GFLOP/s", "of peak"].forEach(text => make(heading, "th", {}, text));
  for (const {op, share, time_ms, gflops, peak_share, kernels, notes} of profile) {
    const line = make(body, "tr", {title: [kernels, notes].filter(Boolean).join("\n")});
    make(line, "td", {}, op);
    make(make(make(line, "td"), "span", {class: "meter"}), "i").style.width = `${100 * share}%`;
    make(line, "td", {}, time_ms.toFixed(time_ms < 10 ? 2 : 1));
    make(line, "td", {}, gflops === null ? "" : gflops.toFixed(1));
    make(line, "td", {}, peak_share === null ? "" : `${(100 * peak_share).toFixed(0)} %`);
  }
}
function drawRoofline({lines, points, x_range, y_range}) {
  const traces = lines.map(({name, x, y, dash}) => ({
    x, y, name: plain(name), mode: "lines", hoverinfo: "name", line: {color: css("--soft"), width: 1.5, dash},
  }));
  traces.push({
    x: points.map(point => point.x), y: points.map(point => point.y), mode: "markers", showlegend: false, hoverinfo: "text",
    hovertext: points.map(({op, kernel, share, time_ms}) => [`${op}: ${(100 * share).toFixed(0)} % of the peak`, kernel, `${time_ms.toPrecision(3)} ms`].map(plain).join("<br>")),
    marker: {size: 9, color: points.map(point => point.colour), symbol: points.map(point => point.symbol)},
  });
  const log = range => ({...axisOf(), type: "log", range: range.map(Math.log10), tickformat: "~g"});
  Plotly.react("roofline", traces, {
    ...themed(),
    xaxis: {...log(x_range), dtick: isWide() ? "D2" : 1, title: title("operations per byte")},
    yaxis: {...log(y_range), dtick: y_range[1] < 100 * y_range[0] ? "D2" : 1, title: title("useful GFLOP/s, all threads")},
    annotations: isWide() ? points.map(({op, label_x, label_y, is_left}) => ({
      x: Math.log10(label_x), y: Math.log10(label_y), text: plain(op), showarrow: false, font: {size: 11},
      xanchor: is_left ? "right" : "left", yanchor: "middle", captureevents: false,
    })) : [],
    dragmode: false,
    showlegend: true, legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom", itemclick: false, itemdoubleclick: false},
  }, {responsive: true, displayModeBar: false});
}

// ---- all of it
function drawPanels(found) {
  const used = new Set(found.map(i => data.panel_of[i]).filter(panel => panel !== null));
  [...byId("panel").options].forEach(option => { option.hidden = used.size > 0 && !used.has(Number(option.value)); });
  if (used.size && !used.has(Number(byId("panel").value))) byId("panel").value = Math.min(...used);
}
function draw() {
  const found = visible();
  drawPanels(found);
  drawAnswers();
  drawTable(found);
  if (panels.length && library) drawChart(found);
  drawRun();
  fit();
}
function choose(i) {
  chosen = chosen === i ? null : i;
  draw();
}
const takeAnswer = () => {
  const found = answers.find(({panel}) => panel === null || panel === Number(byId("panel").value));
  chosen = found ? found.row : null;
};
const option = (select, value, text) => make(byId(select), "option", {value}, text);
panels.forEach((panel, i) => option("panel", i, panel.title));
for (const [name, text] of Object.entries(data.axes)) ["x", "y"].forEach(select => option(select, name, text));
function setAxes() {
  const panel = panels[byId("panel").value];
  byId("x").value = "items_per_s";
  byId("y").value = panel.metric ? "score" : "encoder_sparsity" in data.axes ? "encoder_sparsity" : "latency_p50_ms";
  byId("log").checked = panel.is_log;
}
byId("panel").addEventListener("change", () => { setAxes(); takeAnswer(); draw(); });
["x", "y", "log"].forEach(id => byId(id).addEventListener("change", draw));
byId("filter").addEventListener("input", draw);
byId("scheme").addEventListener("click", () => {
  const now = document.documentElement.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.style.colorScheme = now === "dark" ? "light" : "dark";
  draw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let width = document.documentElement.clientWidth;
addEventListener("resize", () => {
  if (width === (width = document.documentElement.clientWidth)) return;   // a phone's bars come and go
  draw();
});
byId("about").textContent = data.about;
byId("same").textContent = data.same.length ? `The same in all: ${data.same.join(", ")}. ★ Pareto front; a heading sorts, a row or a point shows more.` : "★ Pareto front; a heading sorts, a row or a point shows more.";
byId("results").hidden = byId("filters").hidden = !rows.length;   // nothing but grids
byId("plot").hidden = byId("panels").hidden = !panels.length;
if (data.changes) drawChanges();
data.notes.forEach(note => make(byId("notes"), "p", {}, note));
if (typeof answers[0]?.panel === "number") byId("panel").value = answers[0].panel;   // where what was asked for stands
if (panels.length) setAxes();
takeAnswer();
draw();

// ---- plotly, once it is unpacked; the policy knows its hash
async function unpack() {
  const bytes = Uint8Array.from(atob(byId("library").textContent), sign => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  library = Plotly;
  draw();
  if (panels.length) byId("chart").on("plotly_click", event => choose(event.points[0].customdata));
}
const isOld = typeof DecompressionStream === "undefined";
byId("failed").hidden = !isOld;
byId("chart").hidden = isOld;
if (!isOld) unpack().finally(() => { document.body.dataset.state = "drawn"; });
