"""Read requests from JSON or multipart bodies, and refuse bodies that are invalid or too much.

Knows no model and no engine.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from runtime.config import ServiceConfig
from runtime.service.answering.requests import (
    JSON,
    KINDS,
    MULTIPART,
    SIDES,
    EmbedRequest,
    Picture,
    ScoreRequest,
    SimilarRequest,
    UrlPicture,
    picture_of,
    url_picture,
)
from runtime.service.network.errors import Problem, invalid

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")

# A larger body is parsed in a thread: base64 of 4 MB takes about 10 ms.
THREAD_BYTES = 1 << 20
# Limits of a JSON body. A vector may have 65,536 numbers, and prompts may be full of commas. Strings are names of
# fields, pictures and prompts, and few.
MAX_COMMAS = 300_000
MAX_QUOTES = 20_000
# The most fields of a form that are not items.
MORE_FIELDS = 16


class Items(NamedTuple):
    """The items of a request to score or embed, and the outputs that it requests."""

    prompts: list[str]
    pictures: list[Picture]
    outputs: list[str] | None  # None if it names none
    sources: Sequence[Picture | None] = ()


async def read_items(request: Request, config: ServiceConfig, model: type[ScoreRequest | EmbedRequest]) -> Items:
    """The items of a form, or of a JSON body of that model. Raise Problem for too few or too many."""
    if media_type(request) == MULTIPART:
        items = await read_form(request, config.max_items, model is ScoreRequest)
    else:
        asked = await read_json_request(request, model)
        outputs, sources = None, list[Picture | None]()
        if isinstance(asked, ScoreRequest):
            outputs, found = asked.outputs, iter(await decoded([one for one in asked.sources if one], config))
            sources = [next(found) if one else None for one in asked.sources]
        items = Items(asked.prompts, await decoded(asked.images, config), outputs, sources)
    if model is EmbedRequest:
        check_count(len(items.pictures) + len(items.prompts), config)
    else:
        check_count(len(items.pictures), config)
        if len(items.prompts) not in (0, 1, len(items.pictures)):
            raise invalid(
                f"got {len(items.prompts)} prompts for {len(items.pictures)} pictures; wanted one, or as many"
            )
    check_prompts(items.prompts, config.max_prompt_chars)
    return items


async def read_similar(request: Request, config: ServiceConfig) -> SimilarRequest:
    """A query of the catalogue, from a form or from JSON. Raise Problem for too few or too many items."""
    if media_type(request) == MULTIPART:
        asked = await read_similar_form(request, config.max_items)
    else:
        asked = await read_json_request(request, SimilarRequest)
    named = [*asked.likes, *asked.dislikes]
    check_count(len(named), config)
    check_prompts([like.text for like in named if like.text is not None], config.max_prompt_chars)
    return asked


async def read_json_request(request: Request, model: type[Model]) -> Model:
    """The body as that model. Raise Problem if it is something else."""
    kind = media_type(request)
    if kind != JSON:
        raise Problem(415, "wrong type", f"got a body of type {kind[:100] or 'none'}; wanted {JSON}")
    body = await request.body()
    return await in_thread_if_large(len(body), lambda: read_json(model, body))


def read_json(model: type[Model], body: bytes) -> Model:
    """A request of that model. Raise Problem 422, which names the wrong field."""
    _require_short(body)
    with _faults_named():
        return model.model_validate_json(body, strict=True)


@contextmanager
def _faults_named() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise invalid(
            *fault_texts(error.errors(include_input=False, include_url=False, include_context=False))
        ) from None


def fault_texts(faults: Sequence[Mapping[str, Any]]) -> list[str]:
    """The errors that pydantic found, each with the field's name in front."""
    return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in faults]


def _require_short(body: bytes) -> None:
    """Raise Problem 422 for a body with so many values that parsing or describing errors would take long."""
    if body.count(b",") > MAX_COMMAS:
        raise invalid(f"the body has more than {MAX_COMMAS:,} values; send fewer in one request")
    if body.count(b'"') > MAX_QUOTES and body.count(b'"') - body.count(b'\\"') > MAX_QUOTES:
        raise invalid(f"the body has more than {MAX_QUOTES // 2:,} strings; send fewer in one request")


@asynccontextmanager
async def _form(request: Request, max_items: int, per_item: int = 1) -> AsyncIterator[FormData]:
    """The request's form, with up to so many files for each item. Raise Problem 413 for too many fields, 422 for an
    unknown character set, and 507 if there is no room for the files."""
    try:
        async with request.form(
            max_files=per_item * max_items + 1, max_fields=(1 + per_item) * max_items + MORE_FIELDS
        ) as form:
            yield form
    except HTTPException as error:  # starlette's, which can be told apart only by their text
        if error.detail.startswith("Too many"):
            raise Problem(
                413, "too many items", f"{error.detail} {max_items} items are allowed in one request"
            ) from None
        raise
    except (LookupError, UnicodeError) as error:
        raise invalid(f"the form cannot be read: {error}") from None
    except OSError as error:
        reason = f"the temporary folder of the service takes no more files ({error.strerror})"
        raise Problem(507, "no room", reason, {"Retry-After": "30"}) from error


async def read_form(request: Request, max_items: int, scores: bool = False) -> Items:
    """The items of a multipart form, with files before other pictures. Raises starlette's HTTPException if it is not a
    form.

    The fields `image` and `images` mean the same, and so do `prompt` and `prompts`, `url` and `urls`. If it `scores`,
    there are also `output` or `outputs`, and `source` or `sources`: files, addresses, or an empty text for a picture
    without a source.
    """
    prompts, files, urls, outputs = list[str](), list[Picture](), list[Picture](), list[str]()
    sources = list[Picture | None]()
    async with _form(request, max_items, 2 if scores else 1) as form:
        for given, value in form.multi_items():
            name = given.removesuffix("s")
            if name not in ("image", "prompt", "url") and not (scores and name in ("output", "source")):
                known = "images (files), prompts, urls" + ", outputs, sources" * scores
                raise invalid(f"{given[:50]}: unknown field; known are {known}")
            if name != "source":
                _require_file(given, value, name == "image")
            if isinstance(value, UploadFile):
                side: list[Picture] | list[Picture | None] = files if name == "image" else sources
                if len(side) > max_items:  # checked before more of them are read
                    raise Problem(413, "too many items", f"Too many files: at most {max_items} allowed in one request")
                side.append(await value.read())
            elif name == "source":
                sources.append(url_picture(value) if value else None)
            elif name == "url":
                urls.append(url_picture(value))
            else:
                (prompts if name == "prompt" else outputs).append(value)
    return Items(prompts, [*files, *urls], outputs or None, sources)


async def read_similar_form(request: Request, max_items: int) -> SimilarRequest:
    """A query of the catalogue, from the fields of a multipart form that requests.SIMILAR_FORM names."""
    sides: dict[str, list[dict[str, str | bytes]]] = {side: [] for side in SIDES}
    wish: dict[str, str | UploadFile] = {}
    async with _form(request, max_items) as form:
        for given, value in form.multi_items():
            side, _, kind = given.removesuffix("s").partition("_")
            if side in sides and kind in ("", *KINDS):
                _require_file(given, value, not kind)
                sides[side].append({kind: value} if isinstance(value, str) else {"image": await value.read()})
            elif given in wish:
                raise invalid(f"{given[:50]}: given more than once; wanted it once")
            else:
                wish[given] = value
    with _faults_named():
        return SimilarRequest.model_validate({"likes": sides["like"], "dislikes": sides["dislike"], **wish})


def _require_file(name: str, value: str | UploadFile, wanted: bool) -> None:
    if isinstance(value, UploadFile) != wanted:
        raise invalid(f"{name}: wanted {'a file' if wanted else 'text, not a file'}")


async def decoded(given: Sequence[str | UrlPicture], config: ServiceConfig) -> list[Picture]:
    """The bytes of the pictures, after a check that there are not too many. The list may be empty."""
    check_count(len(given), config, least=0)
    size = sum(len(picture) for picture in given if isinstance(picture, str))
    return await in_thread_if_large(size, lambda: [picture_of(picture) for picture in given])


async def in_thread_if_large(size_bytes: int, compute: Callable[[], Value]) -> Value:
    return await asyncio.to_thread(compute) if size_bytes > THREAD_BYTES else compute()


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_count(count: int, config: ServiceConfig, least: int = 1) -> None:
    """Raise Problem if there are fewer items than `least`, or more than the limit."""
    if count < least:
        raise invalid("the request has no items; wanted at least one")
    if count > config.max_items:
        raise Problem(413, "too many items", f"got {count}, at most {config.max_items} allowed in one request")


def check_prompts(prompts: Sequence[str], max_chars: int) -> None:
    """Raise Problem 422 for a prompt that is too long or not valid Unicode."""
    for i, prompt in enumerate(prompts):
        if len(prompt) > max_chars:
            raise invalid(f"prompt {i}: {len(prompt)} characters, at most {max_chars} allowed")
        if not prompt.isascii() and any("\ud800" <= c <= "\udfff" for c in prompt):
            raise invalid(f"prompt {i}: holds half of a surrogate pair; it is not valid Unicode")
