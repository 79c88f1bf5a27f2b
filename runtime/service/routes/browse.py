"""Describe a catalogue, and rank all of it by a measure. Knows no HTTP.

Measures are the catalogue's own, those of a table of scores (`table: NAME`), and the outputs of the bundle's heads for
every picture (`head: NAME`, and `beside: NAME` for a second bundle) under one prompt or each picture's own. Results for
the current catalogue are kept.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from embed.arrays import Floats, Ints, floats, positions
from embed.spec import InputError, require_same_identity
from runtime.catalogue.conditions import matching
from runtime.catalogue.hits import hit_of
from runtime.catalogue.reader import Catalogue, hit_json
from runtime.overview import ranking
from runtime.overview.columns import columns_of, is_number
from runtime.overview.predicted import has_own_prompts, head_outputs, readable, unreadable
from runtime.scoring.bundle import open_bundle
from runtime.scoring.scorer import Scorer
from runtime.service.answering.engine import Engine
from runtime.service.answering.overviews import BrowseRequest
from runtime.service.routes.similar import THUMBNAILS

HEAD, BESIDE, TABLE = "head: ", "beside: ", "table: "
KEPT = 12  # number of rankings and outputs that are kept, each with some numbers for every picture

Found = TypeVar("Found")


class Browser:
    """Answers questions about the whole current catalogue."""

    def __init__(self, scores: Path | None, beside: Path | None = None) -> None:
        """`scores` is a Parquet file, or a folder of them, with `image` and numeric columns. `beside` is a second
        bundle of the same backbone."""
        self._scores = scores
        self._beside = beside
        self._catalogue: Catalogue | None = None
        self._kept: OrderedDict[tuple[object, ...], asyncio.Future[Any]] = OrderedDict()

    def check(self, served: Scorer) -> None:
        """Raise InputError if the second bundle cannot be opened, or has another backbone than the served one."""
        if self._beside is not None:
            identity, name = open_bundle(self._beside).identity, f"the bundle {self._beside}"
            require_same_identity(identity, name, served.identity, f"the bundle {served.bundle.path}")

    async def about(self, engine: Engine) -> dict[str, object]:
        """The catalogue's size, columns and measures, and the kinds of queries that this service accepts."""
        catalogue = self._in_force(engine)
        columns = await self._once(("columns",), lambda: [asdict(one) for one in columns_of(catalogue.rows)])
        of_table = await self._once(("table",), lambda: self._of_table(catalogue))
        heads = await self._heads(engine)
        outputs = {prefix: readable(scorer) for prefix, scorer in heads.items()}
        return {
            "pictures": len(catalogue),
            "columns": columns,
            "measures": [
                *ranking.measure_names(catalogue.rows),
                *(TABLE + name for name in of_table),
                *(prefix + name for prefix, few in outputs.items() for one in few for name in one.columns),
            ],
            "heads": [prefix + next(iter(one.columns)) for prefix, few in outputs.items() for one in few],
            "reads_text": engine.has_text_tower,
            "head_reads_text": any(scorer.reads_text for scorer in heads.values()),
            "has_prompts": has_own_prompts(catalogue),
            "head_unreadable": unreadable(engine.scorer),
        }

    async def page(self, engine: Engine, asked: BrowseRequest) -> dict[str, object]:
        """The rows of a ranking from an offset on, as JSON. Raise InputError for an unknown measure or column."""
        catalogue = self._in_force(engine)
        names = [asked.by, *([asked.against] if asked.against else [])]
        values = await asyncio.gather(*(self._values(engine, catalogue, name, asked.prompt) for name in names))
        wanted = asked.model_dump(exclude={"offset", "k"})

        def stand() -> tuple[Floats, Floats] | None:
            return ranking.places(values[0], values[1]) if asked.against else None

        places = await self._once(("places", *names, asked.prompt), stand)

        def order() -> tuple[Ints, float | None]:
            apart = ranking.gap(*places) if places else None
            allowed = None if asked.where is None else matching(asked.where, catalogue.rows)
            rows = ranking.ranked_rows(values[0] if apart is None else apart, asked.order, allowed)
            if asked.group_by is not None:
                if asked.group_by not in catalogue.rows.column_names:
                    known = ", ".join(sorted(catalogue.rows.column_names))
                    raise InputError(f"there is no column {asked.group_by!r} to group by; there are {known}")
                rows = ranking.few_of_each(rows, catalogue.rows[asked.group_by], asked.per_group)
            return rows, ranking.rank_correlation(values[0], values[1], allowed) if asked.against else None

        rows, correlation = await self._once(("order", *map(str, wanted.items())), order)

        def shown() -> list[dict[str, object]]:
            some = rows[asked.offset : asked.offset + asked.k]
            apart = ranking.gap(places[0][some], places[1][some]) if places else [np.float64("nan")] * len(some)
            found = []
            for row, gap, columns in zip(some.tolist(), apart, catalogue.rows.take(some).to_pylist(), strict=True):
                hit = hit_json(hit_of(columns, 0.0, 0.0, row))
                measures = {name: _number(of[row]) for name, of in zip(names, values, strict=True)}
                there = {name: _number(of[row]) for name, of in zip(names, places or (), strict=False)}
                extra = {"measures": measures, "places": there, "gap": _number(gap)}
                picture = {"thumbnail": f"{THUMBNAILS}/{hit['id']}"}
                found.append(
                    {n: v for n, v in hit.items() if n not in ("similarity", "blended_score")} | extra | picture
                )
            return found

        return {"total": len(rows), "correlation": correlation, "hits": await engine.search(shown)}

    async def _heads(self, engine: Engine) -> dict[str, Scorer]:
        """The bundles whose heads give measures, by the prefix of the measures' names."""
        if self._beside is None:
            return {HEAD: engine.scorer}
        beside = self._beside

        def load() -> Scorer:
            self.check(engine.scorer)  # it may have changed since the service started
            return Scorer(open_bundle(beside))

        return {HEAD: engine.scorer, BESIDE: await self._once(("beside",), load)}

    async def _values(self, engine: Engine, catalogue: Catalogue, name: str, prompt: str | None) -> Floats:
        for prefix, scorer in (await self._heads(engine)).items():
            columns = {column: value for one in scorer.named.all for column, value in one.columns.items()}
            if name.startswith(prefix) and name.removeprefix(prefix) in columns:
                given = engine.scorer.embed_prompts if engine.has_text_tower else scorer.embed_prompts
                outputs = await self._once((prefix, prompt), partial(head_outputs, scorer, catalogue, prompt, given))
                return outputs[columns[name.removeprefix(prefix)]].astype(np.float64)
        if name.startswith(TABLE):
            of_table = await self._once(("table",), lambda: self._of_table(catalogue))
            if name.removeprefix(TABLE) not in of_table:
                raise InputError(f"there is no measure {name!r}; the table has {', '.join(of_table) or 'none'}")
            return of_table[name.removeprefix(TABLE)]
        return await self._once(("measure", name), lambda: ranking.measure(catalogue, name))

    def _in_force(self, engine: Engine) -> Catalogue:
        assert engine.catalogue is not None
        if self._catalogue is not engine.catalogue:
            self._catalogue = engine.catalogue
            self._kept.clear()
        return engine.catalogue

    async def _once(self, key: tuple[object, ...], compute: Callable[[], Found]) -> Found:
        """The result of `compute` for the current catalogue, run in a thread, and kept unless it fails.

        Requests during the computation wait for the same result. It continues if their clients disconnect, so that a
        later request finds it.
        """
        if key not in self._kept:
            self._kept[key] = asyncio.ensure_future(asyncio.to_thread(compute))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        future = self._kept[key]
        self._kept.move_to_end(key)
        try:
            found: Found = await asyncio.shield(future)
            return found
        except Exception:
            if self._kept.get(key) is future:
                del self._kept[key]
            raise

    def _of_table(self, catalogue: Catalogue) -> dict[str, Floats]:
        """(n,) values of each numeric column of the table of scores, NaN for pictures that it does not name."""
        if self._scores is None:
            return {}
        import pyarrow.parquet as pq

        table = pq.read_table(self._scores)
        if "image" not in table.column_names:
            raise InputError(f"{self._scores} has no column image; it has {', '.join(table.column_names)}")
        rows = positions(catalogue.rows["image"], table["image"])
        numbers = [field.name for field in table.schema if is_number(field.type)]
        return {name: np.where(rows < 0, np.nan, floats(table[name])[rows]) for name in numbers}


def _number(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None
