"""What the service takes and gives: the shapes of its JSON, and requests read from JSON or multipart bodies.

Pictures come as base64 in JSON or as files in multipart forms; a picture that is no base64 is that item's error and
nobody else's. Knows no model and no network.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from embed.inputs.base64_text import from_base64
from embed.inputs.images import ImageError
from runtime.service.network.errors import Problem, invalid

# A red pixel, so that the examples of the documentation work as they are.
EXAMPLE_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
EXAMPLE_DIGEST = "6e3c8f0a" * 8

JSON, MULTIPART = "application/json", "multipart/form-data"

Model = TypeVar("Model", bound=BaseModel)

# Of a body in JSON. A vector may have 65,536 numbers, and prompts may be full of commas; strings are names of fields,
# pictures and prompts, and few.
MAX_COMMAS = 300_000
MAX_QUOTES = 20_000


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class UrlPicture(_Closed):
    """A picture to fetch; its host must be one that the service was started with."""

    url: Annotated[str, Field(max_length=2048)]


Base64Picture = Annotated[str, Field(description="the bytes of a picture file in base64, or a data: address")]
JsonPicture = Base64Picture | UrlPicture
Picture = bytes | UrlPicture | ImageError  # the last where it is no base64


class ScoreRequest(_Closed):
    """Pictures to score under a prompt."""

    model_config = _example(prompt="a red square", images=[EXAMPLE_PICTURE, "bm8gcGljdHVyZQ=="])
    prompt: Annotated[
        str | Annotated[list[str], Field(fail_fast=True)] | None,
        Field(description="one, or one for each picture; needed where the head reads it"),
    ] = None
    images: Annotated[list[JsonPicture], Field(min_length=1, fail_fast=True)]

    @property
    def prompts(self) -> list[str]:
        """None, one, or one for each picture."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt or []


class EmbedRequest(_Closed):
    """Pictures and prompts to turn into vectors."""

    model_config = _example(images=[EXAMPLE_PICTURE], prompts=["a red square"])
    images: Annotated[list[JsonPicture], Field(fail_fast=True)] = []
    prompts: Annotated[list[str], Field(fail_fast=True)] = []


class Like(_Closed):
    """One thing that a query names; exactly one field."""

    image: Base64Picture | None = None
    url: Annotated[str, Field(max_length=2048)] | None = None
    id: Annotated[str, Field(description="of a picture of the catalogue: its name or id")] | None = None
    text: str | None = None
    vector: Annotated[list[FiniteFloat], Field(max_length=65_536, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Like":
        if len(given := [name for name, value in self if value is not None]) != 1:
            raise ValueError(f"wanted exactly one of image, url, id, text, vector; got {given or 'none'}")
        return self


class SimilarRequest(_Closed):
    """Find pictures of the catalogue that are similar and popular; the fields mean what the command's options do."""

    model_config = _example(likes=[{"text": "a dog"}], k=3, popularity_weight=0.3)
    likes: Annotated[list[Like], Field(min_length=1, fail_fast=True)]
    dislikes: Annotated[list[Like], Field(fail_fast=True)] = []
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    popularity_weight: Annotated[FiniteFloat, Field(ge=-1e6, le=1e6)] = 0.0
    min_percentile: Annotated[FiniteFloat, Field(ge=0, le=100)] = 0.0
    where: (
        Annotated[str, Field(max_length=2000, description="such as: category = 'Objects' and year >= 2024")] | None
    ) = None
    dedup: Annotated[FiniteFloat, Field(ge=-1, le=1)] | None = None
    group_by: Annotated[str, Field(max_length=200)] | None = None
    per_group: Annotated[int, Field(ge=1, le=1000)] = 1
    front: Annotated[bool, Field(description="all that no other beats in similarity and popularity")] = False


class ItemError(BaseModel):
    """Why one picture has no answer."""

    stage: str
    reason: str
    message: str


class ScoreItem(BaseModel):
    """One picture's score, or its error."""

    ok: bool
    score: float | None = None
    uncertainty: Annotated[float | None, Field(description="standard error of the score, where the head has one")] = (
        None
    )
    calibrated_score: float | None = None
    percentile: float | None = None
    error: ItemError | None = None


class RankItem(ScoreItem):
    """One picture's score and place, or its error."""

    rank: Annotated[int | None, Field(description="1 is the preferred one")] = None
    probability: Annotated[float | None, Field(description="of being the preferred one of all that are ok")] = None


class EmbedItem(BaseModel):
    """One vector of unit length, or its error."""

    ok: bool
    embedding: list[float] | None = None
    error: ItemError | None = None


class _Answer(BaseModel):
    bundle: Annotated[str, Field(description="digest of the bundle that answered", examples=[EXAMPLE_DIGEST])]
    precision: Annotated[str, Field(examples=["fp32"])]


class ScoreAnswer(_Answer):
    """One item for each picture, in the order of the request."""

    items: list[ScoreItem]


class RankAnswer(_Answer):
    """One item for each picture, in the order of the request, and the order of preference."""

    items: list[RankItem]
    order: Annotated[list[int], Field(description="numbers of the pictures that are ok, the preferred one first")]


class EmbedAnswer(_Answer):
    """One item for each picture and prompt, in the order of the request."""

    images: list[EmbedItem]
    prompts: list[EmbedItem]


class HitItem(BaseModel):
    """One picture found; score = similarity + popularity_weight * popularity."""

    id: str
    key: str
    similarity: float
    popularity: float
    count: float | None
    score: float
    metadata: dict[str, Any]


class SimilarAnswer(_Answer):
    """The hits, best first."""

    catalogue: Annotated[str, Field(description="version of the catalogue", examples=["v000001"])]
    hits: list[HitItem]


class ErrorBody(BaseModel):
    """What went wrong: `reason` is one of few phrases, fit for programs; `message` is for people."""

    reason: str
    message: str


class ErrorAnswer(BaseModel):
    """The answer of every request that has no other."""

    error: ErrorBody
    request_id: str


def read_json(model: type[Model], body: bytes) -> Model:
    """A request of that model; raise Problem 422 that says which field is wrong."""
    _require_short(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False, include_context=False)
        said = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in faults]
        raise invalid(*said) from None


def _require_short(body: bytes) -> None:
    """Raise Problem 422 for a body of so many values that to read them, or say what is wrong with each, takes long."""
    if body.count(b",") > MAX_COMMAS:
        raise invalid(f"the body has more than {MAX_COMMAS:,} values")
    if body.count(b'"') > MAX_QUOTES and body.count(b'"') - body.count(b'\\"') > MAX_QUOTES:
        raise invalid(f"the body has more than {MAX_QUOTES // 2:,} strings")


def picture_of(given: str | UrlPicture) -> Picture:
    """A picture's bytes from base64; an ImageError where it is none."""
    if isinstance(given, UrlPicture):
        return given
    try:
        return from_base64(given)
    except ImageError as error:
        return error


@asynccontextmanager
async def _form(request: Request, max_items: int) -> AsyncIterator[FormData]:
    """The request's form; raise Problem 422 for a character set that is none, and 507 where files find no room."""
    try:
        async with request.form(max_files=max_items + 1, max_fields=2 * max_items + 2) as form:
            yield form
    except (LookupError, UnicodeError) as error:
        raise invalid(f"the form cannot be read: {error}") from None
    except OSError as error:
        reason = f"the temporary folder of the service takes no more files ({error.strerror})"
        raise Problem(507, "no room", reason, {"Retry-After": "30"}) from error


async def read_form(request: Request, max_items: int) -> tuple[list[str], list[Picture]]:
    """The prompts of a multipart form, and its pictures, the files first; starlette's HTTPException where it is none.

    The fields `image` and `images`, `prompt` and `prompts`, `url` and `urls` are the same.
    """
    prompts, files, urls = list[str](), list[Picture](), list[Picture]()
    async with _form(request, max_items) as form:
        for given, value in form.multi_items():
            name = given.removesuffix("s")
            if name not in ("image", "prompt", "url"):
                raise invalid(f"{given[:50]}: unknown field; known are images (files), prompts, urls")
            if isinstance(value, UploadFile) != (name == "image"):
                raise invalid(f"{name}s: wanted {'a file' if name == 'image' else 'text, not a file'}")
            if isinstance(value, UploadFile):
                files.append(await value.read())
            elif name == "prompt":
                prompts.append(value)
            else:
                urls.append(UrlPicture(url=value[:2048]))
    return prompts, [*files, *urls]


def check_prompts(prompts: Sequence[str], max_chars: int) -> None:
    """Raise Problem 422 for a prompt that is too long or no text."""
    for i, prompt in enumerate(prompts):
        if len(prompt) > max_chars:
            raise invalid(f"prompt {i}: {len(prompt)} characters, at most {max_chars} allowed")
        if not prompt.isascii() and any("\ud800" <= c <= "\udfff" for c in prompt):
            raise invalid(f"prompt {i}: holds half of a surrogate pair; it is not valid Unicode")


def request_body(model: type[BaseModel], form_fields: Mapping[str, object]) -> dict[str, object]:
    """The part of a route's OpenAPI that says which bodies it reads; without fields, no form."""
    content: dict[str, object] = {JSON: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    if form_fields:
        schema = {"type": "object", "properties": form_fields, "additionalProperties": False}
        content[MULTIPART] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}
