"""The chat page and the list of routes: plain HTML, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib.resources import files
from typing import Any

from starlette.responses import Response

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_POLICY = (
    "default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code{font-family:ui-monospace,monospace}dt{margin-top:1rem;font-weight:600}table{border-collapse:collapse}"
    "td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
)


def chat_page() -> Response:
    """The page at `/`. Only its own script, named by its hash, may run there."""
    text = files("ventoux.server").joinpath("page", "index.html").read_text(encoding="utf-8")
    script = _SCRIPT.search(text)
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode() if script else b"").digest()).decode()
    headers = {
        "content-security-policy": _POLICY.format(digest=digest),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(text, media_type="text/html", headers=headers)


def docs_page(openapi: dict[str, Any]) -> Response:
    """The routes and their fields, from the OpenAPI description."""
    parts = []
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<dt><code>{method.upper()} {html.escape(path)}</code></dt>")
            parts.append(f"<dd>{html.escape(operation.get('description') or operation.get('summary', ''))}")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            parts.append(_fields(openapi, body) if body else "")
            parts.append("</dd>")
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Ventoux: HTTP interface</title>'
        f"<style>{_DOCS_STYLE}</style><h1>Ventoux: HTTP interface</h1>"
        f'<p>The same as <a href="openapi.json">OpenAPI</a>.</p><dl>{"".join(parts)}</dl>'
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
    return Response(text, media_type="text/html", headers={"content-security-policy": policy})


def _fields(openapi: dict[str, Any], schema: dict[str, Any]) -> str:
    resolved = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    rows = []
    for name, described in resolved["properties"].items():
        kinds = [_kind(option) for option in described.get("anyOf", [described])]
        shown = " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
        needed = " (required)" if name in resolved.get("required", []) else ""
        text = html.escape(described.get("description", ""))
        rows.append(
            f"<tr><td><code>{html.escape(name)}</code>{needed}</td><td>{html.escape(shown)}</td><td>{text}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return schema.get("type") or "any"
