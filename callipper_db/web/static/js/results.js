// The best places for the question, with the POIs that are the reasons, in the panel and on the map.

import { ask } from "./api.js";
import { $, el, say } from "./dom.js";
import { chooseMark, draw, drawReasons, flyTo, mark } from "./map.js";
import { isAsked, isPlain, question, set, state } from "./state.js";

export let answer; // the last one: for the SQL and the download

export async function search() {
  if (!isAsked()) {
    answer = undefined;
    show([]);
    $("results").replaceChildren();
    return;
  }
  $("results").setAttribute("aria-busy", "true");
  try {
    answer = await ask("/api/search", question({ within: state.within, k: 10, apart: 250 }), "search");
  } finally {
    $("results").removeAttribute("aria-busy");
  }
  answer.cells = withFewGuesses(answer.cells);
  show(answer.cells);
  say(answer.cells.length ? `${answer.cells.length} places found.` : "Nothing found.");
}

function show(cells) {
  draw("found", cells.map((cell) => ({ type: "Feature", geometry: cell.geometry, properties: { chosen: false } })));
  showReasons(cells);
  mark("found", cells, (index) => index + 1, (index) => choose(index, cells));
  if (!cells.length) {
    $("results").replaceChildren(el("p", { class: "quiet" }, isAsked() ? "No cell of the city is in that area." : ""));
    return;
  }
  $("results").replaceChildren(
    el("h2", {}, isPlain() ? "Best places" : "Places most like that"),
    el("ol", { class: "cards" }, cells.map((cell, index) => card(cell, index, cells, startsGuesses(cells, index)))),
  );
}

// Where POIs answer the question, three places more that the embedding alone finds are enough.
const MOST_GUESSES = 3;
function withFewGuesses(cells) {
  const grounded = cells.filter((cell) => cell.because);
  return grounded.length ? [...grounded, ...cells.filter((cell) => !cell.because).slice(0, MOST_GUESSES)] : cells;
}

const startsGuesses = (cells, index) => !cells[index].because && Boolean(cells[index - 1]?.because);

function showReasons(cells, chosen = -1) {
  const seen = new Map(); // one POI may be the reason for several cells
  cells.forEach((cell, index) => (cell.reasons ?? []).forEach((reason) => {
    const before = seen.get(reason.id);
    seen.set(reason.id, { ...reason, label: nameOf(reason.label), chosen: index === chosen || before?.chosen });
  }));
  drawReasons("found", [...seen.values()]);
}

function choose(index, cells) {
  const cell = cells[index];
  chooseMark(index);
  showReasons(cells, index);
  draw("found", cells.map((each, n) => ({ type: "Feature", geometry: each.geometry, properties: { chosen: n === index } })));
  document.querySelectorAll("#results .card").forEach((element, n) => element.classList.toggle("chosen", n === index));
  document.querySelectorAll("#results .card")[index]?.scrollIntoView({ block: "nearest" });
  flyTo(cell.lon, cell.lat);
}

function card(cell, index, cells, first) {
  const place = `${cell.lon},${cell.lat}`;
  return el("li", { class: "card" },
    first && el("p", { class: "quiet divider" }, "No more POIs say so. Places that are alike, by the embedding:"),
    el("button", { class: "rank", onclick: () => choose(index, cells), "aria-label": `Show place ${index + 1} on the map` }, `${index + 1}`),
    el("div", {},
      cell.because ? reasonsOf(cell) : [knownFor(cell), meter(cell.percentile)],
      el("div", { class: "small-buttons" },
        el("button", { onclick: () => set({ like_at: [...state.like_at, place] }) }, "More like this"),
        el("button", { onclick: () => set({ unlike_at: [...state.unlike_at, place] }) }, "Less like this"),
        el("button", { onclick: () => set({ at: place }) }, "What is it like?"),
      )));
}

function reasonsOf(cell) {
  return [
    el("p", { class: "reasons" }, (cell.reasons ?? []).map((reason) => poi(reason.label))),
    el("p", { class: "quiet" }, cell.lift === null
      ? "only faintly like what you ask for"
      : `${plural(cell.relevant, "such POI", "such POIs")} within 250 m, ${cell.lift} × the city's share`),
  ];
}

export function knownFor(cell) {
  if (!cell.known_for?.length) return el("p", { class: "quiet" }, "Nothing stands out there.");
  return el("p", { class: "reasons" }, cell.known_for.map(({ text, because }) =>
    el("span", { class: "poi", title: because }, el("b", {}, text), because ? ` ${nameOf(because.split("; ")[0])}` : "")));
}

export function meter(percentile) {
  if (percentile === null) return null;
  const beaten = `Fits better than ${percentile >= 99.95 ? "all" : `${percentile.toFixed(percentile > 99 ? 1 : 0)} %`} of the city`;
  return el("p", { class: "meter" }, el("span", { class: "track", "aria-hidden": "true" }, el("span", { style: `width:${percentile}%` })), beaten);
}

export function poi(label) {
  const kind = kindOf(label);
  return el("span", { class: "poi" }, el("b", {}, nameOf(label)), kind ? ` ${kind}` : "");
}

// A label is "Name (Kind)", or "Kind" alone.
export const nameOf = (label) => label.replace(/ \([^()]*\)$/, "");
const kindOf = (label) => label.match(/ \(([^()]*)\)$/)?.[1].toLowerCase() ?? "";
export const plural = (count, one, many) => `${count?.toLocaleString("en")} ${count === 1 ? one : many}`;
