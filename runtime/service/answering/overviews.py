"""The shapes of what is asked of a catalogue as a whole, and of the answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from runtime.service.answering.requests import Closed, Origin, example


class BrowseRequest(Closed):
    """Rank the catalogue by a measure, or by how many percentiles it ranks a picture above another measure."""

    model_config = example(by="popularity", k=3)
    by: Annotated[str, Field(max_length=200, description="one of the measures that GET /v1/catalogue names")]
    against: Annotated[str, Field(max_length=200)] | None = None
    order: Literal["highest", "lowest", "apart"] = "highest"
    prompt: Annotated[str, Field(max_length=2000, description="for the head; by default each picture's own")] | None = (
        None
    )
    where: Annotated[str, Field(max_length=2000)] | None = None
    group_by: Annotated[str, Field(max_length=200)] | None = None
    per_group: Annotated[int, Field(ge=1, le=1000)] = 1
    offset: Annotated[int, Field(ge=0, le=2**40)] = 0
    k: Annotated[int, Field(ge=1, le=1000)] = 100


class ColumnItem(BaseModel):
    """A column of the catalogue; texts and booleans have their most frequent values, others a range."""

    name: str
    kind: str
    nulls: int
    distinct: int | None
    values: list[tuple[str | bool, int]]
    low: float | str | None
    high: float | str | None


class CatalogueAnswer(Origin):
    """What the catalogue holds, and how it can be asked."""

    catalogue: Annotated[str, Field(description="version of the catalogue", examples=["v000001"])]
    pictures: int
    columns: list[ColumnItem]
    measures: Annotated[list[str], Field(description="what POST /v1/browse ranks by")]
    heads: Annotated[list[str], Field(description="those measures that are scores of heads")]
    reads_text: Annotated[bool, Field(description="whether queries may be texts")]
    head_reads_text: bool
    has_prompts: Annotated[bool, Field(description="whether every picture has a prompt of its own")]
    head_unreadable: Annotated[
        str | None, Field(description="why the head cannot score the catalogue, or not all of it, if so")
    ]
    report: Annotated[bool, Field(description="whether GET /v1/report gives an evaluation")]


class BrowseItem(BaseModel):
    """One picture of the catalogue, with the measures that were asked for."""

    id: str
    key: Annotated[str, Field(description="its name in the catalogue")]
    popularity: float
    percentile: float
    count: float | None
    rate: float | None
    title: str | None
    metadata: dict[str, Any]
    measures: dict[str, float | None]
    places: Annotated[
        dict[str, float | None],
        Field(description="beside another measure: the percentiles of both, among the pictures that have both"),
    ]
    gap: Annotated[float | None, Field(description="percentiles by which the first measure ranks it higher")]
    thumbnail: str


class BrowseAnswer(Origin):
    """A part of the ranking, and how many pictures it has in all."""

    catalogue: str
    total: int
    correlation: Annotated[
        float | None,
        Field(description="of the ranks of two measures (Spearman), over the pictures that `where` leaves"),
    ]
    hits: list[BrowseItem]
