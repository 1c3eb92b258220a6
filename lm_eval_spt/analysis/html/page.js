// Fills the page from the JSON that stands in it, and draws again what the reader changes.
// Text from results files reaches the page as text, never as HTML.
"use strict";

const board = JSON.parse(document.getElementById("board").textContent);
const element = (id) => document.getElementById(id);
const METRIC_NAMES = { acc: "accuracy", macro_f1: "macro-F1", acc_norm: "normalised accuracy", exact_match: "exact match", f1: "F1", mcc: "Matthews correlation" };
const EVERY = "all";
const MOST_COLUMNS = 20; // arms side by side in a table

board.languages.forEach((language, index) => Object.assign(language, { index }));
const targets = board.languages.filter((language) => language.target);
const ranked = () => d3.sort(board.arms, (arm) => arm.scores[metric()].position);
const metric = () => element("metric").value;
const scoreLabel = () => `${METRIC_NAMES[metric()] ?? metric()}, %`;

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

function fillSelect(id, options, chosen) {
  d3.select(element(id)).selectAll("option").data(options).join("option")
    .attr("value", ([value]) => value).property("selected", ([value]) => value === chosen).text(([, text]) => text);
}

function shownLanguages() {
  const search = element("search").value.trim().toLowerCase();
  const matches = (id) => (language) => [EVERY, language[id]].includes(element(id).value);
  return board.languages
    .filter((language) => `${language.name} ${language.code}`.toLowerCase().includes(search))
    .filter(matches("family")).filter(matches("script")).filter(matches("seen"));
}

function shownArms() {
  const search = element("arm-search").value.trim().toLowerCase();
  return ranked().filter((arm) => `${arm.name}\n${arm.description}`.toLowerCase().includes(search));
}

function armColumns() {
  return shownArms().slice(0, MOST_COLUMNS).map(({ name, scores: { [metric()]: { values } } }) => (
    { title: name, number: true, value: (language) => values[language.index], text: (language) => percent(values[language.index]) }));
}

// -- ranking ----------------------------------------------------------------------------------------------------------

// What arms are and come from. What is the same for all stands above the table, which has room for little.
const FACTS = [
  { title: "Runs", number: true, value: (arm) => arm.runs.length },
  { title: "Parameters", number: true, value: (arm) => arm.tuned_parameters, text: ({ tuned_parameters: count }) => count?.toLocaleString("en", count < 1e6 ? {} : { notation: "compact", maximumFractionDigits: 1 }) },
  { title: "Prompt", value: (arm) => arm.description },
  { title: "Base model", detail: true, value: (arm) => arm.base_model },
  { title: "Trained on", detail: true, value: (arm) => arm.trained_on },
  { title: "Training cost", detail: true, value: (arm) => arm.training_cost },
  { title: "Seeds", detail: true, value: (arm) => arm.seeds },
  { title: "Tasks", detail: true, value: (arm) => arm.tasks },
  { title: "Harness", detail: true, value: (arm) => arm.harness },
];
const valuesOf = ({ value }) => new Set(board.arms.map(value).filter((one) => (one ?? null) !== null));
const [COMMON, DIFFERING] = [true, false].map((same) => FACTS.filter((fact) => (valuesOf(fact).size <= 1) === same));

function standingColumns() {
  const score = (arm) => arm.scores[metric()];
  const range = ([first, last]) => (first === last ? `${first}` : `${first}–${last}`);
  return [
    { title: "Arm", value: (arm) => arm.name },
    { title: "Rank", number: true, value: (arm) => score(arm).position, text: (arm) => range(score(arm).rank) },
    { title: "Mean, %", note: "of targets", number: true, value: (arm) => score(arm).mean, text: (arm) => percent(score(arm).mean) },
    { title: "95% interval", note: board.contained, number: true, value: (arm) => score(arm).interval?.[0] ?? null, text: (arm) => inPercent(score(arm).interval) },
    { title: "Source, %", number: true, value: (arm) => score(arm).source, text: (arm) => percent(score(arm).source) },
    { title: "Gap", note: "to source", number: true, value: (arm) => score(arm).gap, text: (arm) => signed(score(arm).gap) },
  ];
}

const inWords = (facts, arm) => facts.map(({ title, value, text }) => [title.toLowerCase(), (text ?? value)(arm)])
  .filter(([, text]) => (text ?? null) !== null).map((fact) => fact.join(" ")).join("; ");

function rankingColumns() {
  const details = DIFFERING.filter((fact) => fact.detail);
  return [
    ...standingColumns(),
    ...DIFFERING.filter((fact) => !fact.detail),
    ...(details.length ? [{ title: "Details", value: (arm) => inWords(details, arm) || null }] : []),
  ];
}

function rankingCsvColumns() {
  const score = (arm) => arm.scores[metric()];
  const [name, , , , source, gap] = standingColumns();
  return [
    name,
    { title: "Metric", value: () => metric() },
    { title: "First rank", value: (arm) => score(arm).rank[0] },
    { title: "Last rank", value: (arm) => score(arm).rank[1] },
    { title: "Mean over targets", value: (arm) => score(arm).mean },
    { title: "Interval from", value: (arm) => score(arm).interval?.[0] },
    { title: "Interval to", value: (arm) => score(arm).interval?.[1] },
    { ...source, title: "Source" },
    { ...gap, title: "Transfer gap" },
    ...FACTS,
    { title: "Length", value: (arm) => arm.prompt_length },
    { title: "Reparameterization", value: (arm) => arm.reparameterization },
    { title: "Prompt files", value: (arm) => arm.prompt },
  ];
}

function drawRanking() {
  const common = COMMON.flatMap((fact) => [...valuesOf(fact)].map((value) => `${fact.title.toLowerCase()} ${value.toLocaleString("en")}`));
  element("ranking-common").textContent = common.length ? `The same for all arms for which it is known: ${common.join("; ")}.` : "";
  sortableTable(element("ranking"), rankingColumns(), ranked(), { sort: 1, descending: false, ...element("ranking").order?.() });
  const means = ranked().map(({ name, scores: { [metric()]: { mean, interval } } }) => ({ name, value: mean, interval }));
  drawIntervals(element("intervals"), means, `${METRIC_NAMES[metric()] ?? metric()}, mean over targets, %`);
}

// -- languages --------------------------------------------------------------------------------------------------------

const LANGUAGE_COLUMNS = [
  { title: "Language", value: (language) => language.name },
  { title: "Code", value: (language) => language.code },
  { title: "Family", value: (language) => language.family },
  { title: "Script", value: (language) => language.script },
  { title: "Seen", value: (language) => language.seen },
];

function drawLanguages(languages) {
  const columns = [
    ...LANGUAGE_COLUMNS,
    {
      title: `Distance (${element("distance").value})`, number: true,
      value: (language) => language.distances[element("distance").value], text: (language) => language.distances[element("distance").value]?.toFixed(2),
    },
    ...armColumns(),
  ];
  const means = columns.slice(6).map(({ value }) => percent(d3.mean(languages, (language) => value(language) ?? undefined)));
  const total = [`mean of ${languages.length}`, "", "", "", "", "", ...means];
  sortableTable(element("languages"), columns, languages, { total, ...element("languages").order?.() });
  const [count, columnsShown] = [shownArms().length, columns.length - 6];
  const arms = columnsShown < count ? `the best ${columnsShown} of ${count}` : `${count} of ${board.arms.length}`;
  element("shown").textContent = `${languages.length} of ${board.languages.length} languages shown, ${arms} arms`;
}

function scoreRows(languages, arms) {
  return arms.flatMap((arm) => languages.flatMap((language) => board.metrics.flatMap((name) => {
    const { values, margins, runs } = arm.scores[name];
    const row = { arm: arm.name, language, metric: name };
    const mean = { ...row, run: "mean", score: values[language.index], interval: intervalOf(values[language.index], margins[language.index], name) };
    const single = runs.map((scores, index) => ({ ...row, run: arm.runs[index], score: scores[language.index], interval: null }));
    return [mean, ...single].filter((one) => one.score !== null);
  })));
}

function scoreColumns() {
  const ofLanguage = [
    ...LANGUAGE_COLUMNS,
    ...board.distances.map((name) => ({ title: `Distance (${name})`, value: (language) => language.distances[name] })),
  ];
  return [
    { title: "Arm", value: (row) => row.arm },
    { title: "Run", value: (row) => row.run },
    { title: "Metric", value: (row) => row.metric },
    { title: "Score", value: (row) => row.score },
    { title: "Interval from", value: (row) => row.interval?.[0] },
    { title: "Interval to", value: (row) => row.interval?.[1] },
    ...ofLanguage.map((column) => ({ ...column, value: (row) => column.value(row.language) })),
  ];
}

const HEAT_ORDERS = {
  "mean score": (language) => -d3.mean(board.arms, (arm) => arm.scores[metric()].values[language.index] ?? undefined),
  name: (language) => language.name,
  family: (language) => `${language.family} ${language.name}`,
  distance: (language) => language.distances[element("distance").value] ?? Infinity,
};

function drawHeat(languages) {
  const order = HEAT_ORDERS[element("heat-order").value];
  drawHeatMap(element("heat"), element("heat-legend"), shownArms(), d3.sort(languages, order), metric(), scoreLabel());
}

// -- one language -----------------------------------------------------------------------------------------------------

function intervalOf(value, margin, name = metric()) { // as far as scores go
  const lowest = name === "mcc" ? -1 : 0;
  return value === null || margin === null ? null : [Math.max(lowest, value - margin), Math.min(1, value + margin)];
}

function scoresInOne(language) {
  return shownArms().map(({ name, description, scores: { [metric()]: { values: all, margins, runs } } }) => {
    const value = all[language.index];
    return { name, description, value, interval: intervalOf(value, margins[language.index]), runs: runs.map((scores) => percent(scores[language.index])).join(", ") || null };
  });
}

function drawOne() {
  const language = board.languages[element("one").value];
  const rows = scoresInOne(language);
  const columns = [
    { title: "Arm", value: (row) => row.name },
    { title: scoreLabel(), number: true, value: (row) => row.value, text: (row) => percent(row.value) },
    { title: "95% interval", note: board.contained, number: true, value: (row) => row.interval?.[0] ?? null, text: (row) => inPercent(row.interval) },
    ...(rows.some((row) => row.runs) ? [{ title: "Its runs, %", value: (row) => row.runs }] : []),
    { title: "Prompt", value: (row) => row.description },
  ];
  const { name, code, family, script, seen } = language;
  element("one-facts").textContent = `${name} (${code}). Family: ${family}; script: ${script}; seen in pre-training: ${seen}.`;
  sortableTable(element("one-table"), columns, rows, { sort: 1, ...element("one-table").order?.() });
  drawIntervals(element("one-chart"), d3.sort(rows, (row) => -(row.value ?? -1)), `${scoreLabel()}, in ${name}`);
  drawNear(language);
}

function oneCsv() {
  return asCsv([
    { title: "Arm", value: (row) => row.name },
    { title: `${metric()} in ${board.languages[element("one").value].code}`, value: (row) => row.value },
    { title: "Interval from", value: (row) => row.interval?.[0] },
    { title: "Interval to", value: (row) => row.interval?.[1] },
    { title: "Prompt", value: (row) => row.description },
  ], scoresInOne(board.languages[element("one").value]));
}

function nearest(language) {
  return [[language.index, 0], ...language.nearest[element("near-by").value]].map(([index, distance]) => ({ ...board.languages[index], distance }));
}

const nearColumns = () => [
  ...LANGUAGE_COLUMNS.slice(0, 4),
  { title: "Distance", number: true, value: (language) => language.distance, text: (language) => language.distance.toFixed(2) },
  ...armColumns(),
];

function drawNear(language) {
  sortableTable(element("near"), nearColumns(), nearest(language), { sort: 4, descending: false, ...element("near").order?.() });
}

// -- charts of the languages shown ------------------------------------------------------------------------------------

function drawWorld(languages) {
  const [arm, minus] = ["map-arm", "map-minus"].map((id) => board.arms.find((one) => one.name === element(id).value));
  const valueOf = (one, language) => one.scores[metric()].values[language.index];
  const known = languages.map((language) => {
    const [a, b] = [valueOf(arm, language), minus ? valueOf(minus, language) : 0];
    return { language, value: a === null || b === null ? null : a - b };
  }).filter((d) => d.value !== null);
  const label = minus ? `difference in ${METRIC_NAMES[metric()] ?? metric()}, points` : scoreLabel();
  drawMap(element("map"), element("map-legend"), known.filter((d) => d.language.place), Boolean(minus), label);
  const missing = known.filter((d) => !d.language.place).map((d) => d.language.name);
  element("map-note").textContent = missing.length ? `Not drawn, as their place is not known: ${missing.join(", ")}.` : "";
}

function drawDistances(languages) {
  const distance = element("distance").value;
  const chosen = new Set([...document.querySelectorAll("#scatter-arms input:checked")].map((box) => box.value));
  const labels = { distance: `${distance} distance from ${board.source}`, score: scoreLabel() };
  drawScatter(element("scatter"), ranked().filter((arm) => chosen.has(arm.name)), languages, metric(), distance, labels);
  const missing = languages.filter((language) => language.distances[distance] === null).length;
  const note = missing ? ` ${missing} of the languages shown have no ${distance} distance and are not drawn.` : "";
  element("scatter-note").textContent = `Lines: least squares over the target languages, with 95% confidence bands. ${board.distance_method}${note}`;
}

function pairDifferences(languages) {
  const [first, second] = ["pair-first", "pair-second"].map((id) => board.arms.find((arm) => arm.name === element(id).value));
  return languages.map((language) => {
    const [a, b] = [first, second].map((arm) => arm.scores[metric()].values[language.index]);
    return { language, first: a, second: b, difference: a === null || b === null ? null : a - b };
  }).filter((d) => d.difference !== null);
}

function drawPair(languages) {
  const differences = pairDifferences(languages);
  const [mean, deviation] = [d3.mean, d3.deviation].map((statistic) => statistic(differences, (d) => d.difference));
  const count = (wanted) => differences.filter((d) => Math.sign(d.difference) === wanted).length;
  const error = deviation === undefined ? "" : ` (standard error over languages ${(100 * deviation / Math.sqrt(differences.length)).toFixed(1)})`;
  element("pair-result").textContent = differences.length
    ? `Mean difference ${signed(mean)} points${error}: higher in ${count(1)}, lower in ${count(-1)}, equal in ${count(0)} of ${differences.length} languages.`
    : "No language shown has both.";
  drawDifferences(element("pair"), differences, "difference, points");
}

function pairCsv() {
  const columns = [
    ...LANGUAGE_COLUMNS.map((column) => ({ ...column, value: (row) => column.value(row.language) })),
    { title: `${metric()} of ${element("pair-first").value}`, value: (row) => row.first },
    { title: `${metric()} of ${element("pair-second").value}`, value: (row) => row.second },
    { title: "Difference", value: (row) => row.difference },
  ];
  return asCsv(columns, pairDifferences(shownLanguages()));
}

// -- settings ---------------------------------------------------------------------------------------------------------

function drawCurves() {
  const { prompt_length: lengths, reparameterization: kinds } = board.curves;
  const absent = (name) => `Drawn where arms differ in nothing but their ${name}; of these, none do.`;
  if (lengths.length) drawLengths(element("length"), lengths, board.arms, metric(), scoreLabel());
  else element("length").textContent = absent("prompt length");
  if (kinds.length) drawReparameterizations(element("reparameterization"), kinds, board.arms, targets, metric(), scoreLabel());
  else element("reparameterization").textContent = absent("reparameterization");
}

// -- the page ---------------------------------------------------------------------------------------------------------

let turn = 0;
let drawn = Promise.resolve(); // once all charts are

function drawShown() {
  const languages = shownLanguages();
  drawLanguages(languages);
  drawn = drawCharts([drawHeat, drawOne, drawWorld, drawDistances, drawPair], languages);
}

// After a pause, as somebody may be typing, and one after the other, so that the page never stops; a newer call takes over.
async function drawCharts(charts, languages) {
  const own = ++turn;
  await pause(150);
  for (const draw of charts) {
    if (own !== turn) return;
    draw(languages);
    await pause(0);
  }
}

function drawAll() {
  drawRanking();
  drawShown();
  drawCurves();
}

function fillControls() {
  const names = ranked().map((arm) => [arm.name, arm.name]);
  for (const id of ["family", "script", "seen"]) {
    const values = d3.sort(new Set(board.languages.map((language) => language[id])));
    fillSelect(id, [[EVERY, EVERY], ...values.map((value) => [value, value])], EVERY);
  }
  fillSelect("distance", board.distances.map((name) => [name, name]), "genetic");
  fillSelect("heat-order", Object.keys(HEAT_ORDERS).map((name) => [name, name]), "mean score");
  const byName = d3.sort(board.languages, (language) => language.name);
  fillSelect("one", byName.map(({ index, name, code }) => [index, `${name} (${code})`]), byName.find((one) => one.code !== board.source)?.index ?? 0);
  fillSelect("near-by", board.distances.map((name) => [name, name]), "genetic");
  fillSelect("map-arm", names, names[0][0]);
  fillSelect("map-minus", [["", "nothing"], ...names], "");
  fillSelect("pair-first", names, names[0][0]);
  fillSelect("pair-second", names, names.at(-1)[0]);
  const boxes = d3.select("#scatter-arms").selectAll("label").data(names).join("label");
  boxes.append("input").attr("type", "checkbox").attr("value", ([name]) => name).property("checked", (_, index) => index < 3);
  boxes.append("span").text(([name]) => ` ${name}`);
}

function listen() {
  const withLanguages = (draw) => () => draw(shownLanguages());
  const downloads = {
    "ranking-csv": () => ["ranking.csv", asCsv(rankingCsvColumns(), ranked())],
    "languages-csv": () => ["scores_shown.csv", asCsv(scoreColumns(), scoreRows(shownLanguages(), shownArms()))],
    "all-csv": () => ["scores.csv", asCsv(scoreColumns(), scoreRows(board.languages, board.arms))],
    "one-csv": () => ["one_language.csv", oneCsv()],
    "near-csv": () => ["nearest_languages.csv", asCsv(nearColumns(), nearest(board.languages[element("one").value]))],
    "pair-csv": () => ["differences.csv", pairCsv()],
  };
  for (const [id, file] of Object.entries(downloads)) element(id).addEventListener("click", () => download(...file()));
  element("metric").addEventListener("change", drawAll);
  element("filters").addEventListener("input", drawShown);
  element("filters").addEventListener("reset", () => setTimeout(drawShown)); // after the fields have their values
  element("filters").addEventListener("submit", (event) => event.preventDefault());
  element("heat-order").addEventListener("change", withLanguages(drawHeat));
  element("scatter-arms").addEventListener("change", withLanguages(drawDistances));
  for (const id of ["one", "near-by"]) element(id).addEventListener("change", drawOne);
  for (const id of ["map-arm", "map-minus"]) element(id).addEventListener("change", withLanguages(drawWorld));
  for (const id of ["pair-first", "pair-second"]) element(id).addEventListener("change", withLanguages(drawPair));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll); // a canvas does not follow by itself
  let width = document.body.clientWidth;
  window.addEventListener("resize", () => {
    if (document.body.clientWidth !== width) drawAll(); // a phone's address bar changes the height alone
    width = document.body.clientWidth;
  });
}

element("summary").textContent = board.summary;
element("ranking-method").textContent = board.method;
d3.select("#notices").selectAll("li").data(board.notices).join("li").text((notice) => notice);
fillSelect("metric", board.metrics.map((name) => [name, METRIC_NAMES[name] ?? name]), board.metric);
fillControls();
listen();
drawAll();
