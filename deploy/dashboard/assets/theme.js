// The button that switches between light and dark. Until it is used, the page follows the system's setting.
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme || (dark.matches ? "dark" : "light");

  function label() {
    const button = document.getElementById("theme");
    const other = current() === "dark" ? "Light" : "Dark";
    if (button && button.textContent !== other) {
      button.textContent = other;
      button.setAttribute("aria-label", `Change to ${other.toLowerCase()} colors`);
    }
  }

  document.addEventListener("click", (event) => {
    if (!event.target.closest("#theme")) return;
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("crossfade-theme", root.dataset.theme);
    } catch {
      // Storage may be forbidden: the choice then lasts until the page is reloaded.
    }
    label();
  });
  dark.addEventListener("change", label);
  // Dash builds the page after this script has run.
  new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
})();
