"""How runs are, read from their folders: for 'crossfade status', and for the page of 'crossfade dashboard'."""
