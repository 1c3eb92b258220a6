// The charts, each a function of what it shows; `place` is the element that it fills.
// Scores are shares of 1 in the data and percent on the page.
"use strict";

const COLORS = ["#3b8ad9", "#d9660a", "#12a07a", "#c770a3", "#8a6fd1", "#b58900", "#6b7280"]; // legible on light and dark
const SYMBOLS = ["circle", "triangle", "square", "diamond", "star", "wye", "cross"]; // told apart without colour, too
const percent = (share) => (share === null || share === undefined ? null : `${(100 * share).toFixed(1)}`);
const signed = (share) => (share === null ? null : `${share < 0 ? "−" : "+"}${(100 * Math.abs(share)).toFixed(1)}`);

const widthOf = (place) => Math.max(place.clientWidth, 300); // 0 in a window that is not shown yet

function drawChart(place, options) {
  const chart = Plot.plot({ width: widthOf(place), marginBottom: 42, style: { fontSize: "12px", overflow: "visible" }, ...options });
  place.replaceChildren(chart);
  return chart;
}

function labelsOnTheLeft(place, longest) {
  const marginLeft = Math.min(20 + 7 * longest, 240, 0.4 * widthOf(place));
  return { marginLeft, axis: Plot.axisY({ label: null, tickSize: 0, textOverflow: "ellipsis", lineWidth: (marginLeft - 8) / 13 }) };
}

function drawIntervals(place, arms, metric, label) {
  const { marginLeft, axis } = labelsOnTheLeft(place, d3.max(arms, (arm) => arm.name.length));
  const data = arms.map(({ name, scores: { [metric]: { mean, interval } } }) => (
    { name, mean: 100 * mean, low: 100 * (interval?.[0] ?? mean), high: 100 * (interval?.[1] ?? mean) }));
  drawChart(place, {
    marginLeft,
    height: 50 + 22 * arms.length,
    x: { label, grid: true, inset: 10 },
    y: { domain: arms.map((arm) => arm.name) },
    marks: [
      axis,
      Plot.ruleY(data, { y: "name", x1: "low", x2: "high", strokeWidth: 2, stroke: COLORS[0] }),
      Plot.dot(data, {
        y: "name", x: "mean", fill: COLORS[0], r: 4,
        title: (d) => `${d.name}\n${d.mean.toFixed(1)} [${d.low.toFixed(1)}, ${d.high.toFixed(1)}]`, tip: true,
      }),
    ],
  });
}

function drawHeatMap(place, legend, arms, languages, metric, label) {
  const data = arms.flatMap((arm) => languages
    .map((language) => ({ arm, language, score: arm.scores[metric].values[language.index] }))
    .filter((d) => d.score !== null));
  const marginLeft = Math.min(140, 0.4 * widthOf(place));
  const width = Math.min(60, Math.max(16, (widthOf(place) - marginLeft - 50) / arms.length));
  const chart = drawChart(place, {
    width: marginLeft + 50 + width * arms.length,
    height: 110 + 15 * languages.length,
    marginLeft, marginTop: 100, marginRight: 50,
    x: { domain: arms.map((arm) => arm.name) },
    y: { domain: languages.map((language) => language.code) },
    color: { type: "linear", scheme: "viridis", label },
    marks: [
      Plot.axisX({ anchor: "top", label: null, tickSize: 0, tickRotate: -45, textOverflow: "ellipsis", lineWidth: 9 }),
      Plot.axisY({
        label: null, tickSize: 0, textOverflow: "ellipsis", lineWidth: (marginLeft - 8) / 13,
        tickFormat: (code) => languages.find((language) => language.code === code).name,
      }),
      Plot.cell(data, {
        x: (d) => d.arm.name, y: (d) => d.language.code, fill: (d) => 100 * d.score, inset: 0.5,
        title: (d) => `${d.language.name} (${d.language.code})\n${d.arm.name}\n${percent(d.score)}`, tip: true,
      }),
    ],
  });
  legend.replaceChildren(data.length ? chart.legend("color", { width: Math.min(260, legend.clientWidth) }) : "");
}

const land = JSON.parse(document.getElementById("land").textContent);

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
      Plot.geo(land, { fill: "currentColor", fillOpacity: 0.13 }),
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
  const targets = d3.groups(data.filter((d) => d.language.code !== labels.source), (d) => d.arm);
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
