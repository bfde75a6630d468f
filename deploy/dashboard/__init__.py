"""Read run folders for 'crossfade status' and for the page of 'crossfade dashboard'."""
