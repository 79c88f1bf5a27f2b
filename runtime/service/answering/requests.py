"""The shapes of the service's requests and answers, as JSON and as forms.

Pictures are base64 in JSON, or files in multipart forms. Invalid base64 is an error of only that item. Knows no model
and no network.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from pydantic.json_schema import SkipJsonSchema

from embed.inputs.base64_text import from_base64
from embed.inputs.images import ImageError
from runtime.config import POPULARITY_WEIGHT

# A red pixel, so that the examples of the documentation work unchanged.
EXAMPLE_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
EXAMPLE_DIGEST = "6e3c8f0a" * 8

JSON, MULTIPART = "application/json", "multipart/form-data"

# Fields of forms. Each may be repeated, under its name in the singular or the plural, and may be a file or a text.
FILES = {"type": "array", "items": {"contentMediaType": "application/octet-stream"}}
TEXTS = {"description": "one or several texts"}
SOURCES = {"description": "a file, or an http(s) address; an empty text for a picture without a source"}
SIDES = ("like", "dislike")
KINDS = ("text", "id", "url")  # what a side of a query may name, in addition to files
ITEM_FORM = {"image": FILES, "url": TEXTS, "prompt": TEXTS}
SCORE_FORM = ITEM_FORM | {"output": TEXTS, "source": SOURCES}
SIMILAR_FORM = dict.fromkeys(SIDES, FILES) | {f"{side}_{kind}": TEXTS for side in SIDES for kind in KINDS}


class Closed(BaseModel):
    """A model that allows no other fields."""

    model_config = ConfigDict(extra="forbid")


def example(needs: Sequence[str] = (), **fields: Any) -> ConfigDict:
    """The `model_config` of a request, with an example that works. At least one of the lists in `needs` must not be
    empty."""
    some: list[Any] = [{"required": [name], "properties": {name: {"minItems": 1}}} for name in needs]
    return ConfigDict(json_schema_extra={"examples": [fields], **({"anyOf": some} if some else {})})


MAX_URL = 2048


class UrlPicture(Closed):
    """A picture to fetch. Its host must be on the service's list."""

    url: Annotated[str, Field(max_length=MAX_URL)]


Base64Picture = Annotated[str, Field(description="the bytes of a picture file in base64, or a data: address")]
JsonPicture = Base64Picture | UrlPicture
Picture = bytes | UrlPicture | ImageError  # ImageError for invalid base64


class ScoreRequest(Closed):
    """Pictures to score under a prompt."""

    model_config = example(prompt="a red square", images=[EXAMPLE_PICTURE, "bm8gcGljdHVyZQ=="])
    prompt: Annotated[
        str | Annotated[list[str], Field(fail_fast=True)] | None,
        Field(description="one, or one for each picture; needed if the head reads prompts"),
    ] = None
    images: Annotated[list[JsonPicture], Field(min_length=1, fail_fast=True)]
    source: Annotated[
        JsonPicture | Annotated[list[JsonPicture | None], Field(fail_fast=True)] | None,
        Field(
            description="the pictures that these were made from, such as an edit's input: one, or one or null for each"
        ),
    ] = None
    outputs: Annotated[
        list[str] | None,
        Field(
            max_length=100, fail_fast=True, description="names of outputs of a bundle with several, the main one first"
        ),
    ] = None

    @property
    def sources(self) -> Sequence[str | UrlPicture | None]:
        """No item, one, or one for each picture."""
        if self.source is None:
            return []
        return self.source if isinstance(self.source, list) else [self.source]

    @property
    def prompts(self) -> list[str]:
        """No item, one, or one for each picture."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt or []


class EmbedRequest(Closed):
    """Pictures and prompts to turn into vectors."""

    model_config = example(images=[EXAMPLE_PICTURE], prompts=["a red square"], needs=("images", "prompts"))
    images: Annotated[list[JsonPicture], Field(fail_fast=True)] = []
    prompts: Annotated[list[str], Field(fail_fast=True)] = []


class Like(Closed):
    """One thing that hits should be like or unlike. It has exactly one field besides the weight, except that a vector
    may also have an id."""

    image: Base64Picture | SkipJsonSchema[bytes] | None = None  # bytes only from forms
    url: Annotated[str, Field(max_length=MAX_URL)] | None = None
    id: (
        Annotated[
            str,
            Field(
                description="a picture of the catalogue, by name or id; with a vector, the id of the vector's picture,"
                " which is then left out of the hits"
            ),
        ]
        | None
    ) = None
    text: str | None = None
    vector: Annotated[list[FiniteFloat], Field(max_length=65_536, fail_fast=True)] | None = None
    weight: Annotated[FiniteFloat, Field(gt=0, le=100, description="its weight relative to the others")] = 1.0

    @model_validator(mode="after")
    def _one(self) -> "Like":
        given = [name for name, value in self if value is not None and name != "weight"]
        if len(given) != 1 and given != ["id", "vector"]:
            raise ValueError(f"wanted exactly one of image, url, id, text, vector; got {given or 'none'}")
        return self


class SimilarRequest(Closed):
    """Find pictures of the catalogue that are similar and popular. The fields have the meaning of the command's
    options."""

    model_config = example(likes=[{"text": "a dog"}], k=3, popularity_weight=0.3)
    likes: Annotated[list[Like], Field(min_length=1, fail_fast=True)]
    dislikes: Annotated[list[Like], Field(fail_fast=True)] = []
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    popularity_weight: Annotated[
        FiniteFloat, Field(ge=-1e6, le=1e6, description="a blended score is similarity + this * percentile / 100")
    ] = POPULARITY_WEIGHT
    min_percentile: Annotated[
        FiniteFloat, Field(ge=0, le=100, description="the lowest percentile of popularity of a hit")
    ] = 0.0
    where: (
        Annotated[str, Field(max_length=2000, description="such as: category = 'Objects' and year >= 2024")] | None
    ) = None
    min_similarity_percentile: Annotated[
        FiniteFloat, Field(ge=0, le=100, description="the lowest percentile of similarity of a hit, among all pictures")
    ] = 0.0
    dedup: (
        Annotated[
            FiniteFloat, Field(ge=-1, le=1, description="leave out hits whose cosine with a better one is above this")
        ]
        | None
    ) = None
    group_by: (
        Annotated[str, Field(max_length=200, description="a column, such as the creator; see per_group")] | None
    ) = None
    per_group: Annotated[int, Field(ge=1, le=1000, description="the most hits for each value of group_by")] = 1
    include_query: Annotated[bool, Field(description="also give the pictures of the query itself as hits")] = False
    front: Annotated[
        bool, Field(description="give all pictures to which no other is superior in both similarity and popularity")
    ] = False


class ItemError(BaseModel):
    """The reason why one picture has no answer."""

    stage: str
    reason: str
    message: str


class Values(BaseModel):
    """The values of one output of a bundle for a picture."""

    score: float | None = None
    uncertainty: Annotated[float | None, Field(description="standard error of the score, if the head has one")] = None
    calibrated_score: float | None = None
    percentile: Annotated[
        float | None, Field(description="0 to 100: the share of the reference scores that are lower")
    ] = None


class ScoreItem(Values):
    """One picture's score, or its error."""

    ok: bool
    outputs: Annotated[dict[str, Values] | None, Field(description="the requested outputs by name")] = None
    error: ItemError | None = None


class RankItem(ScoreItem):
    """One picture's score and rank, or its error."""

    rank: Annotated[int | None, Field(description="1 is the preferred picture")] = None
    probability: Annotated[
        float | None, Field(description="probability of being the preferred one of all pictures that are ok")
    ] = None


class EmbedItem(BaseModel):
    """One vector of unit length, or its error."""

    ok: bool
    embedding: list[float] | None = None
    id: Annotated[
        str | None, Field(description="for a picture: the hash of its content, which is its id in a catalogue")
    ] = None
    error: ItemError | None = None


class Origin(BaseModel):
    """The origin, which is part of every answer."""

    bundle: Annotated[str, Field(description="digest of the bundle that gave the answer", examples=[EXAMPLE_DIGEST])]
    precision: Annotated[str, Field(examples=["fp32"])]


class ScoreAnswer(Origin):
    """One item for each picture, in the order of the request."""

    items: list[ScoreItem]


class RankAnswer(Origin):
    """One item for each picture, in the order of the request, and the order of preference."""

    items: list[RankItem]
    order: Annotated[list[int], Field(description="the numbers of the pictures that are ok, the preferred one first")]


class EmbedAnswer(Origin):
    """One item for each picture and prompt, in the order of the request."""

    images: list[EmbedItem]
    prompts: list[EmbedItem]


class HitItem(BaseModel):
    """One hit. blended_score = similarity + popularity_weight * popularity."""

    id: str
    key: Annotated[str, Field(description="the picture's name in the catalogue")]
    similarity: float
    popularity: Annotated[float, Field(description="percentile / 100")]
    percentile: float
    count: float | None
    rate: Annotated[float | None, Field(description="count / exposures, if the catalogue has exposures")]
    title: Annotated[
        str | None, Field(description="the catalogue's column title, or its column prompt if there is no title")
    ]
    blended_score: float
    metadata: Annotated[dict[str, Any], Field(description="the other columns of the catalogue")]
    thumbnail: Annotated[
        str, Field(description="path of a small version of the picture", examples=["/v1/thumbnails/6e3c8f"])
    ]


class SimilarAnswer(Origin):
    """The hits, best first."""

    catalogue: Annotated[str, Field(description="version of the catalogue", examples=["v000001"])]
    hits: list[HitItem]


class ErrorBody(BaseModel):
    """An error. `reason` is one of a few fixed phrases for programs, and `message` is for people."""

    reason: str
    message: str


class ErrorAnswer(BaseModel):
    """The answer to every request that failed."""

    error: ErrorBody
    request_id: str


def picture_of(given: str | bytes | UrlPicture) -> Picture:
    """A picture's bytes, decoded from base64 if needed. Raise ImageError for invalid base64."""
    if not isinstance(given, str):
        return given
    try:
        return from_base64(given)
    except ImageError as error:
        return error


def message_of(error: ImageError) -> str:
    """The message about a picture's error for the client. It has at most the first few bytes of the picture."""
    return str(error).encode("utf-8", "backslashreplace").decode()[:500]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The body cannot be read",
        401: "The token is missing or wrong",
        403: "A page of another site sent the request in the name of a person who is signed in",
        408: "The body arrived too slowly",
        413: "Too many bytes or items",
        415: "The body has another type",
        422: "A field is wrong; the message names it",
        429: "Too many requests are waiting; try again after the seconds in Retry-After",
        500: "A fault of the service; its log says more",
        504: "The deadline has passed",
        507: "The service has no room for the files of a form",
    }.items()
}


def url_picture(url: str) -> Picture:
    """A picture to fetch. Raise ImageError if the address is too long."""
    if len(url) > MAX_URL:
        return ImageError("read", "bad url", f"{len(url)} characters, at most {MAX_URL} allowed")
    return UrlPicture(url=url)


def described(
    request: type[BaseModel], answer: type[BaseModel], form: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """The description of a route for FastAPI: the bodies that it reads, and its answers.

    A form has the fields of the model, except those in `form`, which replace them.
    """
    content: dict[str, object] = {JSON: {"schema": {"$ref": f"#/components/schemas/{request.__name__}"}}}
    if form:
        named = {spelled: schema for name, schema in form.items() for spelled in (name, f"{name}s")}
        fields = request.model_json_schema()["properties"]
        others = {name: fields[name].get("anyOf", [fields[name]])[0] for name in fields if name not in named}
        schema = {"type": "object", "properties": named | others, "additionalProperties": False}
        content[MULTIPART] = {"schema": schema}
    body = {"requestBody": {"required": True, "content": content}}
    return {"response_model": answer, "responses": ERRORS, "openapi_extra": body}
