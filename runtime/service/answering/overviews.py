"""The shapes of requests about a whole catalogue, and of their answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from runtime.service.answering.requests import Closed, Origin, example


class BrowseRequest(Closed):
    """Rank the catalogue by a measure, or by the difference of two measures in percentiles."""

    model_config = example(by="popularity", k=3)
    by: Annotated[str, Field(max_length=200, description="a measure that GET /v1/catalogue names")]
    against: Annotated[str, Field(max_length=200)] | None = None
    order: Literal["highest", "lowest", "apart"] = "highest"
    prompt: (
        Annotated[str, Field(max_length=2000, description="the prompt for the head; by default each picture's own")]
        | None
    ) = None
    where: Annotated[str, Field(max_length=2000)] | None = None
    group_by: Annotated[str, Field(max_length=200)] | None = None
    per_group: Annotated[int, Field(ge=1, le=1000)] = 1
    offset: Annotated[int, Field(ge=0, le=2**40)] = 0
    k: Annotated[int, Field(ge=1, le=1000)] = 100


class ColumnItem(BaseModel):
    """A column of the catalogue. Texts and booleans have their most frequent values, other types a range."""

    name: str
    kind: str
    nulls: int
    distinct: int | None
    values: list[tuple[str | bool, int]]
    low: float | str | None
    high: float | str | None


class CatalogueAnswer(Origin):
    """The contents of the catalogue, and how it can be queried."""

    catalogue: Annotated[str, Field(description="version of the catalogue", examples=["v000001"])]
    pictures: int
    columns: list[ColumnItem]
    measures: Annotated[list[str], Field(description="measures that POST /v1/browse can rank by")]
    heads: Annotated[list[str], Field(description="the measures that are scores of heads")]
    reads_text: Annotated[bool, Field(description="whether queries may be texts")]
    head_reads_text: bool
    has_prompts: Annotated[bool, Field(description="whether every picture has its own prompt")]
    head_unreadable: Annotated[
        str | None, Field(description="the reason why the head cannot score the catalogue, or null")
    ]
    report: Annotated[bool, Field(description="whether GET /v1/report gives an evaluation")]


class BrowseItem(BaseModel):
    """One picture of the catalogue, with the requested measures."""

    id: str
    key: Annotated[str, Field(description="the picture's name in the catalogue")]
    popularity: float
    percentile: float
    count: float | None
    rate: float | None
    title: str | None
    metadata: dict[str, Any]
    measures: dict[str, float | None]
    places: Annotated[
        dict[str, float | None],
        Field(description="if two measures are compared: the percentiles of both, among the pictures that have both"),
    ]
    gap: Annotated[float | None, Field(description="by how many percentiles the first measure ranks it higher")]
    thumbnail: str


class BrowseAnswer(Origin):
    """A part of the ranking, and the number of all pictures in it."""

    catalogue: str
    total: int
    correlation: Annotated[
        float | None,
        Field(description="Spearman's correlation of the two measures, over the pictures that `where` keeps"),
    ]
    hits: list[BrowseItem]
