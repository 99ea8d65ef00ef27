"""Adapt the Markdown pages to the site, which contains only the folder docs/."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace links to files outside docs/ by their text."""
    return _OUTSIDE.sub(r"\1", markdown)
