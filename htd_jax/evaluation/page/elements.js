// Elements, tables and charts. All text goes in as text, never as HTML: names come from files.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#4477aa", "#ee6677", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#994f00", "#777777"];
const DATA = JSON.parse(document.getElementById("data").textContent);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name in node ? node[name] = value : node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function draw(tag, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

function put(id, ...children) { document.getElementById(id).replaceChildren(...children); }

function number(value, digits = 3) { return value === null || value < 0 ? "–" : value.toFixed(digits); }

// A table whose head sorts it: columns are [title, is text], rows hold plain values or [shown, value to sort by].
function table(columns, rows) {
  const shown = cell => Array.isArray(cell) ? cell[0] : cell, value = cell => Array.isArray(cell) ? cell[1] : cell;
  const body = make("tbody"), heads = columns.map(([title, text]) => make("th", {className: text ? "text sorts" : "sorts"}, title));
  const fill = order => body.replaceChildren(...order.map(row => make("tr", {}, ...row.map((cell, k) =>
    make("td", {className: columns[k][1] ? "text" : ""}, shown(cell))))));
  heads.forEach((head, k) => {
    head.onclick = () => {
      const up = head.classList.toggle("up") === Boolean(columns[k][1]) ? 1 : -1;
      const less = (a, b) => columns[k][1] ? String(value(a[k])).localeCompare(value(b[k])) : value(a[k]) - value(b[k]);
      fill([...rows].sort((a, b) => up * less(a, b)));
    };
  });
  fill(rows);
  return make("div", {className: "scroll"}, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body));
}

const WIDTH = 360, HEIGHT = 230, LEFT = 38, BOTTOM = 26, TOP = 10;

// A frame with axes, and the functions that place a value in it.
function frame([x0, x1], [y0, y1], title) {
  const svg = draw("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title});
  const x = v => LEFT + (v - x0) / (x1 - x0 || 1) * (WIDTH - LEFT - 10);
  const y = v => HEIGHT - BOTTOM - (v - y0) / (y1 - y0 || 1) * (HEIGHT - BOTTOM - TOP);
  const label = v => Math.abs(v) >= 1000 ? `${+(v / 1000).toPrecision(3)}k` : String(+v.toPrecision(3));
  for (let i = 0; i <= 4; i++) {
    const [h, v] = [x0 + (x1 - x0) * i / 4, y0 + (y1 - y0) * i / 4];
    svg.append(draw("line", {class: "axis", x1: LEFT, x2: WIDTH - 10, y1: y(v), y2: y(v)}),
      draw("text", {x: LEFT - 4, y: y(v) + 4, "text-anchor": "end"}, label(v)),
      draw("text", {x: x(h), y: HEIGHT - 10, "text-anchor": "middle"}, label(h)));
  }
  return {svg, x, y};
}

// Lines: {name, points: [[x, y], ...], pale}; `mark` is an x where a dashed line stands.
function chart(title, lines, xs, ys, mark = -1) {
  const {svg, x, y} = frame(xs, ys, title), legend = make("div", {className: "legend"});
  let coloured = 0;
  for (const line of lines) {
    const colour = line.pale ? null : COLOURS[coloured++ % COLOURS.length];
    const style = line.pale ? {class: "pale"} : {class: "series", stroke: colour};
    const path = draw("path", {d: line.points.map(([a, b], k) => `${k ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join(""), ...style});
    path.append(draw("title", {}, line.name));
    svg.append(path);
    if (colour) legend.append(make("span", {}, make("i", {style: `border-color:${colour}`}), line.name));
  }
  if (mark >= 0) svg.append(draw("line", {class: "mark", x1: x(mark), x2: x(mark), y1: TOP, y2: HEIGHT - BOTTOM}));
  return make("figure", {}, make("figcaption", {}, title), svg, legend);
}
