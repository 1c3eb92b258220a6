// Sortable tables, and tables as CSV files.
//
// A column is {title, value, text, number}: `value(row)` is what is sorted by and written to CSV, `text(row)` what is
// shown (default: the value); `number` aligns right and sorts the largest first. The first column heads its row.
"use strict";

function sortableTable(place, columns, rows, { sort = 0, descending = columns[sort].number, total = null } = {}) {
  const table = d3.create("table");
  const heads = table.append("thead").append("tr").selectAll("th").data(columns).join("th")
    .attr("scope", "col").classed("number", (column) => column.number);
  heads.append("button").attr("type", "button").text((column) => column.title)
    .on("click", (event, column) => {
      const index = columns.indexOf(column);
      descending = index === sort ? !descending : Boolean(column.number);
      sort = index;
      draw();
    });
  const body = table.append("tbody");
  if (total) cells(table.append("tfoot").append("tr"), total, (column) => column);
  place.replaceChildren(table.node());
  place.order = () => ({ sort, descending }); // so that a table drawn anew can keep the reader's order
  draw();

  function draw() {
    heads.attr("aria-sort", (_, index) => (index === sort ? (descending ? "descending" : "ascending") : null));
    const { value } = columns[sort];
    const compare = descending ? d3.descending : d3.ascending;
    const missing = (row) => value(row) === null; // always last
    const sorted = rows.toSorted((a, b) => missing(a) - missing(b) || compare(value(a), value(b)));
    body.selectAll("tr").data(sorted).join("tr").each(function (row) {
      cells(d3.select(this), columns, (column) => (column.text ?? column.value)(row));
    });
  }

  function cells(tr, data, content) {
    tr.selectAll("th, td").data(data).join((enter) => enter.append((_, index) => document.createElement(index ? "td" : "th")))
      .attr("scope", (_, index) => (index ? null : "row"))
      .classed("number", (_, index) => columns[index].number)
      .text((column) => content(column) ?? "–");
  }
}

function asCsv(columns, rows) {
  const field = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = String(value).replace(/^[=+\-@\t\r]/, "'$&"); // spreadsheets would run it as a formula
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns.map((column) => column.title), ...rows.map((row) => columns.map((column) => column.value(row)))];
  return lines.map((line) => line.map(field).join(",") + "\r\n").join("");
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" })); // the mark tells Excel that it is UTF-8
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
