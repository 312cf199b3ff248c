// Take it with you: the SQL, files, a link.

import { $, copy, el, openDialog, say } from "./dom.js";
import { placeAnswer } from "./place.js";
import { answer } from "./results.js";
import { isAsked, question, state } from "./state.js";

export function startTaking() {
  $("show-sql").addEventListener("click", showSql);
  $("download").addEventListener("click", showFiles);
  $("share").addEventListener("click", async () => {
    await copy(location.href);
    flash($("share"), "Copied");
  });
}

function flash(button, text) {
  const before = button.textContent;
  button.textContent = text;
  say(text);
  setTimeout(() => (button.textContent = before), 1500);
}

function showSql() {
  const parts = [];
  if (answer) parts.push(["The list of places", answer.sql]);
  if (answer?.heat_sql && (state.layer || "similarity") === "similarity") parts.push(["The heat map", answer.heat_sql]);
  if (answer?.layer_sql) parts.push(["The heat map as a layer for QGIS and other tools (needs the rights of the schema's owner)", answer.layer_sql]);
  if (placeAnswer) parts.push(["The place", placeAnswer.sql]);
  if (state.layer.startsWith("saved:"))
    parts.push(["The layer", `SELECT cell_id, geom, percentile\nFROM callipper_map."layer_${state.layer.slice(6)}";`]);
  if (state.layer === "clusters") parts.push(["The groups of cells", "SELECT cell_id, geom, cluster, cluster_label\nFROM callipper_map.cell;"]);
  if (state.layer === "colors") parts.push(["The colours", "SELECT cell_id, geom, color\nFROM callipper_map.cell;"]);
  if (!parts.length) parts.push(["The POIs", "SELECT place_id, name, kind, geom\nFROM callipper_map.place;"]);
  openDialog("The SQL of what you see", ...parts.map(([title, sql]) => {
    const button = el("button", { onclick: async () => { await copy(sql); flash(button, "Copied"); } }, "Copy");
    return el("div", { class: "sql" }, el("h3", {}, title, button), el("pre", { tabindex: "0" }, el("code", {}, sql)));
  }));
}

function showFiles() {
  if (!isAsked()) {
    openDialog("Download", el("p", {}, "Ask something first: the files hold the places that you see."));
    return;
  }
  const cells = (format) => `/api/cells?${question({ within: state.within, format })}`;
  openDialog("Download",
    el("p", {}, "The listed places: ",
      el("button", { onclick: () => save("places.geojson", "application/geo+json", geojson()) }, "GeoJSON"), " ",
      el("button", { onclick: () => save("places.csv", "text/csv", csv()) }, "CSV")),
    el("p", {}, "All cells, up to 50,000, best first: ", el("a", { href: cells("geojson"), download: "cells.geojson" }, "GeoJSON"), " ",
      el("a", { href: cells("csv"), download: "cells.csv" }, "CSV")),
    el("p", { class: "quiet" }, "The files hold what the sources below the map allow: keep their attribution."));
}

function save(name, type, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const because = (cell) => cell.because ?? cell.known_for?.map(({ text }) => text).join("; ") ?? "";

function geojson() {
  const features = answer.cells.map((cell, index) => ({
    type: "Feature", id: cell.cell_id, geometry: cell.geometry,
    properties: { rank: index + 1, similarity: cell.similarity, percentile: cell.percentile, because: because(cell) },
  }));
  return JSON.stringify({ type: "FeatureCollection", features });
}

function csv() {
  // A quote before = + - @ keeps a spreadsheet from reading a POI's name as a formula.
  const field = (value) => `"${String(value ?? "").replace(/^(?=[=+\-@\t\r])(?!-?[\d.]+$)/, "'").replaceAll('"', '""')}"`;
  const rows = answer.cells.map((cell, index) => [index + 1, cell.cell_id, cell.lon, cell.lat, cell.similarity, cell.percentile, because(cell)]);
  return [["rank", "cell_id", "lon", "lat", "similarity", "percentile", "because"], ...rows].map((row) => row.map(field).join(",")).join("\r\n");
}
