"""What the service takes and gives: the shapes of its JSON and of its forms.

Pictures come as base64 in JSON or as files in multipart forms; a picture that is no base64 is that item's error and
nobody else's. Knows no model and no network.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from pydantic.json_schema import SkipJsonSchema

from embed.inputs.base64_text import from_base64
from embed.inputs.images import ImageError
from runtime.config import POPULARITY_WEIGHT

# A red pixel, so that the examples of the documentation work as they are.
EXAMPLE_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
EXAMPLE_DIGEST = "6e3c8f0a" * 8

JSON, MULTIPART = "application/json", "multipart/form-data"

# Fields of forms. Each may come again and again, under its name in the singular or in the plural. What is sent in one
# is a file or a text, whatever its sender took it for: there is no type to state.
FILES = {"type": "array", "items": {"contentMediaType": "application/octet-stream"}}
TEXTS = {"description": "a text, or several"}
SOURCES = {"description": "a file, or an http(s) address; an empty text for a picture that was made from none"}
SIDES = ("like", "dislike")
KINDS = ("text", "id", "url")  # of what a side names, beside files
ITEM_FORM = {"image": FILES, "url": TEXTS, "prompt": TEXTS}
SCORE_FORM = ITEM_FORM | {"output": TEXTS, "source": SOURCES}
SIMILAR_FORM = dict.fromkeys(SIDES, FILES) | {f"{side}_{kind}": TEXTS for side in SIDES for kind in KINDS}


class Closed(BaseModel):
    """What has no other fields than those named."""

    model_config = ConfigDict(extra="forbid")


def example(needs: Sequence[str] = (), **fields: Any) -> ConfigDict:
    """The `model_config` of a request: one that works as it stands, and lists of which one must hold something."""
    some: list[Any] = [{"required": [name], "properties": {name: {"minItems": 1}}} for name in needs]
    return ConfigDict(json_schema_extra={"examples": [fields], **({"anyOf": some} if some else {})})


MAX_URL = 2048


class UrlPicture(Closed):
    """A picture to fetch; its host must be one that the service was started with."""

    url: Annotated[str, Field(max_length=MAX_URL)]


Base64Picture = Annotated[str, Field(description="the bytes of a picture file in base64, or a data: address")]
JsonPicture = Base64Picture | UrlPicture
Picture = bytes | UrlPicture | ImageError  # the last where it is no base64


class ScoreRequest(Closed):
    """Pictures to score under a prompt."""

    model_config = example(prompt="a red square", images=[EXAMPLE_PICTURE, "bm8gcGljdHVyZQ=="])
    prompt: Annotated[
        str | Annotated[list[str], Field(fail_fast=True)] | None,
        Field(description="one, or one for each picture; needed where the head reads it"),
    ] = None
    images: Annotated[list[JsonPicture], Field(min_length=1, fail_fast=True)]
    source: Annotated[
        JsonPicture | Annotated[list[JsonPicture | None], Field(fail_fast=True)] | None,
        Field(description="what the pictures were made from, such as an edit's input: one, or one or null for each"),
    ] = None
    outputs: Annotated[
        list[str] | None,
        Field(max_length=100, fail_fast=True, description="of a bundle with several: their names, the main one first"),
    ] = None

    @property
    def sources(self) -> Sequence[str | UrlPicture | None]:
        """None, one, or one for each picture."""
        if self.source is None:
            return []
        return self.source if isinstance(self.source, list) else [self.source]

    @property
    def prompts(self) -> list[str]:
        """None, one, or one for each picture."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt or []


class EmbedRequest(Closed):
    """Pictures and prompts to turn into vectors."""

    model_config = example(images=[EXAMPLE_PICTURE], prompts=["a red square"], needs=("images", "prompts"))
    images: Annotated[list[JsonPicture], Field(fail_fast=True)] = []
    prompts: Annotated[list[str], Field(fail_fast=True)] = []


class Like(Closed):
    """One thing that a query names; exactly one field, beside its weight, but that a vector may have an id too."""

    image: Base64Picture | SkipJsonSchema[bytes] | None = None  # bytes from forms
    url: Annotated[str, Field(max_length=MAX_URL)] | None = None
    id: (
        Annotated[
            str,
            Field(
                description="of a picture of the catalogue: its name or id; beside a vector, the id of the picture that"
                " it is of, which then is no hit"
            ),
        ]
        | None
    ) = None
    text: str | None = None
    vector: Annotated[list[FiniteFloat], Field(max_length=65_536, fail_fast=True)] | None = None
    weight: Annotated[FiniteFloat, Field(gt=0, le=100, description="how much it counts beside the others")] = 1.0

    @model_validator(mode="after")
    def _one(self) -> "Like":
        given = [name for name, value in self if value is not None and name != "weight"]
        if len(given) != 1 and given != ["id", "vector"]:
            raise ValueError(f"wanted exactly one of image, url, id, text, vector; got {given or 'none'}")
        return self


class SimilarRequest(Closed):
    """Find pictures of the catalogue that are similar and popular; the fields mean what the command's options do."""

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
        Annotated[str, Field(max_length=200, description="a column, such as the creator, whose values share hits out")]
        | None
    ) = None
    per_group: Annotated[int, Field(ge=1, le=1000, description="the most hits that one value of group_by has")] = 1
    include_query: Annotated[bool, Field(description="let the likes' and dislikes' own pictures be hits")] = False
    front: Annotated[bool, Field(description="all that no other beats in similarity and popularity")] = False


class ItemError(BaseModel):
    """Why one picture has no answer."""

    stage: str
    reason: str
    message: str


class Values(BaseModel):
    """What one output of a bundle says of a picture."""

    score: float | None = None
    uncertainty: Annotated[float | None, Field(description="standard error of the score, where the head has one")] = (
        None
    )
    calibrated_score: float | None = None
    percentile: Annotated[float | None, Field(description="0 to 100: how many of the reference's scores lie below")] = (
        None
    )


class ScoreItem(Values):
    """One picture's score, or its error."""

    ok: bool
    outputs: Annotated[dict[str, Values] | None, Field(description="those asked for, by name")] = None
    error: ItemError | None = None


class RankItem(ScoreItem):
    """One picture's score and place, or its error."""

    rank: Annotated[int | None, Field(description="1 is the preferred one")] = None
    probability: Annotated[float | None, Field(description="of being the preferred one of all that are ok")] = None


class EmbedItem(BaseModel):
    """One vector of unit length, or its error."""

    ok: bool
    embedding: list[float] | None = None
    id: Annotated[str | None, Field(description="of a picture: hash of its content, its id in a catalogue")] = None
    error: ItemError | None = None


class Origin(BaseModel):
    """What every answer says of its origin."""

    bundle: Annotated[str, Field(description="digest of the bundle that answered", examples=[EXAMPLE_DIGEST])]
    precision: Annotated[str, Field(examples=["fp32"])]


class ScoreAnswer(Origin):
    """One item for each picture, in the order of the request."""

    items: list[ScoreItem]


class RankAnswer(Origin):
    """One item for each picture, in the order of the request, and the order of preference."""

    items: list[RankItem]
    order: Annotated[list[int], Field(description="numbers of the pictures that are ok, the preferred one first")]


class EmbedAnswer(Origin):
    """One item for each picture and prompt, in the order of the request."""

    images: list[EmbedItem]
    prompts: list[EmbedItem]


class HitItem(BaseModel):
    """One picture found; blended_score = similarity + popularity_weight * popularity."""

    id: str
    key: Annotated[str, Field(description="its name in the catalogue")]
    similarity: float
    popularity: Annotated[float, Field(description="percentile / 100")]
    percentile: float
    count: float | None
    rate: Annotated[float | None, Field(description="count / exposures, where the catalogue has exposures")]
    title: Annotated[str | None, Field(description="the column title of the catalogue, or else its column prompt")]
    blended_score: float
    metadata: Annotated[dict[str, Any], Field(description="the other columns of the catalogue")]
    thumbnail: Annotated[str, Field(description="path of the picture made small", examples=["/v1/thumbnails/6e3c8f"])]


class SimilarAnswer(Origin):
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


def picture_of(given: str | bytes | UrlPicture) -> Picture:
    """A picture's bytes from base64, if they are not given as such; raise ImageError if it is none."""
    if not isinstance(given, str):
        return given
    try:
        return from_base64(given)
    except ImageError as error:
        return error


def message_of(error: ImageError) -> str:
    """What a client is told of a picture's error; never with bytes of the picture beyond its first few."""
    return str(error).encode("utf-8", "backslashreplace").decode()[:500]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The body cannot be read",
        401: "The token is missing or wrong",
        403: "A page of another site asks in the name of who is signed in",
        408: "The body arrived too slowly",
        413: "Too many bytes or items",
        415: "A body of another type",
        422: "A field is wrong; the message says which",
        429: "Too much is waiting; try again after the seconds in Retry-After",
        500: "A fault of the service; its log says more",
        504: "Not done by the deadline",
        507: "The service has no room for the files of a form",
    }.items()
}


def url_picture(url: str) -> Picture:
    """A picture to fetch; raise ImageError if its address is too long to be one."""
    if len(url) > MAX_URL:
        return ImageError("read", "bad url", f"{len(url)} characters, at most {MAX_URL} allowed")
    return UrlPicture(url=url)


def described(
    request: type[BaseModel], answer: type[BaseModel], form: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """What FastAPI is told of a route: the bodies that it reads, and its answers.

    A form has the fields of the model too, but for those that it has in its own way.
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
