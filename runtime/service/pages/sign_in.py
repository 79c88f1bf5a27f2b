"""The sign-in of the pages: a person gives a token once, and a cookie replaces it from then on. It is a form without
scripts."""

import re
from html import escape
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from runtime.service.network.sessions import MAX_NAME, Sessions, from_own_page

MAX_BODY_BYTES = 1 << 14
OWN_PATH = re.compile(r"(compare|look)?(\?[!-\[\]-~]*)?")  # allowed targets: one of our pages, with a query


def add_sign_in(app: FastAPI, sessions: Sessions, headers: dict[str, str], template: str) -> None:
    """Add /sign-in and /sign-out."""

    def form(to: str, message: str, status: int) -> Response:
        text = template.replace("MESSAGE", escape(message)).replace("GO_ON", escape(own(to), quote=True))
        return Response(text, status, headers | {"Cache-Control": "no-store"}, "text/html")

    async def show(to: str = "") -> Response:
        return form(to, "", 200)

    async def sign_in(request: Request) -> Response:
        if not from_own_page("POST", dict(request.scope["headers"])):
            return form("", "This form was sent from another site. Sign in here.", 403)
        body = await request.body()
        given = parse_qs(body[:MAX_BODY_BYTES].decode("utf-8", "replace"), max_num_fields=8)
        token, name, to = (given.get(field, [""])[0].strip() for field in ("token", "name", "to"))
        if len(name) > MAX_NAME:
            return form(to, f"A name may have at most {MAX_NAME} characters.", 422)
        cookie = sessions.cookie(token, name, is_secure(request))
        if cookie is None:
            return form(to, "That is not the token of this service. Ask the person who runs it.", 401)
        return RedirectResponse(f"./{own(to)}", 303, headers | {"Set-Cookie": cookie})

    async def sign_out(request: Request) -> Response:
        if not from_own_page("POST", dict(request.scope["headers"])):
            return form("", "This form was sent from another site.", 403)
        return RedirectResponse("./sign-in", 303, headers | {"Set-Cookie": sessions.ended(is_secure(request))})

    app.add_api_route("/sign-in", show, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/sign-in", sign_in, methods=["POST"], include_in_schema=False)
    app.add_api_route("/sign-out", sign_out, methods=["POST"], include_in_schema=False)


def own(to: str) -> str:
    """The target after signing in: `to` if it is one of our pages with a query, otherwise the search page."""
    return to if OWN_PATH.fullmatch(to) else ""


def is_secure(request: Request) -> bool:
    """Whether the browser uses HTTPS, to us or to a proxy in front of us."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
