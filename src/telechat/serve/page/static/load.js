// The tab with the service's load, for operators: figures of now and their last two minutes. Asks while it is seen.

import { byId, h } from "./dom.js";
import { t } from "./i18n.js";
import { parseMetrics, quantile, rate, total } from "./metrics.js";

const EVERY_MS = 2000;
const NUM_POINTS = 60;

// `read` and `note` take { before, last, now, seconds, lastSeconds }: the oldest scrape of the two minutes, the one before
// the newest, the newest, and the time since the first two; they give numbers, or null for what is not known (yet).
const FIGURES = [
  { name: "running", read: ({ now }) => total(now, "telechat_engine_running") },
  { name: "waiting", read: ({ now }) => total(now, "telechat_engine_waiting") },
  { name: "speed", unit: "tokensPerSecond", read: ({ last, now, lastSeconds }) => rate(last, now, "telechat_engine_generated_tokens_total", lastSeconds) },
  { name: "cache", unit: "percent", top: 100, read: ({ now }) => percent(total(now, "telechat_engine_cache_blocks_used"), total(now, "telechat_engine_cache_blocks")) },
  { name: "first", unit: "seconds", ...latencies("telechat_time_to_first_token_seconds", 1) },
  { name: "perToken", unit: "milliseconds", ...latencies("telechat_time_per_output_token_seconds", 1000) },
  { name: "answers", unit: "perMinute", read: (scrapes) => perMinute(scrapes, "telechat_time_to_first_token_seconds_count") },
  { name: "failures", unit: "perMinute", read: (scrapes) => perMinute(scrapes, "telechat_requests_failed_total") },
];

const percent = (part, all) => (part === null || !all ? null : (100 * part) / all);

const perMinute = ({ before, now, seconds }, name) => {
  const perSecond = rate(before, now, name, seconds);
  return perSecond === null ? null : perSecond * 60;
};

function latencies(name, factor) {
  const at = (q) => ({ before, now }) => {
    const seconds = before && quantile(before, now, name, q);
    return seconds === null ? null : seconds * factor;
  };
  return { read: at(0.5), note: at(0.95) };
}

/** A number with about three digits. */
export function shortNumber(value) {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 || Number.isInteger(value) ? String(Number(value.toFixed(1))) : String(Number(value.toFixed(2)));
}

export class LoadView {
  /** `fetchLoad()` gives Prometheus text. */
  constructor({ fetchLoad }) {
    this.fetchLoad = fetchLoad;
    this.scrapes = [];
    this.curves = new Map(FIGURES.map(({ name }) => [name, []]));
    this.isShown = false;
    this.timer = 0;
    document.addEventListener("visibilitychange", () => this.#schedule(0));
  }

  /** Begin or end watching. */
  show(isShown) {
    if (this.isShown === isShown) return;
    this.isShown = isShown;
    this.#schedule(0);
  }

  #schedule(milliseconds) {
    clearTimeout(this.timer);
    if (this.isShown && document.visibilityState === "visible") this.timer = setTimeout(() => this.#poll(), milliseconds);
  }

  async #poll() {
    const timer = this.timer;
    try {
      this.#take(parseMetrics(await this.fetchLoad()));
    } catch (error) {
      this.#say(t("loadFailed", { message: error.message }), true);
    }
    if (timer === this.timer) this.#schedule(EVERY_MS);
  }

  #say(text, isBad = false) {
    const status = byId("load-status");
    status.textContent = text;
    status.hidden = !text;
    status.classList.toggle("bad", isBad);
  }

  #take(samples) {
    this.scrapes = [...this.scrapes, { samples, at: performance.now() }].slice(-NUM_POINTS);
    const first = this.scrapes[0];
    const last = this.scrapes.at(-2);
    const newest = this.scrapes.at(-1);
    const scrapes = {
      before: last ? first.samples : null, last: last?.samples ?? null, now: samples,
      seconds: (newest.at - first.at) / 1000, lastSeconds: last ? (newest.at - last.at) / 1000 : 0,
    };
    const figures = FIGURES.map((figure) => ({ ...figure, value: figure.read(scrapes), beside: figure.note?.(scrapes) ?? null }));
    for (const { name, value } of figures) this.curves.set(name, [...this.curves.get(name), value].slice(-NUM_POINTS));
    this.#report(samples, figures);
    byId("load-figures").replaceChildren(...figures.map((figure) => this.#tile(figure)));
  }

  #report(samples, figures) {
    const down = samples.get("telechat_engine_up")?.filter(({ value }) => !value) ?? [];
    if (down.length) this.#say(t("enginesDown", { n: down.length }), true);
    else this.#say(figures.every(({ value }) => value === null) ? t("loadNothing") : "");
  }

  #tile({ name, unit, value, beside, top }) {
    const unitText = unit ? t(`unit_${unit}`) : "";
    const shown = value === null ? "–" : shortNumber(value);
    const note = beside === null ? null : h("span", { class: "beside" }, t("unit_p95", { value: shortNumber(beside) }));
    return h("div", { class: "tile", dataset: { figure: name } },
      h("dt", {}, t(`load_${name}`), note),
      h("dd", {}, h("strong", {}, shown), h("span", { class: "unit faint" }, unitText), curve(this.curves.get(name), top)));
  }
}

const SVG = "http://www.w3.org/2000/svg";

/** The values as a line, newest at the right end; `top` is the height of the box, else the largest value. */
function curve(values, top) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${NUM_POINTS - 1} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("curve");
  const highest = Math.max(top ?? 0, ...values.map((value) => value ?? 0)) || 1;
  const points = values.flatMap((value, place) =>
    value === null ? [] : [[NUM_POINTS - values.length + place, 19 - (18 * value) / highest]]);
  if (points.length < 2) return svg;
  const line = points.map(([x, y]) => `${x},${y.toFixed(2)}`);
  svg.append(shape("polygon", "area", [`${points[0][0]},20`, ...line, `${points.at(-1)[0]},20`]), shape("polyline", "line", line));
  return svg;
}

function shape(tag, kind, points) {
  const element = document.createElementNS(SVG, tag);
  element.setAttribute("points", points.join(" "));
  element.classList.add(kind);
  return element;
}
