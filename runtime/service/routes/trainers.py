"""Scores in the JSON formats in which trainers of image generators call remote rewards, chosen by `--dialect`.

    flow-factory   POST /compute              {"prompt": [...], "image": [base64]} -> {"rewards": [...]}
    unirl          POST /score, GET /rewards  {"requests": [{"history": [{"text", "image_b64"}], "required_rewards"}]}
                                              -> {"results": [{reward: {reward: number}}], "errors": [{reward: text}]}
    both           GET /health                whether the service is ready, and the names of rewards

A reward is an output of the bundle by its name: `score`, and if the bundle has them `percentile` and others. With
several heads each head also has its own names, such as `aesthetic` and `aesthetic_percentile`. A picture that cannot be
scored has null, or no number, and an error: a trainer would learn from 0.0 as from any other score. No pickle is read
or written, because it would let anyone who reaches the port run code.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from embed.inputs.images import ImageError
from embed.spec import InputError
from runtime.scoring.outputs import ALL
from runtime.scoring.sources import for_each
from runtime.service.answering.engine import Engine
from runtime.service.answering.reading import check_count, check_prompts, decoded, read_json_request
from runtime.service.answering.requests import (
    ERRORS,
    EXAMPLE_PICTURE,
    Base64Picture,
    Closed,
    Picture,
    described,
    example,
    message_of,
)
from runtime.service.answering.state import Service
from runtime.service.network.errors import Problem, invalid

SCORE = "score"
Outcome = dict[str, float] | ImageError


class ComputeRequest(Closed):
    """Pictures to score, each under its prompt."""

    model_config = example(prompt=["a red square"], image=[EXAMPLE_PICTURE])
    prompt: Annotated[list[str], Field(min_length=1, fail_fast=True)]
    image: Annotated[list[Base64Picture], Field(min_length=1, fail_fast=True)]
    video: Annotated[None, Field(description="ignored")] = None
    condition_images: Annotated[
        list[Base64Picture | Annotated[list[Base64Picture], Field(max_length=1)] | None] | None,
        Field(description="the source picture of each picture, at most one, for heads that read sources"),
    ] = None
    condition_videos: Annotated[None, Field(description="ignored")] = None
    kwargs: Annotated[dict[str, Any] | None, Field(description="`reward` names a reward; all others are ignored")] = (
        None
    )

    @property
    def sources(self) -> list[str | None]:
        """An empty list, or the source or None of each picture."""
        return [(one[0] if one else None) if isinstance(one, list) else one for one in self.condition_images or ()]


class ComputeAnswer(BaseModel):
    """One reward for each picture."""

    rewards: Annotated[list[float | None], Field(description="null for an error")]
    errors: list[str | None]
    error: Annotated[str | None, Field(description="the first error, which ends Flow-Factory's client")] = None


class Turn(BaseModel):
    """A picture and its prompt."""

    text: str
    image_b64: Base64Picture | None = None


class RewardRequest(BaseModel):
    """One sample, whose last turn is scored, and the names of the wanted rewards.

    For heads that read source pictures, the source is the latest picture of the previous turns.
    """

    history: Annotated[list[Turn], Field(min_length=1, fail_fast=True)]
    required_rewards: Annotated[list[str], Field(min_length=1, max_length=100, fail_fast=True)]

    @property
    def source(self) -> str | None:
        """The source picture of the last turn's picture, or None."""
        return next((turn.image_b64 for turn in self.history[-2::-1] if turn.image_b64 is not None), None)


class RewardsRequest(BaseModel):
    """Samples to score."""

    model_config = example(
        requests=[
            {"history": [{"text": "a red square", "image_b64": EXAMPLE_PICTURE}], "required_rewards": [SCORE]},
        ]
    )
    requests: Annotated[list[RewardRequest], Field(min_length=1, fail_fast=True)]


class RewardsAnswer(BaseModel):
    """One result and one set of errors for each sample, by the rewards' names."""

    results: list[dict[str, dict[str, float]]]
    errors: list[dict[str, str]]


class RewardNames(BaseModel):
    """The names of all rewards."""

    rewards: list[str]


class Health(BaseModel):
    """The service is ready, and gives these rewards."""

    status: str
    rewards: dict[str, list[str]]


SHAPES: dict[str, tuple[type[BaseModel], ...]] = {"flow-factory": (ComputeRequest,), "unirl": (RewardsRequest,)}


def add_dialects(app: FastAPI, service: Service) -> None:
    """Add the routes of the configured dialects."""
    if "flow-factory" in service.config.dialects:
        _add_flow_factory(app, service)
    if "unirl" in service.config.dialects:
        _add_unirl(app, service)
    if service.config.dialects:

        @app.get("/health", response_model=Health, responses={503: ERRORS[500]})
        async def health() -> Response:
            """Whether this process is ready, and the names of rewards."""
            try:
                await service.ready()
            except Exception as error:
                raise Problem(503, "not ready", service.told(error)) from None
            rewards = {name: [f"{name}:ready"] for name in _rewards(service.room.engine)}
            return JSONResponse({"status": "ok", "rewards": rewards})


def _add_flow_factory(app: FastAPI, service: Service) -> None:
    @app.post("/compute", **described(ComputeRequest, ComputeAnswer))
    async def compute(request: Request) -> Response:
        """Compute rewards of pictures, in the format of Flow-Factory's remote rewards."""
        asked = await read_json_request(request, ComputeRequest)
        wanted = str((asked.kwargs or {}).get("reward", SCORE))
        if len(asked.prompt) != len(asked.image):
            raise invalid(f"got {len(asked.prompt)} prompts for {len(asked.image)} pictures; wanted one for each")
        if len(asked.sources) not in (0, len(asked.image)):
            raise invalid(
                f"got condition_images of {len(asked.sources)} for {len(asked.image)} pictures; wanted as many"
            )
        pictures = await decoded(asked.image, service.config)
        sources = await _sources(service, asked.sources)
        known, found = await _scored(service, request, asked.prompt, pictures, sources)
        if wanted not in known:
            raise invalid(f"kwargs.reward: {_unknown(wanted, known)}")
        errors = [message_of(one) if isinstance(one, ImageError) else None for one in found]
        answer: dict[str, object] = {"rewards": [None if isinstance(one, ImageError) else one[wanted] for one in found]}
        if failed := [f"picture {i}: {error}" for i, error in enumerate(errors) if error is not None]:
            answer["error"] = failed[0]
        return JSONResponse({**answer, "errors": errors})


def _add_unirl(app: FastAPI, service: Service) -> None:
    @app.post("/score", **described(RewardsRequest, RewardsAnswer))
    async def score(request: Request) -> Response:
        """Compute rewards of samples by name, in the format of UniRL's reward service."""
        asked = (await read_json_request(request, RewardsRequest)).requests
        turns = [one.history[-1] for one in asked]
        given = await decoded([turn.image_b64 or "" for turn in turns], service.config)
        missing = ImageError("read", "no picture", "the last turn of the history has no image_b64")
        pictures = [missing if turn.image_b64 is None else one for turn, one in zip(turns, given, strict=True)]
        # Earlier pictures of a conversation are ignored by heads that read no sources.
        reads = service.room.engine.scorer.reads_source
        sources = await _sources(service, [one.source for one in asked] if reads else [])
        known, found = await _scored(service, request, [turn.text for turn in turns], pictures, sources)
        results, errors = [], []
        for one, outcome in zip(asked, found, strict=True):
            named = list(dict.fromkeys(one.required_rewards))
            fault = message_of(outcome) if isinstance(outcome, ImageError) else None
            faults = {name: fault or _unknown(name, known) for name in named if fault or name not in known}
            errors.append(faults)
            results.append(
                {} if isinstance(outcome, ImageError) else {n: {n: outcome[n]} for n in named if n not in faults}
            )
        return JSONResponse({"results": results, "errors": errors})

    @app.get("/rewards", response_model=RewardNames, responses={401: ERRORS[401]})
    async def rewards() -> Response:
        """The names of the rewards."""
        return JSONResponse({"rewards": list(_rewards(service.room.engine))})


async def _sources(service: Service, given: Sequence[str | None]) -> list[Picture | None]:
    """The source pictures, decoded from base64."""
    found = iter(await decoded([one for one in given if one is not None], service.config))
    return [None if one is None else next(found) for one in given]


async def _scored(
    service: Service,
    request: Request,
    prompts: Sequence[str],
    pictures: Sequence[Picture],
    given: Sequence[Picture | None],
) -> tuple[Sequence[str], list[Outcome]]:
    """The names of the outputs, and for each picture under its prompt their values, or its error."""
    check_count(len(pictures), service.config)
    check_prompts(prompts, service.config.max_prompt_chars)
    size_bytes = sum(len(one) for one in (*pictures, *given) if isinstance(one, bytes))
    async with service.work(request, len(pictures), size_bytes) as (engine, job):
        try:
            sources: Sequence[Picture | None] = for_each(given, len(pictures), engine.scorer.named)
        except InputError as error:
            raise invalid(f"condition_images: {error}") from None
        found = await engine.score(job, prompts, pictures, sources)
        request.state.log = service.count(found)
        rewards = _rewards(engine)
        return list(rewards), [
            one if isinstance(one, ImageError) else {name: one[there] for name, there in rewards.items()}
            for one in found
        ]


def _rewards(engine: Engine) -> dict[str, str]:
    """The name in the graphs for each reward: the first head's outputs under their plain names, then all under their
    own."""
    named = engine.scorer.named
    return named.columns(None) | named.columns([ALL])


def _unknown(name: str, known: Sequence[str]) -> str:
    return f"unknown reward {name[:100]!r}; this service has {', '.join(known)}"
