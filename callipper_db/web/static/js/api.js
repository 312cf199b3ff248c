// Questions to the server. A failure is an Error whose message is a sentence for people.

const running = new Map();

// Fetches JSON. A newer request of the same name ends the older one, whose promise then never settles with an answer.
export async function ask(path, parameters = "", name = path) {
  running.get(name)?.abort();
  const control = new AbortController();
  running.set(name, control);
  let answer;
  try {
    answer = await fetch(`${path}${String(parameters) ? `?${parameters}` : ""}`, { signal: control.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The map's server does not answer. Start it again: callipper-db map");
  } finally {
    if (running.get(name) === control) running.delete(name);
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error || `The map's server answered with status ${answer.status}.`);
  return body;
}
