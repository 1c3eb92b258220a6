// Sortable tables, and tables as CSV files.
//
// A column is {title, note, value, text, number}: `value(row)` is what is sorted by and written to CSV, `text(row)` what
// is shown (default: the value); `note` says more under the title; `number` aligns right and sorts the largest first. The
// first column heads its row.
"use strict";

const AT_ONCE = 50; // rows; those below, which are out of sight, follow when the first are painted
const { compare: inOrder } = new Intl.Collator("en", { numeric: true }); // "arm 2" before "arm 10"

function sortableTable(place, columns, rows, { sort = 0, descending = columns[sort].number, total = null } = {}) {
  const table = d3.create("table");
  const heads = table.append("thead").append("tr").selectAll("th").data(columns).join("th")
    .attr("scope", "col").classed("number", (column) => column.number);
  heads.append("button").attr("type", "button").attr("title", (column) => column.title).text((column) => column.title)
    .on("click", (event, column) => {
      const index = columns.indexOf(column);
      descending = index === sort ? !descending : Boolean(column.number);
      sort = index;
      draw();
    });
  heads.filter((column) => column.note).append("small").text((column) => column.note);
  const body = table.append("tbody").node();
  let rest;
  const lines = new Map(rows.map((row) => [row, line(columns.map((column) => (column.text ?? column.value)(row)))]));
  if (total) table.append("tfoot").append(() => line(total));
  place.replaceChildren(table.node());
  place.order = () => ({ sort, descending }); // so that a table drawn anew can keep the reader's order
  draw();

  function draw() {
    heads.attr("aria-sort", (_, index) => (index === sort ? (descending ? "descending" : "ascending") : null));
    const { value } = columns[sort];
    const direction = descending ? -1 : 1;
    const missing = (row) => (value(row) ?? null) === null; // always last
    const compare = (a, b) => (typeof a === "number" ? a - b : inOrder(a, b));
    const sorted = rows.toSorted((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : direction * compare(value(a), value(b))));
    const inNewOrder = sorted.map((row) => lines.get(row));
    body.replaceChildren(...inNewOrder.slice(0, AT_ONCE));
    clearTimeout(rest);
    rest = setTimeout(() => body.append(...inNewOrder.slice(AT_ONCE)), 100);
  }

  function line(texts) {
    const tr = document.createElement("tr");
    tr.append(...texts.map((text, index) => {
      const cell = document.createElement(index ? "td" : "th");
      if (!index) cell.scope = "row";
      if (columns[index].number) cell.className = "number";
      cell.textContent = text ?? "–";
      return cell;
    }));
    return tr;
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
