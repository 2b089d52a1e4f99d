// Small choices kept as strings in localStorage: language, theme, sampling, model, the last system prompt.
// Storage may be switched off; then choices last as long as the page.

const memory = new Map();

/** The text kept under `name`, or null. */
export function readPreference(name) {
  try {
    return localStorage.getItem(`telechat.${name}`) ?? memory.get(name) ?? null;
  } catch {
    return memory.get(name) ?? null;
  }
}

export function keepPreference(name, text) {
  memory.set(name, text);
  try {
    localStorage.setItem(`telechat.${name}`, text);
  } catch {
    // Full or switched off; `memory` has it.
  }
}
