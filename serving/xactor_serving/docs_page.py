"""Write the page at /docs: the API's schema for people to read, in one HTML file that refers to no other host."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } pre { overflow-x: auto; background: #8881; padding: .5rem; }
td, th { border-bottom: 1px solid #8884; padding: .3rem .6rem; text-align: left; vertical-align: top; }
"""


def docs_page(schema: dict[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        schema: The API's OpenAPI schema.
    """
    title = escape(schema["info"]["title"])
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title} API</title><style>{_STYLE}</style>",
        f"<h1>{title} API {escape(schema['info']['version'])}</h1><p>{escape(schema['info']['description'])}</p>",
        "<p>The schema: <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts += _operation(schema, method, path, operation)
    return "\n".join(parts)


def _operation(schema: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    """Yield the HTML of one method of a path."""
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
    if "security" in operation:
        yield "<p>Needs <code>Authorization: Bearer KEY</code>, where the service needs a key.</p>"
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        form = schema["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
        yield f"<h3>Fields, <code>{escape(kind)}</code></h3><table><tr><th>field<th>type<th>meaning"
        for name, field in form["properties"].items():
            must = ", required" if name in form.get("required", ()) else ""
            meaning = field.get("description", "")
            if field.get("default") is not None:
                meaning += f" Default: {json.dumps(field['default'])}."
            yield f"<tr><td><code>{escape(name)}</code><td>{escape(_type(field))}{must}<td>{escape(meaning)}"
        yield "</table>"
    yield "<h3>Answers</h3><table><tr><th>status<th>meaning"
    for status, answer in operation["responses"].items():
        text = escape(answer.get("description", ""))
        for kind, content in answer.get("content", {}).items():
            text += f" <code>{escape(kind)}</code>"
            if "example" in content:
                text += f"<pre>{escape(json.dumps(content['example'], indent=2))}</pre>"
        yield f"<tr><td>{escape(status)}<td>{text}"
    yield "</table>"


def _type(field: dict[str, Any]) -> str:
    """Return the type of a form's field with its bounds, in words."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    return " or ".join(_kind(kind) for kind in kinds)


def _kind(kind: dict[str, Any]) -> str:
    if "enum" in kind:
        return ", ".join(map(str, kind["enum"]))
    if kind.get("contentMediaType") or kind.get("format") == "binary":
        return "file"
    text = str(kind.get("type", ""))
    if "minimum" in kind and "maximum" in kind:
        text += f", {kind['minimum']}..{kind['maximum']}"
    return text
