// Sets the colour theme before the first paint. A classic script on purpose: modules run too late for that.
// `data-theme` is always "light" or "dark"; the choice kept in the browser may also be "auto".
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => {
    try {
      return localStorage.getItem("telechat.theme") ?? "auto";
    } catch {
      return "auto"; // storage may be switched off
    }
  };
  const apply = () => {
    const choice = kept();
    const dark = choice === "dark" || (choice === "auto" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  };
  system.addEventListener("change", apply);
  addEventListener("telechat:theme", apply);
  apply();
})();
