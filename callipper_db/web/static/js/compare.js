// Two models side by side for the same question: a second map below the first, which is cut at the swipe's handle. Only the first
// takes clicks and keys, and has the marks of both sides.

import { ask } from "./api.js";
import { $, el } from "./dom.js";
import { create, draw, flyTo, map, refresh } from "./map.js";
import { isAsked, question, state } from "./state.js";

let second;
let city;

export function startComparing(found) {
  city = found;
  $("swipe-handle").addEventListener("input", cut);
  map.on("move", follow);
}

export async function compare() {
  const other = isAsked() && state.other;
  $("swipe").hidden = $("other-map").hidden = !other;
  $("changes").hidden = !state.other;
  if (second && second.model !== other) {
    second.remove();
    second = undefined;
  }
  if (other && !second) second = open(other);
  else if (second) refresh(second);
  cut();
  if (!other) {
    $("changes").replaceChildren(el("p", { class: "quiet" }, "Ask a question: the two models are compared by their answers."));
    return;
  }
  $("swipe").querySelector(".left").textContent = `Version ${city.active}`;
  $("swipe").querySelector(".right").textContent = `Version ${other}`;
  showChanges(await ask("/api/changes", question({ other, k: 6 }), "changes"));
}

function open(other) {
  const made = create("other-map", other);
  made.getCanvas().setAttribute("aria-label", `Map of version ${other}`);
  made.getCanvas().setAttribute("tabindex", "-1");
  made.once("load", follow);
  return made;
}

function follow() {
  second?.jumpTo({ center: map.getCenter(), zoom: map.getZoom(), padding: map.getPadding() });
}

function cut() {
  const percent = second ? Number($("swipe-handle").value) : 100;
  $("maps").style.setProperty("--at", `${percent}%`);
}

function showChanges({ cells, model, other }) {
  $("changes").replaceChildren(
    el("h2", {}, `What changed: version ${other} against ${model}`),
    el("p", { class: "quiet" },
      "Each training has axes of its own, so the embeddings of two versions cannot be compared. Their ranks for your question can:",
      " these cells moved most."),
    el("ol", { class: "cards" }, cells.map((cell, index) => el("li", { class: "card" },
      el("button", { class: "rank", "aria-label": `Show changed place ${index + 1} on the map`, onclick: () => go(cell) }, `${index + 1}`),
      el("div", {},
        el("p", {}, el("b", {}, `${Math.round(cell.percentile)} %`), ` in version ${model}, `, el("b", {}, `${Math.round(cell.other_percentile)} %`), ` in ${other}`),
        words(cell))))));
}

function go(cell) {
  draw("found", [{ type: "Feature", geometry: cell.geometry, properties: { chosen: true } }]);
  flyTo(cell.lon, cell.lat);
}

function words({ texts, other_texts }) {
  if (!texts && !other_texts) return null;
  if (texts === other_texts) return el("p", { class: "quiet" }, `known for ${texts} in both`);
  return el("p", { class: "quiet" }, `known for ${texts ?? "nothing"}; in the other for ${other_texts ?? "nothing"}`);
}
