// Applies the chosen theme before the page is drawn.
try {
  const theme = localStorage.getItem("crossfade-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* storage may be forbidden */ }
