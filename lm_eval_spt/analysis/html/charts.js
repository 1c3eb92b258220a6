// The charts, each a function of what it shows; `place` is the element that it fills.
// Scores are shares of 1 in the data and percent on the page.
"use strict";

const COLORS = ["#3b8ad9", "#d9660a", "#12a07a", "#c770a3", "#8a6fd1", "#b58900", "#6b7280"]; // legible on light and dark
const SYMBOLS = ["circle", "triangle", "square", "diamond", "star", "wye", "cross"]; // told apart without colour, too
const percent = (share) => (share === null || share === undefined ? null : `${(100 * share).toFixed(1)}`);
const inPercent = (interval) => interval && interval.map(percent).join(" – ");
const signed = (share) => (share === null ? null : `${share < 0 ? "−" : "+"}${(100 * Math.abs(share)).toFixed(1)}`);

const widthOf = (place) => Math.max(place.clientWidth, 300); // 0 in a window that is not shown yet

function drawChart(place, options) {
  const chart = Plot.plot({ width: widthOf(place), marginBottom: 42, style: { fontSize: "12px", overflow: "visible" }, ...options });
  chart.setAttribute("aria-hidden", "true"); // screen readers have the label, and the tables
  place.replaceChildren(chart);
  place.role = "img";
  place.ariaLabel = place.dataset.label;
  return chart;
}

function labelsOnTheLeft(place, longest) {
  const marginLeft = Math.min(20 + 7 * longest, 240, 0.4 * widthOf(place));
  return { marginLeft, axis: Plot.axisY({ label: null, tickSize: 0, textOverflow: "ellipsis", lineWidth: (marginLeft - 8) / 13 }) };
}

// `rows` are {name, value, interval}; the interval is null where it is not known.
function drawIntervals(place, rows, label) {
  const { marginLeft, axis } = labelsOnTheLeft(place, d3.max(rows, (row) => row.name.length) ?? 0);
  const data = rows.filter((row) => row.value !== null).map(({ name, value, interval }) => (
    { name, value: 100 * value, low: 100 * (interval?.[0] ?? value), high: 100 * (interval?.[1] ?? value) }));
  drawChart(place, {
    marginLeft,
    height: 50 + 22 * rows.length,
    x: { label, grid: true, inset: 10 },
    y: { domain: rows.map((row) => row.name) },
    marks: [
      axis,
      Plot.ruleY(data, { y: "name", x1: "low", x2: "high", strokeWidth: 2, stroke: COLORS[0] }),
      Plot.dot(data, {
        y: "name", x: "value", fill: COLORS[0], r: 4,
        title: (d) => `${d.name}\n${d.value.toFixed(1)} [${d.low.toFixed(1)}, ${d.high.toFixed(1)}]`, tip: true,
      }),
    ],
  });
}

const ROW = 16; // the height of the heat map's rows

// On a canvas: 200 arms in 205 languages are 41,000 cells, too many for elements of their own.
function drawHeatMap(place, legend, arms, languages, metric, label) {
  const left = Math.min(150, 0.3 * widthOf(place));
  const flat = (widthOf(place) - left) / arms.length > 200; // names of arms have room; otherwise they lean
  const [top, right] = flat ? [24, 0] : [100, 60];
  const cell = Math.max(4, (widthOf(place) - left - right) / Math.max(arms.length, 1)); // its width
  const [width, height] = [left + cell * arms.length + right, top + ROW * languages.length];
  const scoreOf = (arm, language) => arm.scores[metric].values[language.index];
  const domain = d3.extent(arms.flatMap((arm) => languages.map((language) => scoreOf(arm, language) ?? undefined)));
  const color = d3.scaleSequential(domain, d3.interpolateViridis);
  const middle = d3.mean(domain); // viridis is dark below

  const scale = Math.min(devicePixelRatio, 2);
  const canvas = d3.create("canvas").attr("width", scale * width).attr("height", scale * height)
    .style("width", `${width}px`).style("height", `${height}px`).node();
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.font = `12px ${getComputedStyle(place).fontFamily}`;
  pen.textBaseline = "middle";
  const shorten = (text, longest) => (text.length <= longest ? text : `${text.slice(0, longest - 1)}…`);
  arms.forEach((arm, i) => languages.forEach((language, j) => {
    const score = scoreOf(arm, language);
    if (score === null) return;
    pen.fillStyle = color(score);
    pen.fillRect(left + cell * i, top + ROW * j, cell - (cell > 8 ? 1 : 0), ROW - 1);
    if (cell < 34) return; // too narrow for a number
    pen.fillStyle = score < middle ? "white" : "black";
    pen.textAlign = "center";
    pen.fillText(percent(score), left + cell * (i + 0.5), top + ROW * (j + 0.5));
  }));
  pen.fillStyle = getComputedStyle(place).color;
  pen.textAlign = "right";
  languages.forEach(({ name }, j) => pen.fillText(shorten(name, left / 7.5), left - 6, top + ROW * (j + 0.5)));
  pen.textAlign = "left";
  if (cell < 14) pen.fillText(`${arms.length} arms by rank →`, left, top - 12);
  else arms.forEach(({ name }, i) => {
    pen.save();
    pen.translate(left + cell * (i + 0.5), top - 6);
    if (!flat) pen.rotate(-Math.PI / 4);
    else pen.textAlign = "center";
    pen.fillText(shorten(name, flat ? cell / 7 : 17), 0, 0);
    pen.restore();
  });

  const tip = d3.create("div").attr("class", "tip").attr("hidden", "").node();
  const point = ({ offsetX, offsetY }) => {
    const [arm, language] = [arms[Math.floor((offsetX - left) / cell)], languages[Math.floor((offsetY - top) / ROW)]];
    tip.hidden = !arm || !language;
    if (tip.hidden) return;
    tip.textContent = `${language.name} (${language.code})\n${arm.name}\n${percent(scoreOf(arm, language)) ?? "–"}`;
    const onTheLeft = offsetX > place.scrollLeft + place.clientWidth / 2;
    tip.style.translate = `${onTheLeft ? "-100%" : "0"} 0`;
    tip.style.left = `${offsetX + (onTheLeft ? -12 : 12)}px`;
    tip.style.top = `${Math.min(offsetY + 12, height - 80)}px`;
  };
  for (const kind of ["pointermove", "pointerdown"]) canvas.addEventListener(kind, point);
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  place.replaceChildren(canvas, tip);
  const percents = { type: "linear", scheme: "viridis", domain: domain.map((share) => 100 * share), label };
  legend.replaceChildren(domain[0] === undefined ? "" : Plot.legend({ color: percents, width: Math.min(260, legend.clientWidth) }));
}

const land = JSON.parse(document.getElementById("land").textContent);
const outlines = {}; // of the land as a path, by the map's width: to project it takes longer than all else

function drawLand(index, scales, values, { width }, context) {
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", outlines[width] ??= context.path()(land));
  path.setAttribute("fill-opacity", 0.13);
  return path;
}

// `points` are {language, value}; `gain`: the values are differences, which have a colour for each sign.
function drawMap(place, legend, points, gain, label) {
  const width = widthOf(place);
  const largest = d3.max(points, (d) => Math.abs(100 * d.value)) || 1;
  const [longitude, latitude] = [(d) => d.language.place[1], (d) => d.language.place[0]];
  const chart = drawChart(place, {
    width,
    height: 0.44 * width,
    margin: 2,
    marginBottom: 2,
    projection: { type: "equal-earth", domain: { type: "MultiPoint", coordinates: [[-180, 0], [180, 0], [0, 84], [0, -56]] }, clip: "frame" },
    color: gain ? { type: "diverging", scheme: "RdBu", domain: [-largest, largest], label } : { type: "linear", scheme: "viridis", label },
    marks: [
      drawLand,
      Plot.dot(points, {
        x: longitude, y: latitude, fill: (d) => 100 * d.value, stroke: "currentColor", strokeWidth: 0.6, r: width < 600 ? 3 : 5,
        title: (d) => `${d.language.name} (${d.language.code})\n${d.language.family}\n${gain ? signed(d.value) : percent(d.value)}`, tip: true,
      }),
    ],
  });
  legend.replaceChildren(points.length ? chart.legend("color", { width: Math.min(260, legend.clientWidth) }) : "");
}

function drawScatter(place, arms, languages, metric, distance, labels) {
  const data = arms.flatMap((arm) => languages
    .map((language) => ({ arm: arm.name, language, score: arm.scores[metric].values[language.index], distance: language.distances[distance] }))
    .filter((d) => d.score !== null && d.distance !== null));
  const targets = d3.groups(data.filter((d) => d.language.target), (d) => d.arm);
  const onALine = targets // a confidence band needs three points, a line two distances
    .filter(([, points]) => points.length > 2 && new Set(points.map((d) => d.distance)).size > 1)
    .flatMap(([, points]) => points);
  const names = arms.map((arm) => arm.name);
  const common = { x: "distance", y: (d) => 100 * d.score, stroke: "arm" };
  drawChart(place, {
    height: 420,
    x: { label: labels.distance, grid: true, inset: 8 },
    y: { label: labels.score, grid: true, inset: 8 },
    color: { domain: names, range: names.map((_, index) => COLORS[index % COLORS.length]) },
    symbol: { domain: names, range: names.map((_, index) => SYMBOLS[index % SYMBOLS.length]), legend: true },
    marks: [
      Plot.linearRegressionY(onALine, { ...common, fillOpacity: 0.1, clip: true }),
      Plot.dot(data, {
        ...common, symbol: "arm", r: 3.5,
        title: (d) => `${d.language.name} (${d.language.code})\n${d.language.family}, ${d.language.script}\n`
          + `${d.arm}\n${percent(d.score)} at distance ${d.distance.toFixed(2)}`,
        tip: true,
      }),
    ],
  });
}

function drawDifferences(place, differences, label) {
  const sorted = d3.sort(differences, (d) => d.difference);
  const named = sorted.length <= widthOf(place) / 14;
  drawChart(place, {
    height: 320,
    marginBottom: named ? 70 : 40,
    x: { domain: sorted.map((d) => d.language.code), axis: null },
    y: { label, grid: true },
    color: { domain: [-1, 0, 1], range: [COLORS[1], COLORS[6], COLORS[0]], type: "ordinal" },
    marks: [
      named ? Plot.axisX({ tickRotate: -90, tickSize: 0, label: null }) : Plot.axisX({ ticks: [], label: "languages by difference" }),
      Plot.barY(sorted, {
        x: (d) => d.language.code, y: (d) => 100 * d.difference, fill: (d) => Math.sign(d.difference), inset: 0.5,
        title: (d) => `${d.language.name} (${d.language.code})\n${signed(d.difference)}`, tip: true,
      }),
      Plot.ruleY([0]),
    ],
  });
}

function drawLengths(place, series, arms, metric, label) {
  const data = series.flatMap((one) => one.arms.map((index) => {
    const { mean, interval } = arms[index].scores[metric];
    const [low, high] = (interval ?? [mean, mean]).map((share) => 100 * share);
    return { series: one.name, arm: arms[index].name, length: arms[index].prompt_length, mean: 100 * mean, low, high };
  }));
  const lengths = [...new Set(data.map((d) => d.length))];
  const common = { x: "length", stroke: "series" };
  drawChart(place, {
    height: 320,
    x: { type: "log", ticks: lengths, tickFormat: String, label: "virtual tokens", grid: true, inset: 15 },
    y: { label, grid: true },
    color: { range: COLORS },
    symbol: { range: SYMBOLS, legend: true },
    marks: [
      Plot.ruleX(data, { ...common, y1: "low", y2: "high" }),
      Plot.line(data, { ...common, y: "mean", z: "series", sort: "length" }),
      Plot.dot(data, {
        ...common, y: "mean", symbol: "series", r: 4, tip: true,
        title: (d) => `${d.arm}\n${d.length} virtual tokens\n${d.mean.toFixed(1)} [${d.low.toFixed(1)}, ${d.high.toFixed(1)}]`,
      }),
    ],
  });
}

function drawReparameterizations(place, series, arms, languages, metric, label) {
  const families = d3.groups(languages, (language) => language.family).filter(([, members]) => members.length > 1);
  const groups = [["all targets", languages], ...d3.sort(families, ([, members]) => -members.length).slice(0, series.length > 1 ? 6 : 12)];
  const data = series.flatMap((one) => one.arms.flatMap((index) => groups.map(([name, members]) => ({
    series: one.name, kind: arms[index].reparameterization, family: `${name} (${members.length})`, arm: arms[index].name,
    score: 100 * d3.mean(members, (language) => arms[index].scores[metric].values[language.index] ?? undefined),
  }))));
  const kinds = d3.sort(new Set(data.map((d) => d.kind)));
  const { marginLeft, axis } = labelsOnTheLeft(place, d3.max(data, (d) => d.family.length));
  drawChart(place, {
    marginLeft,
    marginTop: 30,
    height: 40 + series.length * (30 + 22 * groups.length),
    x: { label, grid: true, inset: 10 },
    y: { domain: groups.map(([name, members]) => `${name} (${members.length})`) },
    fy: { label: null, axis: null, domain: series.map((one) => one.name) },
    color: { domain: kinds, range: COLORS },
    symbol: { domain: kinds, range: SYMBOLS, legend: true },
    marks: [
      axis,
      series.length > 1 ? Plot.text(series, { fy: "name", text: "name", frameAnchor: "top-left", dy: -18, fontWeight: 600 }) : null,
      Plot.ruleY(data, Plot.groupY({ x1: "min", x2: "max" }, { fy: "series", y: "family", x: "score", strokeOpacity: 0.4 })),
      Plot.dot(data, {
        fy: "series", y: "family", x: "score", stroke: "kind", symbol: "kind", r: 4, strokeWidth: 2, tip: true,
        title: (d) => `${d.arm}\n${d.family}\n${d.score.toFixed(1)}`,
      }),
    ],
  });
}
