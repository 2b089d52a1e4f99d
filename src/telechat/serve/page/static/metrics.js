// Prometheus text into figures for the load view. Pure: no fetch, no DOM.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Samples by name: Map of name → [{ labels, value }]. Lines that are no samples are skipped. */
export function parseMetrics(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (!match) continue;
    const [, name, labelText = "", number] = match;
    const value = number === "+Inf" ? Infinity : Number(number);
    if (Number.isNaN(value)) continue;
    const labels = Object.fromEntries([...labelText.matchAll(LABEL)].map(([, key, raw]) => [key, raw.replace(/\\(.)/g, "$1")]));
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels, value });
  }
  return samples;
}

/** The sum over all label sets, or null when there is no such metric. */
export function total(samples, name) {
  const found = samples.get(name);
  return found ? found.reduce((sum, { value }) => sum + value, 0) : null;
}

/** Growth per second of a counter between two scrapes; null without both, 0 after a restart. */
export function rate(before, after, name, seconds) {
  const [from, to] = [before && total(before, name), total(after, name)];
  return from === null || from === undefined || to === null || seconds <= 0 ? null : Math.max(0, to - from) / seconds;
}

function buckets(samples, name) {
  const counts = new Map();
  for (const { labels, value } of samples?.get(`${name}_bucket`) ?? []) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return counts;
}

/**
 * The `q` quantile of a histogram's observations between two scrapes (all of them when there is none before), in the
 * histogram's unit: linear within its bucket, the last bound beyond it; null when nothing was observed.
 */
export function quantile(before, after, name, q) {
  const earlier = buckets(before, name);
  const counts = [...buckets(after, name)].map(([bound, count]) => [bound, Math.max(0, count - (earlier.get(bound) ?? 0))]).sort(([a], [b]) => a - b);
  const all = counts.at(-1)?.[1] ?? 0;
  if (!all) return null;
  let low = 0;
  let below = 0;
  for (const [bound, count] of counts) {
    if (count >= q * all) return bound === Infinity ? low : low + ((bound - low) * (q * all - below)) / Math.max(count - below, 1e-9);
    [low, below] = [bound, count];
  }
  return low;
}
