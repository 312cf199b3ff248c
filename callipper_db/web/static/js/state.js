// What is on the screen, as the address says it: a link shows the same again.

const LISTS = ["like", "unlike", "like_at", "unlike_at"];
const TEXTS = ["q", "within", "layer", "at", "min", "other", "places", "view"];
const listeners = [];

export const state = read();

function read() {
  const address = new URLSearchParams(location.search);
  const found = {};
  for (const name of LISTS) found[name] = address.getAll(name);
  for (const name of TEXTS) found[name] = address.get(name) ?? "";
  return found;
}

function write(push) {
  const address = new URLSearchParams();
  for (const name of TEXTS) if (state[name] !== "") address.set(name, state[name]);
  for (const name of LISTS) for (const value of state[name]) address.append(name, value);
  const text = address.toString().replaceAll("%2C", ",").replaceAll("%20", "+");
  const url = text ? `?${text}` : location.pathname;
  history[push ? "pushState" : "replaceState"](null, "", url);
}

// Changes the state; `changed` of the listeners gets the names that differ from before.
export function set(values, { push = true } = {}) {
  const names = Object.keys(values).filter((name) => String(values[name]) !== String(state[name]));
  if (!names.length) return;
  Object.assign(state, values);
  write(push);
  for (const listener of listeners) listener(new Set(names));
}

export function onChange(listener) {
  listeners.push(listener);
}

// The map's own movements: no listener needs to hear of them.
export function setView(view) {
  state.view = view;
  write(false);
}

addEventListener("popstate", () => {
  const before = { ...state };
  Object.assign(state, read());
  const names = Object.keys(state).filter((name) => String(before[name]) !== String(state[name]) && name !== "view");
  for (const listener of listeners) listener(new Set(names));
});

export const isAsked = () => Boolean(state.q || state.like.length || state.like_at.length);
export const isPlain = () =>
  [state.q, ...state.like].filter(Boolean).length === 1 &&
  !state.unlike.length && !state.like_at.length && !state.unlike_at.length;

// The parameters of the API for the present question.
export function question(extra = {}) {
  const parameters = new URLSearchParams();
  if (state.q) parameters.set("q", state.q);
  for (const name of LISTS) for (const value of state[name]) parameters.append(name, value);
  for (const [name, value] of Object.entries(extra)) if (value !== "" && value !== undefined) parameters.set(name, value);
  return parameters;
}
