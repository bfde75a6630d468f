"""The command ``crossfade``: parse, call, report."""
