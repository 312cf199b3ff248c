// The map: a plain background drawn from the cells and POIs themselves (or a basemap), the heat map, and what is found on top.

import * as maplibregl from "../vendor/maplibre-gl/maplibre-gl.mjs";
import { colors, onScheme } from "./palette.js";
import { question, state, setView, isAsked } from "./state.js";

maplibregl.setWorkerUrl(new URL("../vendor/maplibre-gl/maplibre-gl-worker.mjs", import.meta.url).href);

const EMPTY = { type: "FeatureCollection", features: [] };
const FONT = ["Open Sans Regular"]; // there are no font files: the browser's own sans-serif draws it
const smooth = () => !matchMedia("(prefers-reduced-motion: reduce)").matches;
const tiles = (path, parameters = "") => [`${location.origin}/tiles/${path}/{z}/{x}/{y}.mvt${parameters ? `?${parameters}` : ""}`];

export let map;
const maps = new Set(); // the map, and the one that it is compared with
let city;
const markers = { found: [], similar: [] };

let onTrouble = () => {};
export function start(found, onPlace, onProblem) {
  city = found;
  onTrouble = onProblem;
  map = create("map");
  map.addControl(new maplibregl.NavigationControl({ showCompass: false }), "bottom-right");
  map.addControl(new maplibregl.ScaleControl({ maxWidth: 90 }), "bottom-right");
  map.on("moveend", () => {
    const { lng, lat } = map.getCenter();
    setView(`${lng.toFixed(5)},${lat.toFixed(5)},${map.getZoom().toFixed(2)}`);
  });
  map.on("click", (event) => {
    if (!event.originalEvent.defaultPrevented && !map.drawing) onPlace(event.lngLat);
  });
  map.getCanvas().setAttribute("aria-label", "Map. Arrow keys move it, plus and minus zoom, Enter asks about the place in the middle.");
  map.getCanvas().addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !map.drawing) onPlace(map.getCenter());
  });
  onScheme(() => maps.forEach((each) => each.setStyle(style(each.model))));
  return new Promise((resolve) => map.once("style.load", resolve)); // not "load", which waits for all tiles
}

// A map of the city, in an element of the page; `other` is the version of a second map.
export function create(container, other) {
  const [lon, lat, zoom] = state.view.split(",").map(Number);
  const placed = Number.isFinite(zoom) ? { center: [lon, lat], zoom } : { bounds: bounds(), fitBoundsOptions: { padding: padding() } };
  const made = new maplibregl.Map({
    container, ...placed, style: style(other), attributionControl: city.basemap && !other ? { compact: false } : false, dragRotate: false, pitchWithRotate: false,
    maxZoom: 19, fadeDuration: smooth() ? 150 : 0, interactive: !other,
  });
  made.model = other;
  maps.add(made);
  made.on("remove", () => maps.delete(made));
  made.on("error", ({ error, sourceId }) => error?.name !== "AbortError" && onTrouble(error, sourceId));
  // A basemap's style knows nothing of our layers.
  made.on("style.load", () => {
    if (made.getSource("match")) return;
    for (const [name, source] of Object.entries(sources(other))) made.addSource(name, source);
    for (const layer of layers(false)) made.addLayer(layer);
  });
  return made;
}

function bounds(version = city.active) {
  const [west, south, east, north] = city.models.find((model) => model.version === Number(version)).bounds;
  return [[west, south], [east, north]];
}

// What the panel covers is not where the city should be.
export function padding() {
  const panel = document.getElementById("panel").getBoundingClientRect();
  const wide = innerWidth > 720;
  return wide ? { left: panel.right + 24, top: 24, right: innerWidth > 1000 ? 246 : 24, bottom: 44 } : { left: 16, right: 16, top: 56, bottom: 16 };
}

function style(other) {
  const basemap = city.basemap;
  if (basemap && !basemap.includes("{z}")) return basemap;
  const base = { version: 8, sources: {}, layers: [{ id: "paper", type: "background", paint: { "background-color": colors().paper } }] };
  if (basemap) {
    base.sources.basemap = { type: "raster", tiles: [basemap], tileSize: 256 };
    base.layers.push({ id: "basemap", type: "raster", source: "basemap", paint: { "raster-saturation": -0.6, "raster-opacity": 0.8 } });
  }
  Object.assign(base.sources, sources(other));
  base.layers.push(...layers(!basemap));
  return base;
}

function sources(other) {
  const [[west, south], [east, north]] = bounds(other);
  const around = { minzoom: 4, maxzoom: 16, bounds: [west - 0.1, south - 0.1, east + 0.1, north + 0.1] };
  const vector = (path, parameters) => ({ type: "vector", tiles: tiles(path, parameters), ...around });
  return {
    cells: vector("cells"),
    places: vector("places"),
    match: vector(...matchTiles(other)),
    found: { type: "geojson", data: kept.found, promoteId: "id" },
    reasons: { type: "geojson", data: kept.reasons },
    groups: { type: "geojson", data: groups() },
    area: { type: "geojson", data: kept.area },
  };
}

// The address of the heat map's tiles. Without a question there is nothing to draw; the cells' tiles stand in.
function matchTiles(other) {
  const layer = state.layer.startsWith("saved:") ? state.layer.slice(6) : "";
  if (layer) return [`layer/${encodeURIComponent(layer)}`];
  if (!isAsked()) return ["cells"];
  return ["match", question({ model: other })];
}

const shown = () => state.layer || "similarity";
const showsHeat = () => shown().startsWith("saved:") || (shown() === "similarity" && isAsked());
const visible = (condition) => ({ visibility: condition ? "visible" : "none" });

function layers(withLand) {
  const c = colors();
  const scale = c.scale.flatMap(([percent, color]) => [percent, color]);
  const cells = { source: "cells", "source-layer": "cells" };
  // Where no POI supports what is said, the colour is faint. A basemap stays visible below the colours.
  const most = city.basemap ? 0.6 : 0.9;
  const supported = ["coalesce", ["get", "support"], 100]; // a version that an earlier program trained does not know
  const support = ["interpolate", ["linear"], supported, 0, most / 7.5, 5, most / 2, 30, most];
  return [
    ...(withLand ? [{ id: "land", type: "fill", ...cells, paint: {
      "fill-color": c.land, "fill-antialias": false,
      "fill-opacity": ["interpolate", ["linear"], supported, 0, 0, 3, 0.35, 15, 1] } }] : []),
    { id: "clusters", type: "fill", ...cells, layout: visible(shown() === "clusters"),
      paint: { "fill-color": clusterColor(), "fill-opacity": support, "fill-antialias": false } },
    { id: "colors", type: "fill", ...cells, layout: visible(shown() === "colors"),
      paint: { "fill-color": ["to-color", ["get", "color"], c.land], "fill-opacity": support, "fill-antialias": false } },
    { id: "heat", type: "fill", source: "match", "source-layer": "cells", layout: visible(showsHeat()),
      paint: { "fill-color": ["interpolate", ["linear"], ["coalesce", ["get", "percentile"], 0], ...scale],
               "fill-opacity": support, "fill-antialias": false } },
    { id: "places", type: "circle", source: "places", "source-layer": "places", layout: visible(state.places !== "0"),
      paint: { "circle-color": c.poi, "circle-opacity": placeOpacity(),
               "circle-radius": ["interpolate", ["linear"], ["zoom"], 8, many(0.5, 2.8), 13, many(1.5, 3), 15, 2.2, 17, 4, 19, 6] } },
    { id: "area", type: "fill", source: "area", filter: ["==", ["geometry-type"], "Polygon"], paint: { "fill-color": c.area, "fill-opacity": 0.06 } },
    { id: "area-line", type: "line", source: "area", paint: { "line-color": c.area, "line-width": 2, "line-dasharray": [2, 1.5] } },
    { id: "found", type: "line", source: "found", paint: { "line-color": c.ink, "line-width": ["case", ["get", "chosen"], 3, 1.2] } },
    { id: "place-names", type: "symbol", source: "places", "source-layer": "places", minzoom: 16.2, layout: {
      ...visible(state.places !== "0"), "text-field": ["coalesce", ["get", "name"], ["get", "kind"]], "text-font": FONT, "text-size": 11,
      "text-offset": [0, 0.8], "text-anchor": "top", "text-max-width": 8, "text-padding": 6 },
      paint: { "text-color": c.ink, "text-halo-color": c.halo, "text-halo-width": 1.4, "text-opacity": 0.8 } },
    { id: "cluster-names", type: "symbol", source: "groups", layout: {
      ...visible(shown() === "clusters"), "text-field": ["get", "label"], "text-font": FONT, "text-size": 13, "text-max-width": 9 },
      paint: { "text-color": c.ink, "text-halo-color": c.halo, "text-halo-width": 1.8 } },
    { id: "reasons", type: "circle", source: "reasons", paint: {
      "circle-radius": ["case", ["get", "chosen"], 6.5, 4], "circle-color": c.reason, "circle-stroke-color": c.halo, "circle-stroke-width": 1.6 } },
    { id: "reason-names", type: "symbol", source: "reasons", filter: ["get", "chosen"], layout: {
      "text-field": ["get", "label"], "text-font": FONT, "text-size": 12, "text-max-width": 12,
      "text-variable-anchor": ["top", "bottom", "left", "right"], "text-radial-offset": 1.3 },
      paint: { "text-color": c.ink, "text-halo-color": c.halo, "text-halo-width": 1.8 } },
  ];
}

// Twelve groups by Paul Tol's "muted" colours and three more, which colour-blind people tell apart better than the cells' own.
export const GROUPS = ["#4477aa", "#ddcc77", "#117733", "#cc6677", "#88ccee", "#aa4499", "#999933", "#332288", "#44aa99", "#882255", "#e69f00", "#777777"];

function groups() {
  const features = city.clusters.map(({ label, lon, lat }) => ({
    type: "Feature", properties: { label }, geometry: { type: "Point", coordinates: [lon, lat] },
  }));
  return { type: "FeatureCollection", features };
}

// The radius of a dot, in pixels: below zoom 15 it stands for several POIs, so the city's centres are dark.
function many(one, most) {
  return ["interpolate", ["linear"], ["sqrt", ["get", "places"]], 1, one, 10, most];
}

// Where cells have colours, the dots of a whole city would hide them.
function placeOpacity() {
  const coloured = showsHeat() || ["clusters", "colors"].includes(shown());
  return ["interpolate", ["linear"], ["zoom"], 10, coloured ? 0.1 : 0.9, 13, 0.8];
}

function clusterColor() {
  return ["match", ["get", "cluster"], ...GROUPS.flatMap((color, number) => [number, color]), "rgba(0,0,0,0)"];
}

// What is drawn on top, kept for a style that is made anew.
const kept = { found: EMPTY, reasons: EMPTY, area: EMPTY };

export function draw(name, features) {
  kept[name] = { type: "FeatureCollection", features };
  for (const each of maps) each.getSource(name)?.setData(kept[name]);
}

// The question or the layers have changed.
export function refresh(target = map) {
  if (!target.getSource("match")) return;
  const [path, parameters] = matchTiles(target.model);
  const wanted = tiles(path, parameters);
  const source = target.getSource("match");
  if (source.tiles?.[0] !== wanted[0]) source.setTiles(wanted);
  const show = (layer, condition) => target.getLayer(layer) && target.setLayoutProperty(layer, "visibility", condition ? "visible" : "none");
  show("heat", showsHeat());
  show("clusters", shown() === "clusters");
  show("cluster-names", shown() === "clusters");
  show("colors", shown() === "colors");
  show("places", state.places !== "0");
  show("place-names", state.places !== "0");
  target.setPaintProperty("places", "circle-opacity", placeOpacity());
}

// Marks for a list of cells, which are buttons: they are reached by the keyboard too. `names` are what they say.
export function mark(list, cells, names, onChoose) {
  for (const marker of markers[list].splice(0)) marker.remove();
  cells.forEach((cell, index) => {
    const element = document.createElement("button");
    element.className = `mark ${list}`;
    element.textContent = names(index);
    element.setAttribute("aria-label", `Place ${names(index)}`);
    element.addEventListener("click", (event) => {
      event.stopPropagation();
      onChoose(index);
    });
    markers[list].push(new maplibregl.Marker({ element, anchor: "center" }).setLngLat([cell.lon, cell.lat]).addTo(map));
  });
}

export function chooseMark(index) {
  markers.found.forEach((marker, number) => marker.getElement().classList.toggle("chosen", number === index));
}

// The POIs that are the reasons: of the list of cells, and of the place.
const reasons = { found: [], place: [] };
export function drawReasons(list, found) {
  reasons[list] = found.map(({ label, lon, lat, chosen }) => ({
    type: "Feature", properties: { label, chosen: Boolean(chosen) }, geometry: { type: "Point", coordinates: [lon, lat] },
  }));
  draw("reasons", [...reasons.found, ...reasons.place]);
}

let pin;
export function setPin(place) {
  pin?.remove();
  pin = place && new maplibregl.Marker({ color: colors().reason }).setLngLat(place).addTo(map);
}

export function flyTo(lon, lat) {
  const [west, , east] = map.getBounds().toArray().flat();
  const near = east - west < 0.05;
  map.easeTo({ center: [lon, lat], zoom: near ? map.getZoom() : 15, padding: padding(), duration: smooth() ? 500 : 0 });
}
