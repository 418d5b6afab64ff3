"""The chat page, the status page and the list of routes: plain files, nothing from elsewhere."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
# Nothing from elsewhere, no script in the markup, and no text of a model as markup but through DOMPurify.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self';"
    " connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types dompurify ventoux"
)
# The worker that runs the tools which people write into the page: their code, but no network.
_WORKER = "js/tool-worker.js"
_WORKER_POLICY = "default-src 'none'; script-src 'unsafe-eval'"
_DOCS_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code{font-family:ui-monospace,monospace}dt{margin-top:1rem;font-weight:600}table{border-collapse:collapse}"
    "td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
)


class PageFiles:
    """The files of the chat page and the status page, read once. Only those are served whose type is known."""

    def __init__(self) -> None:
        self._files = dict(_read_folder(files("ventoux.server").joinpath("page"), ""))

    def answer(self, name: str, known: str | None) -> Response:
        """One file; 304 if `known`, the request's If-None-Match, names it as it is. Raises HTTPException 404."""
        if name not in self._files:
            raise HTTPException(404)
        content, media_type = self._files[name]
        headers = {
            "content-security-policy": _WORKER_POLICY if name == _WORKER else _POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            # Asked for every time, sent again only after an update.
            "cache-control": "no-cache",
            "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        }
        if known == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)


def _read_folder(folder: Traversable, prefix: str) -> Iterator[tuple[str, tuple[bytes, str]]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _read_folder(entry, f"{prefix}{entry.name}/")
        elif media_type := _TYPES.get(PurePosixPath(entry.name).suffix):
            yield prefix + entry.name, (entry.read_bytes(), media_type)


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
