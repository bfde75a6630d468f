// The button that changes between light and dark: until it is used, the page is as the system says.
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme || (dark.matches ? "dark" : "light");

  function label() {
    const button = document.getElementById("theme");
    const other = current() === "dark" ? "Light" : "Dark";
    if (button && button.textContent !== other) {
      button.textContent = other;
      button.setAttribute("aria-label", `Change to ${other.toLowerCase()} colours`);
    }
  }

  document.addEventListener("click", (event) => {
    if (!event.target.closest("#theme")) return;
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("crossfade-theme", root.dataset.theme);
    } catch {
      // storage may be forbidden: the page alone remembers
    }
    label();
  });
  dark.addEventListener("change", label);
  // Dash makes the page after this has run.
  new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
})();
