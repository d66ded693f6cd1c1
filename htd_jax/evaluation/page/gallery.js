// The images: judged at a score, filtered, sorted, and their boxes drawn over them.
"use strict";

const RIGHT = 0, IGNORED = DATA.kinds.indexOf("ignored"), MISSED = DATA.kinds.length, PAGE = 24, LABELS = 8;
const KIND_COLOURS = ["var(--right)", "#f0a000", "#e0301e", "#8a5cf0", "#3b7dd8", "#00a5a5", "#999999", "var(--missed)"];
const KIND_NAMES = [...DATA.kinds, "missed"];
const [LABEL, SCORE, KIND, TOOK, BOX] = [0, 1, 2, 3, 4];  // of a detection; of an object: label, crowd, box

// What is right and wrong in an image when detections below `score` (thousandths) are cut.
function judge(row, score) {
  const found = new Set(), errors = [];
  let right = 0;
  for (const d of row.detections) {
    if (d[SCORE] < score || d[KIND] === IGNORED) continue;
    if (d[KIND] === RIGHT) { right++; found.add(d[TOOK]); } else errors.push([d[KIND], d[LABEL]]);
  }
  const missed = row.objects.map((object, i) => !object[1] && !found.has(i));
  row.objects.forEach((object, i) => { if (missed[i]) errors.push([MISSED, object[0]]); });
  return {right, missed, errors, wrong: errors.length - missed.filter(Boolean).length};
}

const state = {score: 0, label: -1, kind: -1, order: "errors", shown: PAGE};
const matching = verdict => verdict.errors.filter(([kind, label]) =>
  (state.kind < 0 || kind === state.kind) && (state.label < 0 || label === state.label)).length;
const holds = (row, label) => row.objects.some(o => o[0] === label) ||
  row.detections.some(d => d[LABEL] === label && d[SCORE] >= state.score);

const ORDERS = {
  errors: (a, b) => b.count - a.count || a.f1 - b.f1 || a.place - b.place,
  f1: (a, b) => a.f1 - b.f1 || b.count - a.count || a.place - b.place,
  name: (a, b) => a.row.name.localeCompare(b.row.name),
};

// Rows that pass the filters, in order, with their verdicts; and the sums over all rows.
function select() {
  const total = {right: 0, wrong: 0, missed: 0}, chosen = [];
  DATA.rows.forEach((row, place) => {
    const verdict = judge(row, state.score), missed = verdict.missed.filter(Boolean).length;
    total.right += verdict.right; total.wrong += verdict.wrong; total.missed += missed;
    const count = matching(verdict), f1 = 2 * verdict.right / Math.max(1, 2 * verdict.right + verdict.wrong + missed);
    if (state.kind >= 0 ? count : state.label < 0 || holds(row, state.label)) chosen.push({row, verdict, count, f1, place, missed});
  });
  return {chosen: DATA.detects ? chosen.sort(ORDERS[state.order]) : chosen, total};
}

function rectangle(box, attributes) {
  const [x, y, width, height] = box.map(v => `${v / 10}%`);
  return draw("rect", {x, y, width, height, ...attributes});
}

function caption(box, text) {
  return draw("text", {x: `${Math.min(Math.max(box[0], 0), 900) / 10}%`, y: `${Math.max(box[1], 60) / 10}%`, dy: "-3"}, text);
}

function overlay(row, verdict) {
  const svg = draw("svg"), texts = [];
  row.objects.forEach(([label, crowd, ...box], i) => {
    const missed = DATA.detects && verdict.missed[i];
    const colour = DATA.detects ? (missed ? KIND_COLOURS[MISSED] : "#fff") : COLOURS[label % COLOURS.length];
    svg.append(rectangle(box, {class: crowd || !missed && DATA.detects ? "object" : "", stroke: colour}));
    if (missed || !DATA.detects) texts.push(caption(box, DATA.names[label] + (missed ? " missed" : crowd ? " crowd" : "")));
  });
  for (const d of [...row.detections].sort((a, b) => a[SCORE] - b[SCORE])) {
    if (d[SCORE] < state.score) continue;
    const box = d.slice(BOX);
    svg.append(rectangle(box, {stroke: KIND_COLOURS[d[KIND]]}));
    texts.push(caption(box, `${DATA.names[d[LABEL]]} ${(d[SCORE] / 1000).toFixed(2)}`));
  }
  svg.append(...texts);
  return svg;
}

function sentence({row, verdict, missed}) {
  if (!DATA.detects) return row.note ?? `${row.objects.length} boxes`;
  const counts = {};
  for (const [kind] of verdict.errors) if (kind !== MISSED) counts[KIND_NAMES[kind]] = (counts[KIND_NAMES[kind]] ?? 0) + 1;
  const wrong = Object.entries(counts).map(([kind, count]) => `${count} ${kind}`).join(", ");
  return `${verdict.right} right, ${missed} missed, ${verdict.wrong} false${wrong ? ` (${wrong})` : ""}`;
}

function card(entry) {
  const node = make("div", {className: "card"});
  if (entry.row.picture) {
    const image = make("img", {src: `data:image/jpeg;base64,${entry.row.picture}`, alt: ""});
    const boxes = overlay(entry.row, entry.verdict), picture = make("div", {className: "picture"}, image, boxes);
    if (boxes.querySelectorAll("text").length > LABELS) picture.classList.add("crowded");
    picture.onclick = () => node.classList.toggle("large");
    node.append(picture);
  }
  node.append(make("div", {className: "text"}, make("div", {className: "name"}, entry.row.name), sentence(entry)));
  return node;
}

function refresh() {
  const {chosen, total} = select(), {right, wrong, missed} = total;
  const share = (part, whole) => whole ? (part / whole).toFixed(3) : "–";
  put("cards", ...chosen.slice(0, state.shown).map(card));
  document.getElementById("more").hidden = chosen.length <= state.shown;
  put("selected", `${chosen.length} of ${DATA.rows.length} images` + (DATA.detects ? `. At this score ${right} right, ${wrong} ` +
    `false, ${missed} missed: precision ${share(right, right + wrong)}, recall ${share(right, right + missed)}, F1 ` +
    `${share(2 * right, 2 * right + wrong + missed)}` : ""));
}

let waiting = false;
function later() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; refresh(); });
}

function choice(id, options, set) {
  const node = make("select", {id}, ...options.map(([value, text]) => make("option", {value}, text)));
  node.onchange = () => { set(node.value); state.shown = PAGE; refresh(); };
  return node;
}

function slider() {
  const text = make("output", {id: "score"}, (state.score / 1000).toFixed(3));
  const input = make("input", {id: "threshold", type: "range", min: 0, max: 1000, value: state.score});
  input.oninput = () => { state.score = +input.value; text.value = (state.score / 1000).toFixed(3); later(); };
  return make("label", {}, "score ≥ ", text, " ", input);
}

function key(name, colour, line = "solid") {
  return make("span", {}, make("i", {style: `border: 2px ${line} ${colour}`}), name);
}

function gallery() {
  state.score = DATA.detects ? Math.floor(DATA.threshold * 1000 + 1e-9) : 0;
  const classes = DATA.names.map((name, i) => [i, name]);
  const controls = [choice("class", [[-1, "all classes"], ...classes], value => { state.label = +value; })];
  if (DATA.detects) {
    const kinds = KIND_NAMES.map((name, i) => [i, name]).filter(([i]) => i !== RIGHT && i !== IGNORED);
    controls.unshift(slider());
    controls.push(choice("kind", [[-1, "all errors"], ...kinds], value => { state.kind = +value; }),
      choice("order", [["errors", "most errors first"], ["f1", "lowest F1 first"], ["name", "by name"]],
        value => { state.order = value; }));
    put("legend", ...KIND_NAMES.map((name, i) => key(name, KIND_COLOURS[i])), key("object that was found, or crowd", "#888", "dashed"));
  } else {
    put("legend", ...DATA.names.slice(0, COLOURS.length).map((name, i) => key(name, COLOURS[i])));
  }
  put("controls", ...controls);
  document.getElementById("more").onclick = () => { state.shown += PAGE; refresh(); };
  refresh();
}

gallery();
