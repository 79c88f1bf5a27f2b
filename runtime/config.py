"""What the stages of serving can be told. Imports nothing heavy, so that a command's help is quick."""

import ipaddress
import os
import re
from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from embed.config import PILLOW_MAX_PIXELS, Limits
from embed.options import Internal, Option, Range, comma_separated, require_valid
from embed.spec import InputError

Precision = Literal["fp32", "fp16", "int8", "fp16-cuda"]  # of a bundle's graphs
CUDA_PRECISION: Precision = "fp16-cuda"  # whose graphs run on CUDA alone
Dialect = Literal["flow-factory", "unirl"]
DIALECT_PATHS: dict[Dialect, tuple[str, ...]] = {"flow-factory": ("/compute",), "unirl": ("/score", "/rewards")}

MIB = 2**20
# Of a blended score, by default: a popular picture beats one of the same kind that nobody liked, and no other kind.
POPULARITY_WEIGHT = 0.3
DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """How the graphs of a bundle are run."""

    providers: Annotated[tuple[str, ...] | None, Option("--provider")] = None
    """What runs the graphs: cpu, cuda, tensorrt, or another execution provider of onnxruntime. If several are given,
    the first that can run a part of a graph runs it. By default the best one that is installed."""
    precision: str | None = None
    """The precision to compute with, one of those that the bundle has. By default fp16-cuda on CUDA if the bundle has
    it, and otherwise the bundle's first."""
    threads: Annotated[int | None, Range(1)] = None
    """The number of threads on the CPU. By default one for each core."""
    engine_cache: Path | None = None
    """The folder in which TensorRT keeps what it compiles."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class TableConfig:
    """Which columns of a table are scored, and by which outputs."""

    image_column: str = "image"
    """The column of pictures: paths, or the bytes of files."""
    prompt_column: str = "prompt"
    """The column of prompts."""
    prompt: str | None = None
    """One prompt for all rows, in place of a column."""
    source_column: str | None = None
    """The column of the pictures that those were made from. By default source_path, if the table has it and a head
    reads it."""
    images_root: str | None = None
    """The folder where relative paths start. By default the table's own folder."""
    outputs: Annotated[tuple[str, ...] | None, Option(parse=comma_separated)] = None
    """The outputs to give, with commas between them, or all. By default the first head's."""


@dataclass(frozen=True)
class IndexConfig:
    """Which index a catalogue gets, and what it must reach."""

    kind: Annotated[Literal["auto", "exact", "ivf-pq", "ivf-sq", "hnsw"], Option("--index")] = "auto"
    """The kind of index. With auto it is exact up to 200,000 pictures, and beyond that the smallest one that reaches
    the recall."""
    min_recall: Annotated[float, Range(above=0, high=1)] = 0.99
    """The recall at 10 that the index must reach at every popularity weight."""
    max_memory_bytes: Annotated[int | None, Option("--max-memory-gb", unit=1e9), Range(0)] = None
    """The memory that the index may take beside the vectors, in GB. By default there is no limit."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class PopularityConfig:
    """How counts become popularity."""

    missing: Annotated[Literal["drop", "zero", "median", "predicted"], Internal()] = "drop"
    """What pictures without a count get: they are left out, or get zero, the median count or a predicted place."""
    half_life_s: Annotated[float | None, Option("--half-life-days", unit=DAY_S), Range(above=0)] = None
    """Let counts fade by half in this many days before the newest `timestamp` of the table. Timestamps are dates,
    times, which are UTC unless they name a zone, or numbers since 1970 in seconds, milli-, micro- or nanoseconds."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class Wish:
    """What the hits of one query must be like."""

    k: Annotated[int, Option("-k"), Range(1)] = 10
    """How many hits to give."""
    popularity_weight: Annotated[float, Range(-1e6, 1e6)] = POPULARITY_WEIGHT
    """The weight of popularity: a hit's blended score is its cosine plus this times its percentile over 100. With 0,
    hits are the most similar pictures, whoever liked them."""
    min_percentile: Annotated[float, Range(0, 100)] = 0.0
    """The lowest percentile of popularity that a hit may have."""
    where: str | None = None
    """A filter on the catalogue's columns, such as "category = 'Objects' and year >= 2024". As in SQL, a comparison
    with a missing value is neither true nor false, and hits are the pictures for which the whole is true."""
    dedup: Annotated[float | None, Range(-1, 1)] = None
    """Leave near copies out: of hits whose cosine with each other is above this, only the best is kept."""
    group_by: str | None = None
    """A column, such as the creator. Each of its values gets no more than --per-group hits."""
    per_group: Annotated[int, Range(1)] = 1
    """How many hits one value of the column --group-by may have. Hits without a value are not counted."""
    include_query: bool = False
    """Let the pictures that the hits should be like or unlike be hits themselves, where they are in the catalogue."""
    exclude: Annotated[Collection[str], Internal()] = ()
    """The ids of the query's own pictures, which are no hits without `include_query`."""
    min_similarity_percentile: Annotated[float, Range(0, 100)] = 0.0
    """The least percentile of similarity to the query that a hit may have among the catalogue's pictures: with 99 the
    hits come from the hundredth most similar, of which at most 2,000 are looked at."""

    def __post_init__(self) -> None:
        require_valid(self)

    @property
    def excluded(self) -> Collection[str]:
        """The ids of pictures that are no hits."""
        return () if self.include_query else self.exclude


@dataclass(frozen=True)
class RequestLimits(Limits):
    """The largest picture that the service decodes: at most half a GB of memory for each decoder."""

    max_bytes: Annotated[int, Option("--max-picture-mb", unit=MIB), Range(above=0)] = 16 * MIB
    """The largest file of one picture, in MiB."""
    max_pixels: Annotated[int, Option("--max-megapixels", unit=1e6), Range(above=0, high=PILLOW_MAX_PIXELS)] = 1 << 25
    """The largest picture, in megapixels."""


@dataclass(frozen=True)
class VotingConfig:
    """What people compare, and where their votes are written."""

    votes: str | None = None
    """The database of votes: a file, which is made, or postgresql+psycopg://USER@HOST/NAME. By default no votes are
    asked for."""
    candidates: Path | None = None
    """What people compare: a table of pictures and prompts, a folder of pictures or a catalogue. By default the
    catalogue that is served."""
    generator: str | None = None
    """Where pictures for people's own prompts come from: the URL of `POST {prompt, seed, n}`, or a table to replay. By
    default nobody may write a prompt."""
    gold: Path | None = None
    """A table of comparisons whose answers are known, such as prompt,pos_path,neg_path. Some are shown unannounced."""
    instructions: Path | None = None
    """A file with what people are told to go by."""
    vote_goal: Annotated[int | None, Range(1)] = None
    """The votes that each person is asked for, as the page shows it."""
    random_share: Annotated[float, Range(0, 1)] = 0.2
    """The share of pairs that are drawn at random, of pictures or prompts that heads are measured on and never learn
    from. Others are those of which the head would learn most."""
    repeat_share: Annotated[float, Range(0, 0.5)] = 0.05
    """The share of pairs that a person is shown once more, with the sides swapped."""
    gold_share: Annotated[float, Range(0, 0.5)] = 0.05
    """The share of pairs of --gold."""
    least_vote_s: Annotated[float, Option("--least-vote-seconds"), Range(0)] = 0.7
    """The seconds below which a vote is marked as too fast."""
    votes_per_minute: Annotated[int, Range(1)] = 60
    """The votes of one person in a minute; more are answered with 429."""
    voters: Literal["free", "invited"] = "free"
    """Who votes: anyone under any name, or who has opened a link of `python -m runtime votes invite`."""

    def __post_init__(self) -> None:
        require_valid(self)
        if self.votes is None and (given := [name for name in _OF_VOTES if getattr(self, name) is not None]):
            raise InputError(f"--{given[0]} does nothing without --votes; name the database with --votes votes.db")


@dataclass(frozen=True)
class VotesExportConfig:
    """Which votes are exported, and what they count for."""

    part: Literal["all", "teaching", "measuring"] = "all"
    """Votes on pairs that were drawn at random, of what is kept apart for measuring; on all others, which teach; or
    on all."""
    people: Literal["all", "weighted", "trusted"] = "all"
    """Whose votes: everybody's, all counting the same; everybody's, weighted by their answers to gold pairs; or those
    of people who answer gold pairs right."""
    least_gold: Annotated[float, Range(0, 1)] = 0.7
    """The share of gold pairs that a trusted person answers right, of at least 3."""
    without_fast: bool = False
    """Leave out votes that are marked as too fast."""

    def __post_init__(self) -> None:
        require_valid(self)


_OF_VOTES = ("candidates", "generator", "gold", "instructions", "vote_goal")


@dataclass(frozen=True)
class ServiceConfig(SessionConfig):
    """What is served, and how much of it at once."""

    bundle: Annotated[Path, Internal()]
    _: KW_ONLY
    catalogue: Path | None = None
    """The catalogue in which /v1/similar searches. Without one there is no such route."""
    pages: bool = False
    """Serve pages for people too: / searches the catalogue, /look ranks it, /compare asks for choices."""
    report: Path | None = None
    """The page of an evaluation, made with `heads evaluate --report`, that /look shows."""
    scores: Path | None = None
    """A table of scores of the catalogue's pictures, such as `heads evaluate` writes: a Parquet file, or a folder of
    them, with a column `image`. /look ranks by its columns of numbers too."""
    beside: Path | None = None
    """A second bundle of the same backbone, whose heads /look shows beside those of the first."""
    images_root: str | None = None
    """The folder or URL where the names of the catalogue's pictures start, for /v1/thumbnails. By default where they
    were when they were embedded, or else where the catalogue was told. Of a URL, --allow-url-host must name the
    host."""
    threads: Annotated[int | None, Range(1)] = None
    """The number of threads of every run on the CPU. By default from 1 to 4 for runs that go side by side, and one for
    each core for a run that is alone."""
    streams: Annotated[int | None, Range(1)] = None
    """How many runs go side by side. By default as many as the cores have room for on a CPU, and 1 elsewhere."""
    limits: Annotated[Limits, Internal()] = RequestLimits()
    max_items: Annotated[int, Range(1)] = 64
    """How many pictures or prompts one request may have."""
    max_prompt_chars: Annotated[int, Range(1)] = 2000
    """How many characters one prompt may have."""
    max_body_bytes: Annotated[int, Option("--max-body-mb", unit=MIB), Range(above=0)] = 32 * MIB
    """The largest body of one request, in MiB."""
    max_pending_bytes: Annotated[int, Internal()] = 256 * MIB
    """The bodies of all requests under way."""
    max_queue: Annotated[int, Range(1)] = 256
    """How many pictures and prompts may be under way at once, with those that are being decoded. More are answered with
    429."""
    max_batch: Annotated[int | None, Range(1)] = None
    """How many pictures or prompts are run together. By default 8 on a CPU, and 32 elsewhere."""
    deadline_s: Annotated[float, Option("--deadline"), Range(above=0, high=DAY_S)] = 10.0
    """A request that is not answered within so many seconds gets 504."""
    decoders: Annotated[int, Range(1)] = field(default_factory=lambda: max(2, (os.cpu_count() or 2) // 2))
    """How many processes decode pictures. By default half as many as there are cores, and at least 2."""
    url_hosts: Annotated[tuple[str, ...], Option("--allow-url-host")] = ()
    """A host from which pictures are fetched, if a request names their URL."""
    origins: Annotated[tuple[str, ...], Option("--allow-origin")] = ()
    """An origin, such as https://a.example, whose pages may send requests and read the answers."""
    max_connections: Annotated[int, Range(8)] = 4096
    """How many connections may be open at once. There are fewer if the system allows this process fewer open files."""
    max_per_address: Annotated[int, Range(1)] = 1024
    """How many connections one address may have, unless it is that of a --trusted-proxy."""
    trusted_proxies: Annotated[tuple[str, ...], Option("--trusted-proxy")] = ()
    """The address or network of a proxy. Of its requests, log and limits take the client's address from
    X-Forwarded-For."""
    voting: Annotated[VotingConfig, Internal()] = VotingConfig()
    dialects: Annotated[tuple[Dialect, ...], Option("--dialect", parse=comma_separated)] = ()
    """The trainers of generators whose requests for rewards are answered too, with commas between them: flow-factory
    (POST /compute), unirl (POST /score)."""
    tokens: Annotated[tuple[str, ...], Internal()] = field(default=(), repr=False)
    """The bearer tokens, of which a request must have one."""
    admin_tokens: Annotated[tuple[str, ...], Internal()] = field(default=(), repr=False)
    """Those of /admin, where they are others."""
    may_reload: Annotated[bool, Internal()] = True
    """Whether POST /admin/reload is served, to who has the token."""

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
                " or a request of so many could never be served"
            )
        if self.max_pending_bytes < self.max_body_bytes:
            raise InputError(
                f"ServiceConfig.max_pending_bytes is {self.max_pending_bytes}; wanted at least max_body_bytes,"
                f" {self.max_body_bytes}"
            )
        if not all(re.fullmatch("[!-~]([ -~]*[!-~])?", token) for token in (*self.tokens, *self.admin_tokens)):
            raise InputError("a token is empty, or has what no header can carry: line breaks or letters outside ASCII")

        if self.voting.votes is not None and not (self.voting.candidates or self.voting.generator or self.catalogue):
            raise InputError("--votes needs something to compare: --candidates TABLE, FOLDER or CATALOGUE")
        for origin in self.origins:
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#*,\s]+", origin):
                raise InputError(
                    f"--allow-origin is {origin!r}; wanted one origin as browsers send it: https://a.example or"
                    " http://localhost:3000, without a path and without *"
                )

    @property
    def guarded(self) -> dict[str, tuple[str, ...]]:
        """The tokens that open the paths under each prefix; all paths are open where there are none."""
        of_dialects = {path: self.tokens for dialect in self.dialects for path in DIALECT_PATHS[dialect]}
        return {"/v1/": self.tokens, "/admin/": self.admin_tokens or self.tokens, **of_dialects}
