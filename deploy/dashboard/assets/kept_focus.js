// Keeps the keyboard's focus on a run or a service in the lists: Dash builds a list again when it changes.
(() => {
  let focused = "";
  const remember = (event) => { focused = event.target.closest(".box")?.id || ""; };
  document.addEventListener("focusin", remember);
  document.addEventListener("pointerdown", remember);
  new MutationObserver(() => {
    if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus({ preventScroll: true });
  }).observe(document.body, { childList: true, subtree: true });
})();
