// The colour theme as the user chose it. `theme.js`, which runs before the first paint, applies it.

import { byId } from "./dom.js";
import { t } from "./i18n.js";
import { keepPreference, readPreference } from "./preferences.js";

const NAMES = { auto: "themeAuto", light: "themeLight", dark: "themeDark" };

const choice = () => (NAMES[readPreference("theme")] ? readPreference("theme") : "auto");

/** Go on to the next theme: as the system, light, dark. */
export function nextTheme() {
  const all = Object.keys(NAMES);
  keepPreference("theme", all[(all.indexOf(choice()) + 1) % all.length]);
  dispatchEvent(new Event("telechat:theme"));
  showThemeName();
}

/** Write the name of the theme on its button. */
export function showThemeName() {
  byId("theme-name").textContent = t(NAMES[choice()]);
}
