"""The sign-in of the pages: a token is given once, and a cookie stands for it from then on. It is a form, no script."""

import re
from html import escape
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from runtime.service.network.sessions import MAX_NAME, Sessions, from_own_page

MAX_BODY_BYTES = 1 << 14
OWN_PATH = re.compile(r"(compare|look)?(\?[!-\[\]-~]*)?")  # what may be gone on to: a page of ours, and a query


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
            return form(to, f"A name may have {MAX_NAME} characters.", 422)
        cookie = sessions.cookie(token, name, is_secure(request))
        if cookie is None:
            return form(to, "That is not the token of this service. Ask whoever runs it.", 401)
        return RedirectResponse(f"./{own(to)}", 303, headers | {"Set-Cookie": cookie})

    async def sign_out(request: Request) -> Response:
        if not from_own_page("POST", dict(request.scope["headers"])):
            return form("", "This form was sent from another site.", 403)
        return RedirectResponse("./sign-in", 303, headers | {"Set-Cookie": sessions.ended(is_secure(request))})

    app.add_api_route("/sign-in", show, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/sign-in", sign_in, methods=["POST"], include_in_schema=False)
    app.add_api_route("/sign-out", sign_out, methods=["POST"], include_in_schema=False)


def own(to: str) -> str:
    """Where to go on: a page of ours, and what it was asked; the search where `to` is something else."""
    return to if OWN_PATH.fullmatch(to) else ""


def is_secure(request: Request) -> bool:
    """Whether the browser speaks HTTPS, to us or to a proxy before us."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
