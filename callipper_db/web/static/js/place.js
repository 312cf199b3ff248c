// What a place is like, with reasons, and where it is like there.

import { ask } from "./api.js";
import { $, el, say } from "./dom.js";
import { drawReasons, flyTo, mark, setPin } from "./map.js";
import { knownFor, meter, nameOf, plural, poi } from "./results.js";
import { set, state } from "./state.js";

const DISTANCES = [0, 250, 500, 1000, 2000, 5000];
export let placeAnswer;

export async function showPlace() {
  if (!state.at) {
    placeAnswer = undefined;
    $("place").hidden = true;
    setPin(null);
    mark("similar", []);
    drawReasons("place", []);
    return;
  }
  const [lon, lat] = state.at.split(",").map(Number);
  setPin([lon, lat]);
  placeAnswer = await ask("/api/place", new URLSearchParams({ at: state.at, min_distance: state.min || "500", k: "5" }), "place");
  drawReasons("place", placeAnswer.kinds.flatMap(({ reasons }) => reasons ?? []).map((reason) => ({ ...reason, label: nameOf(reason.label) })));
  mark("similar", placeAnswer.similar, letter, (index) => flyTo(placeAnswer.similar[index].lon, placeAnswer.similar[index].lat));
  $("place").replaceChildren(...card(placeAnswer, lon, lat));
  $("place").hidden = false;
  if (innerWidth <= 720) $("place").scrollIntoView({ block: "start" });
  say("The place is described in the panel.");
}

const letter = (index) => String.fromCharCode(65 + index);

function card(found, lon, lat) {
  const distance = el("select", { id: "min-distance", onchange: (event) => set({ min: event.target.value }) },
    DISTANCES.map((metres) => el("option", { value: metres, selected: String(metres) === (state.min || "500") }, metres ? `${metres.toLocaleString("en")} m` : "any distance")));
  return [
    el("div", { class: "head" },
      el("h2", {}, "What it is like here"),
      el("button", { class: "close", "aria-label": "Close the place", onclick: () => set({ at: "" }) }, "×")),
    el("p", { class: "quiet" }, `${lat.toFixed(5)}, ${lon.toFixed(5)} · ${supportOf(found)}`),
    found.kinds.length
      ? el("ul", { class: "kinds" }, found.kinds.map(kind))
      : el("p", {}, found.inside ? "Nothing stands out from the rest of the city here." : "This is outside of the area that the model knows."),
    el("div", { class: "small-buttons" },
      el("button", { onclick: () => set({ like_at: [...state.like_at, state.at] }) }, "More like this"),
      el("button", { onclick: () => set({ unlike_at: [...state.unlike_at, state.at] }) }, "Less like this")),
    el("h3", {}, el("label", { for: "min-distance" }, "Most like it, away by at least "), distance),
    el("ol", { class: "cards" }, found.similar.map((cell, index) => el("li", { class: "card" },
      el("button", { class: "rank", "aria-label": `Show similar place ${letter(index)} on the map`, onclick: () => flyTo(cell.lon, cell.lat) }, letter(index)),
      el("div", {}, knownFor(cell), meter(cell.percentile))))),
  ];
}

function kind({ text, pois, lift, because, reasons }) {
  return el("li", {},
    el("p", {}, el("b", {}, text), " ", el("span", { class: "quiet" }, `${plural(pois, "POI", "POIs")}, ${lift} × the city's share`)),
    el("p", { class: "reasons" }, (reasons ?? because?.split("; ").map((label) => ({ label })) ?? []).map((reason) => poi(reason.label))));
}

function supportOf({ support }) {
  const percent = `${Math.round(support * 100)}\u00a0%`;
  if (support >= 0.5) return `well supported by POIs (${percent})`;
  return support >= 0.1 ? `few POIs near it (support ${percent})` : `hardly a POI near it: a guess (support ${percent})`;
}
