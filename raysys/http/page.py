"""The explorer page at `/`, with its script and its style: files beside this one, sent as they are.

They are open without a key, as they hold nothing of a build; what the page asks needs one. All of
its addresses are relative, so it works below any prefix.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources

from fastapi import FastAPI, Request, Response
from starlette.routing import Route

from raysys.http.limits import path_of

PAGE_PATHS = ("", "/", "/explorer.js", "/explorer.css")
_FILES = {
    "/": ("index.html", "text/html"),
    "/explorer.js": ("explorer.js", "text/javascript"),
    "/explorer.css": ("explorer.css", "text/css"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asks each time, and is told that nothing changed
}


def add_page(app: FastAPI) -> None:
    """Add the routes, which are no part of HTTP v1."""
    folder = resources.files("raysys.http") / "explorer"
    for path, (name, kind) in _FILES.items():
        app.router.routes.append(_route(path, (folder / name).read_bytes(), kind))


def _route(path: str, content: bytes, kind: str) -> Route:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = _HEADERS | {"etag": tag}

    async def send(request: Request) -> Response:
        if not path_of(request.scope):  # a prefix without its slash: relative addresses need it
            below = request.scope["root_path"].rpartition("/")[2]
            return Response(status_code=307, headers={"location": f"./{below}/"})
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    route = Route(path, send, methods=["GET"], include_in_schema=False)
    if path == "/":
        route.path_regex = re.compile("^/?$")  # a prefix alone leaves no path at all
    return route
