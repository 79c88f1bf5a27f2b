"""The routes with which people compare pictures: they show pairs and take votes.

POST /v1/compare/next       the next pairs of one person
POST /v1/compare/votes      a choice; durable before the answer
POST /v1/compare/undo       takes a choice back
POST /v1/compare/prompt     a person's own prompt, if there is a generator
POST /v1/compare/join       exchanges an invitation for a key
GET  /v1/compare/pictures/ID    GET /v1/compare/summary
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, FiniteFloat
from sqlalchemy.engine import Connection

from embed.inputs.images import ImageError
from runtime.collect import ledger
from runtime.collect.invites import redeem
from runtime.collect.ledger import Choice, Showing, Standing
from runtime.collect.summary import summarise
from runtime.service.answering.reading import check_prompts, read_json_request
from runtime.service.answering.requests import ERRORS, Closed, ErrorAnswer, described, example
from runtime.service.answering.state import Service
from runtime.service.network.errors import Problem
from runtime.service.network.front import log
from runtime.service.routes.comparing import COOKIE, Comparing, checked_name
from runtime.service.routes.views import FULL

Value = TypeVar("Value")

PATH = "/v1/compare"
KEY_S = 365 * 86_400  # how long a browser keeps its key
PICTURE_S = 86_400

Name = Annotated[
    str, Field(min_length=1, max_length=60, description="the name of the voter, if voters name themselves")
]
ShowingId = Annotated[str, Field(min_length=1, max_length=64)]


class NextRequest(Closed):
    """A request for the next pairs of one person."""

    model_config = example(count=2, voter="ann")
    count: Annotated[int, Field(ge=1, le=10)] = 1
    voter: Name | None = None
    holding: Annotated[
        tuple[ShowingId, ...],
        Field(
            max_length=20, strict=False, description="showings that the page already has and that are not answered yet"
        ),
    ] = ()


class VoteRequest(Closed):
    """A person's choice for a pair."""

    model_config = example(showing="q1w2e3", choice="left", seconds=2.5)
    showing: ShowingId
    choice: Choice
    reason: Annotated[str, Field(max_length=500)] | None = None
    seconds: Annotated[FiniteFloat, Field(ge=0, le=86_400, description="seconds since the pair was shown")]


class UndoRequest(Closed):
    """The showing whose vote is to be undone."""

    model_config = example(showing="q1w2e3")
    showing: ShowingId


class PromptRequest(Closed):
    """A person's own prompt; null returns to the owner's pairs."""

    model_config = example(prompt="a lighthouse in a storm", voter="ann")
    prompt: str | None
    voter: Name | None = None


class JoinRequest(Closed):
    """The token of an invitation."""

    model_config = example(invite="a1b2c3")
    invite: Annotated[str, Field(min_length=1, max_length=200)]


class ShownPicture(BaseModel):
    """A picture to show."""

    picture: Annotated[str, Field(examples=["/v1/compare/pictures/6e3c8f"])]
    width: int
    height: int


class ShowingItem(BaseModel):
    """A pair for one person."""

    showing: str
    prompt: str
    left: ShownPicture
    right: ShownPicture


class Progress(BaseModel):
    """How many votes a person has given, and the goal."""

    votes: int
    goal: int | None


class Agreement(BaseModel):
    """How many pairs a person was shown twice, and how many of these they answered in the same way."""

    repeats: int
    agreed: int


class NextAnswer(BaseModel):
    """Pairs to answer, fewer than requested if there are no more."""

    showings: list[ShowingItem]
    done: bool
    progress: Progress
    agreement: Agreement
    instructions: str | None
    voter: str
    prompts: Annotated[bool, Field(description="whether people may write their own prompts")]


class VoteAnswer(BaseModel):
    """The vote was stored."""

    vote: int
    progress: Progress
    agreement: Agreement


class UndoAnswer(BaseModel):
    """The vote was undone; the showing waits for another."""

    showing: str
    progress: Progress
    agreement: Agreement


class JoinAnswer(BaseModel):
    """The invited person. The key is in a cookie."""

    voter: str


SHAPES: list[type[BaseModel]] = [NextRequest, VoteRequest, UndoRequest, PromptRequest, JoinRequest]
REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        403: "The person was not invited",
        404: "There is no such showing, picture or generator",
        409: "The showing has another vote, or no vote to undo",
        502: "The generator gave no pictures",
    }.items()
}


def add_compare_routes(app: FastAPI, service: Service) -> None:
    """Add the routes for a service with a database of votes. Raise InputError if the database cannot be opened."""
    comparing = Comparing(service)
    config = comparing.config

    def told(request: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
        return described(request, answer) | {"responses": ERRORS | REFUSED}

    async def given(voter: str, showings: list[Showing], holding: Sequence[str] = ()) -> Response:
        ids = {id for showing in showings for id in (showing.left, showing.right)}
        pictures = await comparing.read(partial(ledger.pictures_of, ids=sorted(ids)))
        items = [_item(showing, pictures) for showing in showings]
        of_all = {"instructions": comparing.instructions, "prompts": comparing.generator is not None}
        standing = await standing_of(voter)
        return JSONResponse(
            {"showings": items, "done": not items and not holding, "voter": voter, **standing, **of_all}
        )

    async def standing_of(voter: str) -> dict[str, object]:
        found: Standing = await comparing.read(partial(ledger.standing, voter=voter))
        progress = {"votes": found.votes, "goal": config.vote_goal}
        return {"progress": progress, "agreement": {"repeats": found.repeats, "agreed": found.agreed}}

    @app.post(f"{PATH}/next", **told(NextRequest, NextAnswer))
    async def next_pairs(request: Request) -> Response:
        """The next pairs of one person: first those that were shown before and have no vote, unless the page already
        has them, then new ones."""
        asked = await read_json_request(request, NextRequest)
        voter = await comparing.voter(request, checked_name(asked.voter))
        return await given(voter, await comparing.next(request, voter, asked.count, asked.holding), asked.holding)

    @app.post(f"{PATH}/votes", **told(VoteRequest, VoteAnswer))
    async def vote(request: Request) -> Response:
        """Store a choice: 201, or 200 if the same choice is sent again, which is not stored twice."""
        asked = await read_json_request(request, VoteRequest)
        check_prompts([asked.reason or ""], 500)
        flags = ledger.TOO_FAST if asked.seconds < config.least_vote_s and asked.choice != "skip" else ""
        wanted = ledger.Vote(asked.showing, asked.choice, asked.reason, asked.seconds, flags, time.time())
        voter = await comparing.owner(request)

        def work(connection: Connection) -> tuple[int, str, bool]:
            number, owner, new = ledger.cast_vote(connection, wanted, voter)
            lately = ledger.votes_since(connection, owner, wanted.voted_at - 60) if new else 0
            if lately > config.votes_per_minute:
                advice = f"more than {config.votes_per_minute} votes in a minute; take your time"
                raise Problem(429, "too many votes", advice, {"Retry-After": "10"})
            return number, owner, new

        number, owner, new = await written(work)
        return JSONResponse({"vote": number, **await standing_of(owner)}, 201 if new else 200)

    @app.post(f"{PATH}/undo", **told(UndoRequest, UndoAnswer))
    async def undo(request: Request) -> Response:
        """Undo a vote; the showing can then get another. An undone vote is never exported."""
        asked = await read_json_request(request, UndoRequest)
        voter = await comparing.owner(request)
        owner = await written(partial(ledger.undo_vote, showing=asked.showing, at=time.time(), voter=voter))
        return JSONResponse({"showing": asked.showing, **await standing_of(owner)})

    @app.post(f"{PATH}/prompt", **told(PromptRequest, NextAnswer))
    async def prompt(request: Request) -> Response:
        """Begin with two pictures for a person's own prompt. After each choice the rejected picture is replaced by
        another."""
        asked = await read_json_request(request, PromptRequest)
        if comparing.generator is None:
            raise Problem(
                404, "unknown id", "this service has no generator, which own prompts need; start it with --generator"
            )
        text = (asked.prompt or "").strip()
        check_prompts([text], service.config.max_prompt_chars)
        voter = await comparing.voter(request, checked_name(asked.voter))
        return await given(voter, await comparing.begin(request, voter, text))

    @app.post(f"{PATH}/join", **told(JoinRequest, JoinAnswer))
    async def join(request: Request) -> Response:
        """Exchange an invitation, which works once, for a key in a cookie that scripts cannot read."""
        asked = await read_json_request(request, JoinRequest)
        found = await written(partial(redeem, token=asked.invite))
        if found is None:
            raise Problem(403, "not invited", "this link was used before, or is not valid; ask for another")
        answer = JSONResponse({"voter": found[0]})
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, found[1], KEY_S, path=PATH, secure=secure, httponly=True, samesite="strict")
        return answer

    async def written(work: Callable[[Connection], Value]) -> Value:
        """The result of `work`, once its writes are durable. Raise Problem if it fails."""
        try:
            return await asyncio.wrap_future(comparing.database.submit(work))
        except ledger.UnknownShowing as error:
            raise Problem(404, "unknown id", str(error)) from None
        except ledger.Conflict as error:
            raise Problem(409, "conflict", str(error)) from None

    kinds: dict[int | str, dict[str, Any]] = {
        200: {"description": "The picture", "content": {"image/webp": {}}},
        304: {"description": "The picture has not changed"},
    }
    refused: dict[int | str, dict[str, Any]] = {404: REFUSED[404]}
    refused |= {status: ERRORS[status] for status in (401, 422, 429, 500, 504)}

    @app.get(f"{PATH}/pictures/{{id}}", response_class=Response, responses=kinds | refused)
    async def picture(
        request: Request, id: str, size: Annotated[int, Field(ge=1, le=FULL)] | Literal["full"] = 512
    ) -> Response:
        """A picture that people compare. Its longer side has about `size` pixels, or its original size if `size` is
        full."""
        one = await comparing.candidate(id)
        if one is None:
            raise Problem(404, "unknown id", "there is no picture with that id to compare")
        try:
            found = await comparing.views.get(request, one, FULL if size == "full" else size)
        except ImageError as error:
            fields = {"request_id": request.state.request_id, "error": str(error)}
            log.warning("no picture to compare", extra={"fields": fields})
            raise Problem(404, "no picture", f"the picture cannot be read: {error.reason}") from None
        tag = f'"{hashlib.sha256(found).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": f"private, max-age={PICTURE_S}"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(found, headers=headers, media_type="image/webp")

    @app.get(f"{PATH}/summary", responses={status: ERRORS[status] for status in (401, 500, 504)})
    async def summary() -> dict[str, object]:
        """A summary of all votes: counts, agreement, position bias and speed, and every update of the head."""
        return (await comparing.read(summarise)).to_json()


def _item(showing: Showing, pictures: dict[str, ledger.Picture]) -> dict[str, object]:
    sides = {
        side: {"picture": f"{PATH}/pictures/{id}", "width": pictures[id].width, "height": pictures[id].height}
        for side, id in (("left", showing.left), ("right", showing.right))
    }
    return {"showing": showing.id, "prompt": showing.prompt, **sides}
