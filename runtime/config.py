"""Options of the stages of serving. Imports nothing heavy, so that a command's help is quick."""

import ipaddress
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from embed.config import PILLOW_MAX_PIXELS, Limits, parse_columns
from embed.options import Internal, Option, Range, comma_separated, require_valid
from embed.spec import InputError

Precision = Literal["fp32", "fp16", "int8", "fp16-cuda"]  # the precisions of a bundle's graphs
CUDA_PRECISION: Precision = "fp16-cuda"  # its graphs run only on CUDA
Dialect = Literal["flow-factory", "unirl"]
DIALECT_PATHS: dict[Dialect, tuple[str, ...]] = {"flow-factory": ("/compute",), "unirl": ("/score", "/rewards")}

MIB = 2**20
# The default weight of popularity in a blended score. A popular picture then beats an unpopular one of the same kind,
# but not pictures of another kind.
POPULARITY_WEIGHT = 0.3
DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """How the graphs of a bundle are run."""

    providers: Annotated[tuple[str, ...] | None, Option("--provider")] = None
    """The execution provider of onnxruntime that runs the graphs: cpu, cuda, tensorrt or another. If several are given,
    each part of a graph is run by the first that can run it. By default the best one that is installed."""
    precision: str | None = None
    """The precision to compute with. The bundle must have it. By default fp16-cuda on CUDA if the bundle has
    it, and otherwise the bundle's first."""
    threads: Annotated[int | None, Range(1)] = None
    """The number of threads on the CPU. By default one for each core."""
    engine_cache: Path | None = None
    """The folder in which TensorRT keeps compiled engines."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class TableConfig:
    """The columns of a table to score, and the outputs to give."""

    image_column: str = "image"
    """The column with the pictures: paths, or the bytes of files."""
    prompt_column: str = "prompt"
    """The column of prompts."""
    prompt: str | None = None
    """One prompt for all rows, instead of a column."""
    source_column: str | None = None
    """The column with the source pictures that the pictures were made from. By default source_path, if the table has it
    and a head reads source pictures."""
    images_root: str | None = None
    """The folder where relative paths start. By default the table's own folder."""
    outputs: Annotated[tuple[str, ...] | None, Option(parse=comma_separated)] = None
    """The outputs to give, with commas between them, or all. By default the first head's."""
    columns: Annotated[Mapping[str, str], Option(parse=parse_columns)] = field(default_factory=dict)
    """What your table calls the columns, if they have other names: NAME=YOURS,... such as image=path,prompt=caption."""


@dataclass(frozen=True)
class IndexConfig:
    """The index of a catalogue, and the recall that it must reach."""

    kind: Annotated[Literal["auto", "exact", "ivf-pq", "ivf-sq", "hnsw"], Option("--index")] = "auto"
    """The kind of index. With auto it is exact up to 200,000 pictures, and for more the smallest one that reaches the
    recall."""
    min_recall: Annotated[float, Range(above=0, high=1)] = 0.99
    """The recall at 10 that the index must reach at every popularity weight."""
    max_memory_bytes: Annotated[int | None, Option("--max-memory-gb", unit=1e9), Range(0)] = None
    """The most memory that the index may take in addition to the vectors, in GB. By default there is no limit."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class PopularityConfig:
    """How counts become popularity."""

    missing: Annotated[Literal["drop", "zero", "median", "predicted"], Internal()] = "drop"
    """What to do with pictures without a count: they are left out, or get zero, the median count or a predicted
    popularity."""
    half_life_s: Annotated[float | None, Option("--half-life-days", unit=DAY_S), Range(above=0)] = None
    """Halve a count for every so many days that it is older than the newest `timestamp` of the table. Timestamps are
    dates, times (in UTC unless they name a zone), or numbers since 1970 in seconds, milli-, micro- or nanoseconds."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class Wish:
    """The conditions for the hits of one query."""

    k: Annotated[int, Option("-k"), Range(1)] = 10
    """The number of hits to give."""
    popularity_weight: Annotated[float, Range(-1e6, 1e6)] = POPULARITY_WEIGHT
    """The weight of popularity: a hit's blended score is its cosine plus this times its percentile over 100. With 0,
    hits are the most similar pictures, whether popular or not."""
    min_percentile: Annotated[float, Range(0, 100)] = 0.0
    """The lowest percentile of popularity that a hit may have."""
    where: str | None = None
    """A filter on the catalogue's columns, such as "category = 'Objects' and year >= 2024". As in SQL, a comparison
    with a missing value is neither true nor false, and hits are the pictures for which the whole is true."""
    dedup: Annotated[float | None, Range(-1, 1)] = None
    """Leave out near copies: of hits whose cosine with each other is above this, only the best is kept."""
    group_by: str | None = None
    """A column, such as the creator. Each of its values gets no more than --per-group hits."""
    per_group: Annotated[int, Range(1)] = 1
    """The largest number of hits with the same value in the column --group-by. Hits without a value are not limited."""
    include_query: bool = False
    """Also give the pictures of the query itself as hits, if they are in the catalogue."""
    exclude: Annotated[Collection[str], Internal()] = ()
    """The ids of the query's own pictures, which are left out of the hits unless `include_query` is set."""
    min_similarity_percentile: Annotated[float, Range(0, 100)] = 0.0
    """The lowest percentile of similarity to the query that a hit may have among the catalogue's pictures. With 99,
    hits come from the most similar hundredth, of which at most 2,000 are considered."""

    def __post_init__(self) -> None:
        require_valid(self)

    @property
    def excluded(self) -> Collection[str]:
        """The ids of pictures to leave out of the hits."""
        return () if self.include_query else self.exclude


@dataclass(frozen=True)
class RequestLimits(Limits):
    """The largest picture that the service decodes. The defaults need at most half a GB of memory for each decoder."""

    max_bytes: Annotated[int, Option("--max-picture-mb", unit=MIB), Range(above=0)] = 16 * MIB
    """The largest file of one picture, in MiB."""
    max_pixels: Annotated[int, Option("--max-megapixels", unit=1e6), Range(above=0, high=PILLOW_MAX_PIXELS)] = 1 << 25
    """The largest picture, in megapixels."""


@dataclass(frozen=True)
class VotingConfig:
    """What people compare, and where their votes are stored."""

    votes: str | None = None
    """The database of votes: a file, which is created if needed, or postgresql+psycopg://USER@HOST/NAME. By default
    people cannot vote."""
    candidates: Path | None = None
    """What people compare: a table of pictures and prompts, a folder of pictures or a catalogue. By default the
    catalogue that is served."""
    generator: str | None = None
    """The source of pictures for people's own prompts: the URL of `POST {prompt, seed, n}`, or a table to replay. By
    default people cannot write prompts."""
    gold: Path | None = None
    """A table of comparisons with known answers, such as prompt,pos_path,neg_path. Some of them are shown among the
    others."""
    instructions: Path | None = None
    """A file with instructions for people on how to choose."""
    vote_goal: Annotated[int | None, Range(1)] = None
    """The number of votes that the page asks each person for."""
    random_share: Annotated[float, Range(0, 1)] = 0.2
    """The share of pairs that are drawn at random, from pictures or prompts on which heads are measured and never
    trained. All other pairs are those from which the head would learn most."""
    repeat_share: Annotated[float, Range(0, 0.5)] = 0.05
    """The share of pairs that a person is shown a second time, with the sides swapped."""
    gold_share: Annotated[float, Range(0, 0.5)] = 0.05
    """The share of pairs that are taken from --gold."""
    least_vote_s: Annotated[float, Option("--least-vote-seconds"), Range(0)] = 0.7
    """A vote within fewer seconds is marked as too fast."""
    votes_per_minute: Annotated[int, Range(1)] = 60
    """The largest number of votes of one person in a minute. More are answered with 429."""
    votes_per_pair: Annotated[int | None, Range(1)] = None
    """The number of people whose votes a pair gets. Then it is not shown to others. By default there is no limit."""
    voters: Literal["free", "invited"] = "free"
    """Who may vote: with free anyone under any name, with invited only people who opened a link of `python -m runtime
    votes invite`."""

    def __post_init__(self) -> None:
        require_valid(self)
        if self.votes is None and (given := [name for name in _OF_VOTES if getattr(self, name) is not None]):
            raise InputError(
                f"--{given[0].replace('_', '-')} does nothing without --votes; name the database with --votes votes.db"
            )


@dataclass(frozen=True)
class VotesExportConfig:
    """The votes to export, and their weights."""

    part: Literal["all", "teaching", "measuring"] = "all"
    """The votes to export: measuring are those on random pairs that are kept apart, teaching are those on all other
    pairs, for training."""
    people: Literal["all", "weighted", "trusted"] = "all"
    """Whose votes to export: everybody's with equal weight, everybody's weighted by their answers to gold pairs, or
    only those of people who answer gold pairs right."""
    least_gold: Annotated[float, Range(0, 1)] = 0.7
    """The share of gold pairs that a trusted person must answer right. People with fewer than 3 gold answers are
    trusted."""
    without_fast: bool = False
    """Leave out votes that are marked as too fast."""

    def __post_init__(self) -> None:
        require_valid(self)


_OF_VOTES = ("candidates", "generator", "gold", "instructions", "vote_goal", "votes_per_pair")


@dataclass(frozen=True)
class ServiceConfig(SessionConfig):
    """What is served, and how much at once."""

    bundle: Annotated[Path, Internal()]
    _: KW_ONLY
    catalogue: Path | None = None
    """The catalogue that /v1/similar searches. Without a catalogue this route does not exist."""
    pages: bool = False
    """Also serve pages for people: / searches the catalogue, /look ranks it, /compare asks for choices."""
    report: Path | None = None
    """The page of an evaluation, made with `heads evaluate --report`, for /look to show."""
    scores: Path | None = None
    """A table of scores of the catalogue's pictures, such as `heads evaluate` writes: a Parquet file, or a folder of
    them, with a column `image`. /look can also rank by its numeric columns."""
    beside: Path | None = None
    """A second bundle with the same backbone. /look shows its heads beside those of the first."""
    images_root: str | None = None
    """The folder or URL to which the names of the catalogue's pictures are relative, for /v1/thumbnails. By default the
    places where they were embedded, or the catalogue's own folder or URL. The host of a URL must be named by
    --allow-url-host."""
    threads: Annotated[int | None, Range(1)] = None
    """The number of threads of each run on the CPU. By default 1 to 4 if there are several streams, and one for each
    core if there is one."""
    streams: Annotated[int | None, Range(1)] = None
    """The number of runs at the same time. By default as many as suit the cores on a CPU, and 1 on other devices."""
    limits: Annotated[Limits, Internal()] = RequestLimits()
    max_items: Annotated[int, Range(1)] = 64
    """The largest number of pictures or prompts in one request."""
    max_prompt_chars: Annotated[int, Range(1)] = 2000
    """The largest number of characters in one prompt."""
    max_body_bytes: Annotated[int, Option("--max-body-mb", unit=MIB), Range(above=0)] = 32 * MIB
    """The largest body of one request, in MiB."""
    max_pending_bytes: Annotated[int, Internal()] = 256 * MIB
    """The most bytes in the bodies of all requests under way."""
    max_queue: Annotated[int, Range(1)] = 256
    """The largest number of pictures and prompts under way at once, with those that are being decoded. More are
    answered with 429."""
    max_batch: Annotated[int | None, Range(1)] = None
    """The largest number of pictures or prompts in one batch. By default 8 on a CPU, and 32 on other devices."""
    deadline_s: Annotated[float, Option("--deadline"), Range(above=0, high=DAY_S)] = 10.0
    """Answer a request with 504 if it takes longer than so many seconds."""
    decoders: Annotated[int, Range(1)] = field(default_factory=lambda: max(2, (os.cpu_count() or 2) // 2))
    """The number of processes that decode pictures. By default half as many as there are cores, and at least 2."""
    url_hosts: Annotated[tuple[str, ...], Option("--allow-url-host")] = ()
    """A host from which pictures are fetched, if a request names their URL."""
    origins: Annotated[tuple[str, ...], Option("--allow-origin")] = ()
    """An origin, such as https://a.example, whose pages may send requests and read the answers."""
    max_connections: Annotated[int, Range(8)] = 4096
    """The largest number of open connections. It is lower if the system allows this process fewer open files."""
    max_per_address: Annotated[int, Range(1)] = 1024
    """The largest number of connections from one address, unless it is the address of a --trusted-proxy. It is lower if
    the system allows this process fewer open files."""
    trusted_proxies: Annotated[tuple[str, ...], Option("--trusted-proxy")] = ()
    """The address or network of a proxy. For its requests, the log and the limits take the client's address from
    X-Forwarded-For."""
    voting: Annotated[VotingConfig, Internal()] = VotingConfig()
    dialects: Annotated[tuple[Dialect, ...], Option("--dialect", parse=comma_separated)] = ()
    """Also answer reward requests of these trainers of generators, with commas between them: flow-factory (POST
    /compute), unirl (POST /score)."""
    tokens: Annotated[tuple[str, ...], Internal()] = field(default=(), repr=False)
    """The bearer tokens. Each request needs one of them."""
    admin_tokens: Annotated[tuple[str, ...], Internal()] = field(default=(), repr=False)
    """The bearer tokens for /admin, if they differ."""
    may_reload: Annotated[bool, Internal()] = True
    """Whether POST /admin/reload is served, for requests with the token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise InputError(f"--trusted-proxy {proxy}: {error}; wanted such as 10.0.0.1 or 10.0.0.0/8") from None
        if self.max_queue < self.max_items:
            raise InputError(
                f"ServiceConfig.max_queue is {self.max_queue}; wanted at least max_items, {self.max_items},"
                " otherwise the largest request could never be served"
            )
        if self.max_pending_bytes < self.max_body_bytes:
            raise InputError(
                f"ServiceConfig.max_pending_bytes is {self.max_pending_bytes}; wanted at least max_body_bytes,"
                f" {self.max_body_bytes}"
            )
        if not all(re.fullmatch("[!-~]([ -~]*[!-~])?", token) for token in (*self.tokens, *self.admin_tokens)):
            raise InputError(
                "a token is empty, or has line breaks or letters outside ASCII, which a header cannot carry"
            )

        if self.voting.votes is not None and not (self.voting.candidates or self.voting.generator or self.catalogue):
            raise InputError(
                "--votes needs something to compare; give --candidates TABLE, FOLDER or CATALOGUE, or --catalogue"
            )
        for origin in self.origins:
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#*,\s]+", origin):
                raise InputError(
                    f"--allow-origin is {origin!r}; wanted one origin as browsers send it: https://a.example or"
                    " http://localhost:3000, without a path and without *"
                )

    @property
    def guarded(self) -> dict[str, tuple[str, ...]]:
        """The tokens for the paths under each prefix. Without tokens all paths are open."""
        of_dialects = {path: self.tokens for dialect in self.dialects for path in DIALECT_PATHS[dialect]}
        return {"/v1/": self.tokens, "/admin/": self.admin_tokens or self.tokens, **of_dialects}
