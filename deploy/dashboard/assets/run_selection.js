// Toggles a run in the selection when its box is clicked.
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  crossfade: {
    toggle(_clicks, selected) {
      const clicked = window.dash_clientside.callback_context.triggered.find((each) => each.value);
      // Dash also calls this for boxes that have only just been created.
      if (!clicked) return window.dash_clientside.no_update;
      const { run } = JSON.parse(clicked.prop_id.slice(0, clicked.prop_id.lastIndexOf(".")));
      return (selected || []).includes(run) ? selected.filter((each) => each !== run) : [...(selected || []), run];
    },
  },
});
