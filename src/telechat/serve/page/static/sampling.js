// The sampling settings: their limits, reading what was typed, the fields of a request. Pure.

export const samplingFields = [
  { name: "temperature", min: 0, max: 2, step: 0.05 },
  { name: "top_p", min: 0.01, max: 1, step: 0.01 },
  { name: "top_k", min: 0, max: 1000, step: 1, isInteger: true },
  { name: "repetition_penalty", min: 0.5, max: 2, step: 0.01 },
  { name: "max_tokens", min: 1, max: 1_000_000, step: 1, isInteger: true },
];

/** { value: number | undefined } for what was typed, undefined meaning the model's default; or { isWrong: true }. */
export function readField(field, typed) {
  const text = typed.trim();
  if (text === "") return { value: undefined };
  const value = Number(text);
  const isWrong = !Number.isFinite(value) || value < field.min || value > field.max || (field.isInteger && !Number.isInteger(value));
  return isWrong ? { isWrong: true } : { value };
}

/** Stored settings, with everything unknown or out of range dropped. */
export function cleanSampling(stored) {
  const clean = {};
  for (const field of samplingFields) {
    const value = stored?.[field.name];
    if (typeof value === "number" && !readField(field, String(value)).isWrong) clean[field.name] = value;
  }
  return clean;
}

/** Settings kept as JSON text; whatever cannot be read counts as nothing set. */
export function parseSampling(text) {
  try {
    return cleanSampling(JSON.parse(text ?? "{}"));
  } catch {
    return {};
  }
}

/** The body of a chat request; only fields that were set are sent. */
export function requestBody({ model, messages, sampling }) {
  return { model, messages, stream: true, ...cleanSampling(sampling) };
}
