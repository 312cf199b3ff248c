// Two models side by side for the same question: a second map over the first, cut at the swipe's handle.

import { ask } from "./api.js";
import { $, el } from "./dom.js";
import { create, flyTo, map, refresh } from "./map.js";
import { isAsked, question, state } from "./state.js";

let second;
let secondVersion;
let city;

export function startComparing(found) {
  city = found;
  $("swipe-handle").addEventListener("input", cut);
}

export async function compare() {
  const other = isAsked() && state.other;
  $("swipe").hidden = $("other-map").hidden = $("changes").hidden = !other;
  if (!other) {
    second?.remove();
    second = undefined;
    return;
  }
  if (second && secondVersion !== other) {
    second.remove();
    second = undefined;
  }
  if (!second) open(other);
  else refresh(second, other);
  $("swipe").querySelector(".left").textContent = `Version ${city.active}`;
  $("swipe").querySelector(".right").textContent = `Version ${other}`;
  cut();
  showChanges(await ask("/api/changes", question({ other, k: 6 }), "changes"));
}

function open(other) {
  second = create("other-map", other);
  secondVersion = other;
  second.getCanvas().setAttribute("aria-label", `Map of version ${other}`);
  second.getCanvas().setAttribute("tabindex", "-1");
  const follow = (from, to) => () => {
    if (following || !second) return;
    following = true;
    to().jumpTo({ center: from().getCenter(), zoom: from().getZoom(), padding: from().getPadding() });
    following = false;
  };
  let following = false;
  map.on("move", follow(() => map, () => second));
  second.on("move", follow(() => second, () => map));
  second.once("load", () => {
    refresh(second, other);
    second.jumpTo({ center: map.getCenter(), zoom: map.getZoom(), padding: map.getPadding() });
  });
}

function cut() {
  const percent = Number($("swipe-handle").value);
  $("other-map").style.clipPath = `inset(0 0 0 ${percent}%)`;
  $("swipe").style.setProperty("--at", `${percent}%`);
}

function showChanges({ cells, model, other }) {
  $("changes").replaceChildren(
    el("h2", {}, `What changed: version ${other} against ${model}`),
    el("p", { class: "quiet" },
      "Each training has axes of its own, so the embeddings of two versions cannot be compared. Their ranks for your question can:",
      " these cells moved most."),
    el("ol", { class: "cards" }, cells.map((cell, index) => el("li", { class: "card" },
      el("button", { class: "rank", "aria-label": `Show changed place ${index + 1} on the map`, onclick: () => flyTo(cell.lon, cell.lat) }, `${index + 1}`),
      el("div", {},
        el("p", {}, el("b", {}, `${Math.round(cell.percentile)} %`), ` in version ${model}, `, el("b", {}, `${Math.round(cell.other_percentile)} %`), ` in ${other}`),
        words(cell))))));
}

function words({ texts, other_texts }) {
  if (!texts && !other_texts) return null;
  if (texts === other_texts) return el("p", { class: "quiet" }, `known for ${texts} in both`);
  return el("p", { class: "quiet" }, `known for ${texts ?? "nothing"}; in the other for ${other_texts ?? "nothing"}`);
}
