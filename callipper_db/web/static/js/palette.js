// Colours of the map, for light and dark. The scales are ColorBrewer's YlGnBu and matplotlib's magma: both run evenly from one
// lightness to the other, so they are read without seeing hues.

const scheme = matchMedia("(prefers-color-scheme: dark)");

const LIGHT = {
  paper: "#e6ebf0", land: "#fbfaf6", ink: "#1b2733", halo: "#ffffff", poi: "#97a1ad", reason: "#d9480f", area: "#6741d9",
  scale: [[0, "rgba(255,255,217,0)"], [40, "rgba(255,255,217,0.15)"], [60, "#edf8b1"], [78, "#a8dcb7"], [88, "#52bcc2"],
          [95, "#2283bb"], [98, "#25459b"], [100, "#0b1d5b"]],
};
const DARK = {
  paper: "#0e1319", land: "#1a222b", ink: "#e8edf2", halo: "#0e1319", poi: "#5c6977", reason: "#4dd4ff", area: "#b197fc",
  scale: [[0, "rgba(28,16,68,0)"], [40, "rgba(28,16,68,0.35)"], [60, "#3b0f70"], [78, "#7b2382"], [88, "#b5367a"],
          [95, "#f1605d"], [98, "#feaf77"], [100, "#fcfdbf"]],
};

export const colors = () => (scheme.matches ? DARK : LIGHT);
export const onScheme = (listener) => scheme.addEventListener("change", listener);

// For a legend: the scale from 40 % up, drawn as an even gradient over percentiles.
export function gradient() {
  const stops = colors().scale.filter(([percent]) => percent >= 40);
  return `linear-gradient(to right, ${stops.map(([percent, color]) => `${color} ${((percent - 40) / 60) * 100}%`).join(", ")})`;
}
