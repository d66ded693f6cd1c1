// The numbers and charts of an evaluation.
"use strict";

const EXPLAINED = {
  class: "right place, wrong class", localisation: "right class, IoU .1 to .5", both: "wrong class and poor place",
  duplicate: "the object has a better detection already", background: "IoU below .1 with every object",
  missed: "objects that nothing found, nor nearly found",
};

// The chosen class (-1: all) over all others in grey.
function curves(index) {
  const chosen = index < 0 ? DATA.overall : DATA.classes[index];
  const points = ys => ys.map((y, i) => [i / (ys.length - 1), y]);
  const lines = key => [...DATA.classes.map(c => ({name: c.name, points: points(c[key]), pale: true})),
    {name: chosen.name, points: points(chosen[key])}];
  const best = chosen.threshold >= 0 ? `, greatest at ${chosen.threshold.toFixed(3)}` : "";
  put("curves", chart("Precision (up) by recall at IoU .5", lines("precision"), [0, 1], [0, 1]),
    chart(`F1 by score${best}`, lines("f1"), [0, 1], [0, 1], chosen.threshold));
}

function classTable() {
  const value = v => [number(v), v];
  put("classes", table([["class", true], ["AP"], ["AP50"], ["small"], ["medium"], ["large"], ["objects"], ["detections"],
    ["best score"], ["F1 there"]], DATA.classes.map(c => [c.name, value(c.ap), value(c.ap50), value(c.small), value(c.medium),
    value(c.large), c.objects, c.detections, value(c.threshold), value(c.best_f1)])));
}

function costTable() {
  const top = Math.max(1e-9, ...DATA.costs.map(c => c.ap50));
  const bar = c => make("span", {className: "bar", style: `width:${(120 * c.ap50 / top).toFixed(0)}px`});
  put("costs", table([["error", true], ["count"], ["AP50 lost"], ["", true], ["what it is", true]],
    DATA.costs.map(c => [c.kind, c.count, [c.ap50.toFixed(3), c.ap50], [bar(c), c.ap50], EXPLAINED[c.kind]])));
}

function reliability() {
  const {svg, x, y} = frame([0, 1], [0, 1], "share that is right by score"), {bins, error} = DATA.calibration;
  for (const b of bins) {
    const bar = draw("rect", {class: "column", x: x(b.low) + 2, width: x(b.high) - x(b.low) - 4, y: y(b.precision), height: y(0) - y(b.precision)});
    bar.append(draw("title", {}, `${b.count} detections, mean score ${b.score.toFixed(3)}, ${b.precision.toFixed(3)} right`));
    svg.append(bar, draw("text", {x: (x(b.low) + x(b.high)) / 2, y: y(b.precision) - 3, "text-anchor": "middle"}, b.count));
  }
  svg.append(draw("line", {class: "mark", x1: x(0), x2: x(1), y1: y(0), y2: y(1)}));
  put("calibration", make("figure", {}, make("figcaption", {}, `Share that is right (up) by score, above it the number of ` +
    `detections. On the dashed line a score is a probability. Mean distance ${number(error)}`), svg));
}

// Rows are objects, columns detections; each row is shaded by its own sum.
function matrix() {
  const names = [...DATA.names, "background"], counts = DATA.confusion;
  const cell = (count, i, j) => make("td", {title: `${names[i]} detected as ${names[j]}: ${count}`, style: `background:` +
    `rgba(${i === j ? "26,143,76" : "224,48,30"},${(.75 * count / Math.max(1, ...counts[i])).toFixed(2)})`}, count || "");
  const head = make("tr", {}, make("th", {}, "object \\ detection"), ...names.map(name => make("th", {}, name)));
  const rows = counts.map((row, i) => make("tr", {}, make("th", {}, names[i]), ...row.map((count, j) => cell(count, i, j))));
  const pairs = counts.flatMap((row, i) => row.map((count, j) => [names[i], names[j], count, i, j]))
    .filter(([, , count, i, j]) => i !== j && count && i < DATA.names.length && j < DATA.names.length)
    .sort((a, b) => b[2] - a[2]).slice(0, 15).map(pair => pair.slice(0, 3));
  const whole = make("details", {open: names.length <= 21}, make("summary", {}, "the whole matrix"),
    make("div", {className: "scroll"}, make("table", {className: "matrix"}, make("tbody", {}, head, ...rows))));
  put("confusion", ...(pairs.length ? [table([["object", true], ["taken for", true], ["times"]], pairs)] : []), whole);
}

function training() {
  if (!DATA.training) return;
  const plot = (title, series) => {
    const points = Object.values(series).flat();
    if (points.length < 2) return [];
    const [xs, ys] = [points.map(p => p[0]), points.map(p => p[1])];
    return [chart(title, Object.entries(series).map(([name, line]) => ({name, points: line})),
      [Math.min(...xs), Math.max(...xs)], [0, Math.max(...ys)])];
  };
  const figures = [...plot("Losses by step", DATA.training.losses), ...plot("AP of the validation images by step", DATA.training.scores)];
  document.getElementById("training-section").hidden = !figures.length;
  put("training", ...figures);
}

function report() {
  put("numbers", ...DATA.numbers.map(([name, value]) => make("div", {}, name, make("b", {}, number(value)))));
  const choose = make("select", {id: "curve-class"}, make("option", {value: -1}, "all classes"),
    ...DATA.classes.map((c, i) => make("option", {value: i}, c.name)));
  choose.onchange = () => curves(+choose.value);
  put("curve-choice", choose);
  for (const part of [() => curves(-1), classTable, costTable, reliability, matrix, training]) part();
}

report();
