// Toggles a run or a service when its box is clicked, removes the notice about those that do not exist, and keeps the
// keyboard's focus on a box and a study open: Dash builds a list again when it changes.
(() => {
  /* Return the name in the ID of the box that was clicked. Dash also asks for boxes that have only just been created. */
  function clickedName(kind) {
    const clicked = window.dash_clientside.callback_context.triggered.find((each) => each.value);
    return clicked && JSON.parse(clicked.prop_id.slice(0, clicked.prop_id.lastIndexOf(".")))[kind];
  }

  const unchanged = () => Array(2).fill(window.dash_clientside.no_update);

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    crossfade: {
      toggle(_clicks, selected) {
        const run = clickedName("run");
        if (run === undefined) return unchanged();
        const others = (selected || []).filter((each) => each !== run);
        return [others.length < (selected || []).length ? others : [...others, run], null];
      },
      toggleService(_clicks, chosen) {
        const service = clickedName("service");
        if (service === undefined) return unchanged();
        return [service === chosen ? "" : service, null];
      },
    },
  });

  let focused = "";
  const remember = (event) => { focused = event.target.closest("[role=checkbox]")?.id || ""; };
  document.addEventListener("focusin", remember);
  document.addEventListener("pointerdown", remember);
  const opened = new Map();
  document.addEventListener("toggle", ({ target }) => {
    if (target.dataset.study) opened.set(target.dataset.study, target.open);
  }, true);
  new MutationObserver(() => {
    for (const study of document.querySelectorAll("[data-study]")) study.open = opened.get(study.dataset.study) ?? study.open;
    if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus({ preventScroll: true });
  }).observe(document.body, { childList: true, subtree: true });
})();
