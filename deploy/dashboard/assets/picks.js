// A click on the box of a run: picked or no longer picked.
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  crossfade: {
    toggle(_clicks, picked) {
      const used = window.dash_clientside.callback_context.triggered.find((each) => each.value);
      // A box that has only now been made has not been used.
      if (!used) return window.dash_clientside.no_update;
      const { run } = JSON.parse(used.prop_id.slice(0, used.prop_id.lastIndexOf(".")));
      return (picked || []).includes(run) ? picked.filter((each) => each !== run) : [...(picked || []), run];
    },
  },
});
