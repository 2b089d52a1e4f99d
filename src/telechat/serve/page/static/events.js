// Server-sent events out of a stream of text. Pure: no fetch, no DOM.

/** A parser: feed it text in any cuts, it returns the `data` of each event that became complete. */
export function createEventParser() {
  let buffer = "";
  let data = [];
  return function feed(text) {
    const lines = (buffer + text).split("\n");
    buffer = lines.pop();
    const events = [];
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line.startsWith("data:")) {
        data.push(line.slice(line[5] === " " ? 6 : 5));
      } else if (line === "" && data.length) {
        events.push(data.join("\n"));
        data = [];
      }
    }
    return events;
  };
}
