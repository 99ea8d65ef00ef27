"""Adapt the Markdown pages to the site, which contains only the folder docs/. MkDocs calls these hooks."""

import re
from typing import Any

# A link from a page in docs/ to a file outside of docs/. Its first group is the link's text.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page's Markdown with each link to a file outside docs/ replaced by the link's text."""
    return _OUTSIDE.sub(r"\1", markdown)
