"""The page at ``/``: what is served, and where it is described."""

from __future__ import annotations

from html import escape

from crossfade.deploy.serving.schemas import ModelDescription

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Crossfade</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }}</style>
</head>
<body>
<h1>Crossfade</h1>
<p>{served}</p>
<p><a href="/docs">/docs</a> shows the routes with examples and sends requests;
<a href="/openapi.json">/openapi.json</a> describes them for programs.</p>
</body>
</html>
"""


def front_page(model: ModelDescription | None) -> str:
    """Return the page about ``model``; None: requests need a token, and the page has nothing of the model."""
    if model is None:
        served = "This server answers requests for recommendations. They need a token."
    else:
        rows = ", ".join(f"{entity.rows:,} of {escape(name)}" for name, entity in model.entities.items())
        served = (
            f"This server recommends {escape(model.item)} to {escape(model.query)}, and finds similar rows, by the "
            f"model <b>{escape(model.job)}</b> of {escape(model.date)}, version {escape(model.version)}. It has the "
            f"vectors of {rows}."
        )
    return _PAGE.format(served=served)
