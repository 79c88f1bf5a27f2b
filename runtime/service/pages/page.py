"""Serve the pages for people: search, compare and look. They use only our own files. Knows no model.

Each page is an HTML file whose scripts call the routes under /v1/. The security policy allows only code and files from
this service, and text is never parsed as HTML, see static/.
"""

import asyncio
import hashlib
from pathlib import Path

from fastapi import FastAPI, Request, Response

from runtime.config import ServiceConfig
from runtime.service.network.errors import Problem
from runtime.service.network.sessions import Sessions
from runtime.service.pages.sign_in import add_sign_in

FOLDER = Path(__file__).parent / "static"
PAGES = {"/": "search.html", "/compare": "compare.html", "/look": "look.html"}
TYPES = {".css": "text/css", ".js": "text/javascript", ".txt": "text/plain", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' blob:; frame-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
# A report may come from anywhere, so it is shown in a sandbox without scripts.
REPORT_HEADERS = HEADERS | {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline';"
    " frame-ancestors 'self'"
}


def add_pages(app: FastAPI, config: ServiceConfig) -> None:
    """Add the pages, their files, the report if there is one, and the sign-in if there are tokens."""
    for path, name in PAGES.items():
        text = (FOLDER / name).read_text(encoding="utf-8").replace("GUARDED", "yes" if config.tokens else "no")
        _add(app, path, text.encode(), "text/html")
    for file in sorted(FOLDER.rglob("*")):
        if file.suffix in TYPES:
            _add(app, f"/pages/{file.relative_to(FOLDER).as_posix()}", file.read_bytes(), TYPES[file.suffix])
    if config.tokens:
        add_sign_in(app, Sessions(config.tokens), HEADERS, (FOLDER / "sign-in.html").read_text(encoding="utf-8"))
    if config.report is not None:
        _add_report(app, config.report)


def _add(app: FastAPI, path: str, data: bytes, media_type: str) -> None:
    """Serve a file that is the same for everybody. Protected data comes only from the routes under /v1/."""
    headers = HEADERS | {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"'}

    async def found(request: Request) -> Response:
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=media_type)

    app.add_api_route(path, found, methods=["GET", "HEAD"], include_in_schema=False)


def _add_report(app: FastAPI, report: Path) -> None:
    async def shown() -> Response:
        try:
            data = await asyncio.to_thread(report.read_bytes)
        except OSError as error:
            raise Problem(404, "unknown id", f"the report cannot be read: {error.strerror}") from None
        return Response(data, headers=REPORT_HEADERS, media_type="text/html; charset=utf-8")

    app.add_api_route("/v1/report", shown, methods=["GET", "HEAD"], include_in_schema=False)
