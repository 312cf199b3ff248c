// The page: it follows the state, which follows what people do and the address.

import { ask } from "./api.js";
import { compare, startComparing } from "./compare.js";
import { $, el } from "./dom.js";
import { showArea, startDrawing } from "./draw.js";
import { GROUPS, refresh, start } from "./map.js";
import { gradient, onScheme } from "./palette.js";
import { showPlace } from "./place.js";
import { plural, search } from "./results.js";
import { isAsked, onChange, set, state } from "./state.js";
import { startTaking } from "./take.js";

const ATTRIBUTION = [
  [/osm|openstreetmap|geofabrik|\.pbf/i, "© OpenStreetMap contributors"],
  [/overture/i, "Overture Maps Foundation"],
  [/foursquare|fsq/i, "Foursquare OS Places"],
  [/geonames/i, "GeoNames, CC BY 4.0"],
];
const QUESTION = ["q", "like", "unlike", "like_at", "unlike_at"];
let city;

async function main() {
  bindForms();
  if (innerWidth <= 720) document.querySelector("#layers details").open = false;
  await load();
}

// The city first: without a model there is nothing to draw.
async function load() {
  try {
    city = await ask("/api/city");
  } catch (error) {
    return problem(error, load);
  }
  showCity();
  await start(city, ({ lng, lat }) => set({ at: `${lng.toFixed(6)},${lat.toFixed(6)}` }), undrawn);
  startDrawing();
  startComparing(city);
  startTaking();
  onChange(follow);
  onScheme(showLegend);
  follow(new Set([...QUESTION, "at", "within", "layer", "places", "other"]));
  document.body.dataset.ready = "true";
  showExamples().catch(() => {});
}

// What has to be asked and drawn anew for changes of the state.
async function follow(changed) {
  const has = (...names) => names.some((name) => changed.has(name));
  if (has("q")) $("question").value = state.q;
  showParts();
  showLayers();
  showLegend();
  showArea();
  refresh();
  const jobs = [];
  if (has(...QUESTION, "within")) jobs.push(search());
  if (has("at", "min")) jobs.push(showPlace());
  if (has(...QUESTION, "other", "layer", "places")) jobs.push(compare());
  const failures = (await Promise.allSettled(jobs)).filter((job) => job.status === "rejected" && job.reason.name !== "AbortError");
  if (failures.length) problem(failures[0].reason, () => follow(changed));
  else if (jobs.length) $("problem").hidden = true;
}

function problem(error, again) {
  $("problem").replaceChildren(el("p", {}, error.message), el("button", { onclick: () => { $("problem").hidden = true; again(); } }, "Try again"));
  $("problem").hidden = false;
}

// A tile that did not come. What else has failed has said more already.
function undrawn(error, source) {
  if (!$("problem").hidden) return;
  const says = source === "basemap" ? `The basemap at ${new URL(city.basemap, location).host} does not answer. All else works.` : error?.status === 504 ? "It takes the database too long: zoom in, or start the map with a longer --timeout." : "Is the server still there?";
  problem(new Error(`A part of the map could not be drawn. ${says}`), () => location.reload());
}

function bindForms() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    set({ q: $("question").value.trim(), ...(state.layer && { layer: "" }) });
  });
  for (const name of ["like", "unlike"]) {
    $(`add-${name}`).addEventListener("submit", (event) => {
      event.preventDefault();
      const text = $(name).value.trim();
      if (text) set({ [name]: [...state[name], text] });
      $(name).value = "";
    });
  }
  $("show-places").addEventListener("change", (event) => set({ places: event.target.checked ? "" : "0" }));
  $("compare").addEventListener("change", (event) => set({ other: event.target.value, ...(event.target.value && { layer: "" }) }));
}

function showCity() {
  const model = city.models.find(({ version }) => version === city.active);
  const cell = model.size_m ? `cells of ${model.size_m.toLocaleString("en")} m` : "cells";
  $("title").textContent = city.title || "What is where";
  document.title = city.title ? `${city.title} · callipper-db map` : "callipper-db map";
  $("subtitle").textContent = `${plural(model.pois, "POI", "POIs")}, ${cell}`;
  const day = (text) => new Date(text).toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });
  const sources = city.sources.map(({ source }) => ATTRIBUTION.find(([pattern]) => pattern.test(source))?.[1] ?? source);
  $("sources").textContent = `Model version ${model.version}, ${day(model.created_at)}` +
    (model.refreshed ? `, refreshed` : "") + ` · ${[...new Set(sources)].join(", ")} · callipper-db ${city.version}`;
  for (const other of city.models.filter(({ version }) => version !== city.active)) {
    $("compare").append(el("option", { value: other.version }, `version ${other.version}, ${day(other.created_at)}`));
  }
  $("compare-label").hidden = city.models.length < 2;
}

async function showExamples() {
  const texts = await ask("/api/examples");
  $("examples").replaceChildren(...texts.map((text) => el("button", { class: "chip", onclick: () => set({ q: text, layer: "" }) }, text)));
}

// The parts of the question that the text box does not show: each can be taken out.
function showParts() {
  const chip = (sign, text, remove, kind = "") =>
    el("button", { class: `chip part ${kind}`, onclick: remove, "aria-label": `Remove: ${sign} ${text}` }, `${sign} ${text} `, el("span", { "aria-hidden": "true" }, "×"));
  const without = (name, index) => () => set({ [name]: state[name].filter((_, n) => n !== index) });
  const short = (place) => place.split(",").map((number) => Number(number).toFixed(4)).reverse().join(", ");
  $("parts").replaceChildren(
    ...state.like.map((text, n) => chip("like", text, without("like", n))),
    ...state.like_at.map((place, n) => chip("like the place", short(place), without("like_at", n))),
    ...state.unlike.map((text, n) => chip("not", text, without("unlike", n), "not")),
    ...state.unlike_at.map((place, n) => chip("not like the place", short(place), without("unlike_at", n), "not")),
    ...(state.within ? [chip("within", state.within.includes("(") ? "the polygon" : "the box", () => set({ within: "" }))] : []),
  );
}

function showLayers() {
  const choices = [["similarity", "Your question"], ["clusters", "Groups of like cells"], ["colors", "Colours of likeness"],
    ...city.layers.map(({ name }) => [`saved:${name}`, `Layer ${name}`]), ["none", "Nothing"]];
  const chosen = state.layer || "similarity";
  if (!$("layer-choice").querySelector("input")) {
    $("layer-choice").append(...choices.map(([value, text]) => el("label", {},
      el("input", { type: "radio", name: "layer", value, onchange: () => set(value === "similarity" ? { layer: "" } : { layer: value, other: "" }) }), ` ${text}`)));
  }
  for (const input of $("layer-choice").querySelectorAll("input")) input.checked = input.value === chosen;
  $("show-places").checked = state.places !== "0";
  $("compare").value = state.other;
}

function showLegend() {
  const layer = state.layer || "similarity";
  if (layer === "clusters") {
    $("legend").replaceChildren(el("ul", { class: "groups" }, city.clusters.map(({ cluster, label }) =>
      el("li", {}, el("span", { class: "swatch", style: `background:${GROUPS[cluster] ?? "transparent"}` }), label || "mixed"))));
  } else if (layer === "colors") {
    $("legend").replaceChildren(el("p", { class: "quiet" }, "Cells of like colour are alike. The colours have no other meaning."));
  } else if (layer.startsWith("saved:") || (layer === "similarity" && isAsked())) {
    const saved = city.layers.find(({ name }) => `saved:${name}` === layer);
    $("legend").replaceChildren(
      el("p", {}, saved ? saved.question : "How well a cell fits, among all cells"),
      el("div", { class: "ramp", style: `background:${gradient()}` }),
      el("p", { class: "ticks" }, ...["top 60 %", "40 %", "20 %", "best"].map((text) => el("span", {}, text))),
      el("p", { class: "quiet" }, "Faint where few POIs support it."));
  } else $("legend").replaceChildren();
}

main();
