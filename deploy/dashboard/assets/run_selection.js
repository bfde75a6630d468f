// Toggles a run in the selection when its box is clicked, and removes the notice about runs that do not exist.
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  crossfade: {
    toggle(_clicks, selected) {
      const clicked = window.dash_clientside.callback_context.triggered.find((each) => each.value);
      // Dash also calls this for boxes that have only just been created.
      if (!clicked) return [window.dash_clientside.no_update, window.dash_clientside.no_update];
      const { run } = JSON.parse(clicked.prop_id.slice(0, clicked.prop_id.lastIndexOf(".")));
      const others = (selected || []).filter((each) => each !== run);
      return [others.length < (selected || []).length ? others : [...others, run], null];
    },
  },
});
