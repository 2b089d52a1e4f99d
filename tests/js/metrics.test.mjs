import assert from "node:assert/strict";
import { test } from "node:test";
import { parseMetrics, quantile, rate, total } from "../../src/telechat/serve/page/static/metrics.js";

const text = (fast, slow, tokens) => `# HELP x_total help {not="labels"} 3
# TYPE x_total counter
x_total{path="/v1 {a}",status="200"} ${tokens}
x_total{path="a\\"b\\\\",status="500"} 1.0 1700000000
gauge 4.5e-1
bad NaN
first_bucket{le="0.1"} ${fast}
first_bucket{le="1.0"} ${fast + slow}
first_bucket{le="+Inf"} ${fast + slow}
first_sum 3
`;

test("samples by name, with labels, exponents, escapes and timestamps", () => {
  const samples = parseMetrics(text(0, 0, 7));
  assert.deepEqual(samples.get("x_total").map(({ labels, value }) => [labels.path, value]), [["/v1 {a}", 7], ['a"b\\', 1]]);
  assert.equal(total(samples, "x_total"), 8);
  assert.equal(total(samples, "gauge"), 0.45);
  assert.equal(total(samples, "bad"), null);
  assert.equal(parseMetrics("").size, 0);
});

test("a rate needs two scrapes and survives a restart", () => {
  const [before, after] = [parseMetrics(text(0, 0, 10)), parseMetrics(text(0, 0, 30))];
  assert.equal(rate(before, after, "x_total", 2), 10);
  assert.equal(rate(after, before, "x_total", 2), 0);
  assert.equal(rate(null, after, "x_total", 2), null);
  assert.equal(rate(before, after, "nothing", 2), null);
});

test("quantiles of what was observed between two scrapes", () => {
  const [before, after] = [parseMetrics(text(100, 0, 0)), parseMetrics(text(100, 10, 0))];
  assert.equal(quantile(null, before, "first", 0.5), 0.05);
  assert.ok(Math.abs(quantile(before, after, "first", 0.5) - 0.55) < 1e-9);
  assert.equal(quantile(after, after, "first", 0.5), null);
  assert.equal(quantile(null, after, "nothing", 0.5), null);
});
