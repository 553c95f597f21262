"""One HTML page of features, which holds all that it needs."""

from __future__ import annotations

from pathlib import Path

__all__ = ["html_page"]

_FOLDER = Path(__file__).parent

# The page's own style and script, and nothing from anywhere: whatever a token says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def html_page(data: str) -> str:
    """Return the page that shows features, for browsers without a network.

    Args:
        data: The features, as ``to_json`` gives them. Their text is shown as text,
            whatever it holds.
    """
    style, script, body = (
        (_FOLDER / f"page.{kind}").read_text(encoding="utf-8")
        for kind in ("css", "js", "html")
    )
    # JSON has < only within strings. Without it nothing ends the script element.
    data = data.replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Features at every k</title>
<style>{style}</style>
{body}
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</html>
"""
