"""``/docs``: the API as one page of HTML, made of its OpenAPI description; it loads nothing, and has no script."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{font:14px/1.4 ui-monospace,monospace}pre{overflow:auto;padding:.5rem;border:1px solid #8888}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
    ":root{color-scheme:light dark}"
)
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
}


def page(description: dict[str, Any]) -> str:
    """The page of an OpenAPI description."""
    title = html.escape(description["info"]["title"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><link rel=icon href='data:,'><style>{STYLE}</style><h1>{title}</h1>"
        f"<p>{html.escape(description['info'].get('description', ''))}</p>"
        "<p>The same for programs: <a href='/openapi.json'>openapi.json</a>.</p>" + "".join(_operations(description))
    )


def _operations(description: dict[str, Any]) -> Iterator[str]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
            yield f"<p>{html.escape(operation.get('description') or operation.get('summary', ''))}</p>"
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in content:
                yield f"<pre>{html.escape(json.dumps(content['example'], indent=2))}</pre>"
            properties = content.get("schema", {}).get("properties", {})
            yield _table(
                "field", [(key, _type(value), value.get("description", "")) for key, value in properties.items()]
            )
            inside: dict[str, Any] = next(
                (
                    part["properties"]
                    for part in properties.get("sampling", {}).get("anyOf", [])
                    if "properties" in part
                ),
                {},
            )
            yield _table("field of sampling", [(key, _type(value), "") for key, value in inside.items()])
            answers = operation.get("responses", {}).items()
            yield _table("status", [(code, "", answer.get("description", "")) for code, answer in answers])


def _table(head: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(kind)}<td>{html.escape(text)}"
        for name, kind, text in rows
    )
    return f"<table><tr><th>{head}<th><th>{cells}</table>"


def _type(schema: dict[str, Any]) -> str:
    """A field's type in a few words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"] if part.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if schema.get("items") else "list"
    bounds = [f"from {schema[key]}" for key in ("minimum", "exclusiveMinimum") if key in schema]
    bounds += [f"to {schema[key]}" for key in ("maximum", "exclusiveMaximum") if key in schema]
    return " ".join([str(schema.get("type", "")), *bounds])
