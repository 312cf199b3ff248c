// Draw a box or a polygon to search within.

import { $, say } from "./dom.js";
import { draw, map } from "./map.js";
import { set, state } from "./state.js";

const six = (number) => Number(number.toFixed(6));
let stop = () => {};

export function startDrawing() {
  $("draw-box").addEventListener("click", () => toggle("draw-box", drawBox, "Drag on the map from one corner to the other. Escape ends it."));
  $("draw-polygon").addEventListener("click", () =>
    toggle("draw-polygon", drawPolygon, "Click the corners on the map. A double click or Enter closes the polygon, Escape ends it."));
  $("use-view").addEventListener("click", () => {
    const [[west, south], [east, north]] = map.getBounds().toArray();
    set({ within: [west, south, east, north].map(six).join(",") });
  });
  showArea();
}

// The area of the question, on the map.
export function showArea() {
  draw("area", state.within ? [polygon(cornersOf(state.within))] : []);
}

function toggle(button, tool, help) {
  const on = $(button).getAttribute("aria-pressed") !== "true";
  stop();
  if (!on) return;
  $(button).setAttribute("aria-pressed", "true");
  $("draw-help").textContent = help;
  $("draw-help").hidden = false;
  map.drawing = true;
  map.getCanvas().style.cursor = "crosshair";
  const undo = tool();
  const escape = (event) => event.key === "Escape" && (stop(), showArea());
  addEventListener("keydown", escape);
  stop = () => {
    undo();
    removeEventListener("keydown", escape);
    $(button).setAttribute("aria-pressed", "false");
    $("draw-help").hidden = true;
    map.getCanvas().style.cursor = "";
    setTimeout(() => (map.drawing = false)); // the click that ended it is no question
    stop = () => {};
  };
}

function drawBox() {
  let first;
  map.dragPan.disable();
  const box = (last) => [[first.lng, first.lat], [last.lng, first.lat], [last.lng, last.lat], [first.lng, last.lat]];
  const down = (event) => { first = event.lngLat; event.preventDefault(); };
  const move = (event) => first && draw("area", [polygon(box(event.lngLat))]);
  const up = (event) => {
    if (!first) return;
    const corners = box(event.lngLat);
    const lons = corners.map(([lon]) => lon), lats = corners.map(([, lat]) => lat);
    stop();
    const sides = [Math.min(...lons), Math.min(...lats), Math.max(...lons), Math.max(...lats)].map(six);
    if (sides[0] < sides[2] && sides[1] < sides[3]) set({ within: sides.join(",") });
    say("The search is within the box.");
  };
  const events = [["mousedown", down], ["mousemove", move], ["mouseup", up], ["touchstart", down], ["touchmove", move], ["touchend", up]];
  events.forEach(([name, listener]) => map.on(name, listener));
  return () => {
    events.forEach(([name, listener]) => map.off(name, listener));
    map.dragPan.enable();
  };
}

function drawPolygon() {
  const corners = [];
  map.doubleClickZoom.disable();
  const close = () => {
    const distinct = corners.filter((corner, n) => n === 0 || String(corner) !== String(corners[n - 1]));
    stop();
    if (distinct.length > 2) {
      const ring = [...distinct, distinct[0]].map(([lon, lat]) => `${six(lon)} ${six(lat)}`);
      set({ within: `POLYGON((${ring.join(", ")}))` });
      say("The search is within the polygon.");
    } else showArea();
  };
  const click = (event) => {
    corners.push(event.lngLat.toArray());
    draw("area", [corners.length > 2 ? polygon(corners) : line(corners)]);
  };
  const enter = (event) => event.key === "Enter" && close();
  map.on("click", click);
  map.on("dblclick", close);
  addEventListener("keydown", enter);
  return () => {
    map.off("click", click);
    map.off("dblclick", close);
    removeEventListener("keydown", enter);
    map.doubleClickZoom.enable();
  };
}

const feature = (geometry) => ({ type: "Feature", properties: {}, geometry });
const line = (corners) => feature({ type: "LineString", coordinates: corners });
const polygon = (corners) => feature({ type: "Polygon", coordinates: [[...corners, corners[0]]] });

// Corners of a box or of a polygon's outer ring, in the form that the address has.
function cornersOf(within) {
  const numbers = within.match(/-?[\d.]+(?:e-?\d+)?/gi)?.map(Number) ?? [];
  if (!within.includes("(")) {
    const [west, south, east, north] = numbers;
    return [[west, south], [east, south], [east, north], [west, north]];
  }
  const ring = within.slice(within.lastIndexOf("((") + 2).split(")")[0];
  return ring.split(",").map((pair) => pair.trim().split(/\s+/).map(Number));
}
