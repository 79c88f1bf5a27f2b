"""Compare plaudit's catalogue of similar popular pictures with other ways: recall, throughput, memory, build time.

    python benchmarks/catalogue.py --out results                       1,000,000 x 512, about an hour on two cores
    python benchmarks/catalogue.py --out results --n 50000 --kinds ivf-pq
    python benchmarks/catalogue.py --out results --cache CACHE --popularity TABLE     with real vectors

It writes results/catalogue.json, catalogue.md and catalogue.svg (recall against throughput). All ways are timed in one
run, in batches of one size, after a warm-up. Compare ratios, and not the figures of two machines. catalogue_data.py
describes the generated vectors.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder, which holds another `embed`
from catalogue_data import ArrayPictures, Data, hardness, labels, made_data, real_data

from runtime.catalogue.reader import Catalogue
from runtime.catalogue.writer import build, refresh
from runtime.config import IndexConfig, PopularityConfig
from runtime.index.base import Effort, Index, let_threads_sleep
from runtime.index.blend import best_of
from runtime.index.effort import exact_rows

K = 10
WEIGHT = 0.3
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)
# A graph over a million such vectors never gets beyond .982. It is here to compare it with the graphs of others.
MIN_RECALL = {"hnsw": 0.95}
PERCENTILES = (90.0, 99.0, 99.9)
MILVUS_PICTURES = 20_000  # not more, because its embedded server takes rows one by one

Search = Callable[[np.ndarray], np.ndarray]  # (m, d) queries -> (m, K) rows


class Bench:
    """Runs searches on the same queries in the same batches."""

    def __init__(self, catalogue: Catalogue, queries: np.ndarray, batch: int) -> None:
        self.catalogue = catalogue
        self.queries = queries
        self.batch = batch
        self.results: list[dict[str, Any]] = []
        self._truth: dict[tuple[float, float], np.ndarray] = {}

    def truth(self, weight: float, percentile: float) -> np.ndarray:
        """Return (m, K): the true rows, from the exact scan that the tests compare with float64 brute force."""
        if (weight, percentile) not in self._truth:
            c = self.catalogue
            n = int((c.popularity >= np.float32(percentile / 100)).sum())
            weights = np.full(len(self.queries), weight, np.float32)
            self._truth[weight, percentile] = exact_rows(c.vectors[:n], c.popularity[:n], self.queries, weights)
        return self._truth[weight, percentile]

    def run(
        self, name: str, search: Search, weight: float = WEIGHT, percentile: float = 0.0, most: int = 10**9
    ) -> None:
        queries = self.queries[:most]
        search(queries[: self.batch])
        found, start = [], time.perf_counter()
        for first in range(0, len(queries), self.batch):
            found.append(search(queries[first : first + self.batch]))
        elapsed_s = time.perf_counter() - start
        truth, rows = self.truth(weight, percentile)[: len(queries)], np.concatenate(found)
        recall = np.mean([np.isin(t, r).mean() for t, r in zip(truth, rows, strict=True)])
        row = {"name": name, "weight": weight, "min_percentile": percentile, "recall_at_10": round(float(recall), 4)}
        self.results.append(row | {"queries_per_s": round(len(queries) / elapsed_s, 1)})
        print(self.results[-1], flush=True)


def ours(catalogue: Catalogue, weight: float = WEIGHT, percentile: float = 0.0) -> Search:
    return lambda queries: catalogue.search_rows(queries, K, weight, percentile)[0]


def at_effort(catalogue: Catalogue, effort: Effort, weight: float = WEIGHT) -> Search:
    def search(queries: np.ndarray) -> np.ndarray:
        weights = np.full(len(queries), weight, np.float32)
        assert catalogue.index is not None
        found = catalogue.index.candidates(queries, weights, effort)
        return best_of(found, catalogue.vectors, catalogue.popularity, queries, weights, K)[0]

    return search


def rivals(bench: Bench, graph: Catalogue | None) -> None:
    """Run the other ways. All hold the vectors in memory as float32, twice the size of the catalogue's."""
    import faiss

    c = bench.catalogue
    plain = c.vectors.astype(np.float32)
    flat = faiss.IndexFlatIP(plain.shape[1])
    flat.add(plain)
    blended = faiss.IndexFlatIP(plain.shape[1] + 1)
    blended.add(np.concatenate([plain, c.popularity[:, None]], axis=1))
    few = 4 * bench.batch

    def exact(queries: np.ndarray) -> np.ndarray:
        return blended.search(np.pad(queries, ((0, 0), (0, 1)), constant_values=WEIGHT), K)[1]

    def overfetch(queries: np.ndarray) -> np.ndarray:
        similar, rows = flat.search(queries, 10 * K)
        order = np.argsort(-(similar + WEIGHT * c.popularity[rows]), axis=1)[:, :K]
        return np.take_along_axis(rows, order, axis=1)

    popular = plain[: max(1, len(plain) // 100)].mean(axis=0)
    popular /= np.linalg.norm(popular)

    def shifted(queries: np.ndarray) -> np.ndarray:
        moved = queries + 0.5 * popular
        return flat.search(moved / np.linalg.norm(moved, axis=1, keepdims=True), K)[1]

    bench.run("FAISS flat on [x, popularity]", exact, most=few)
    bench.run("(a) FAISS flat, 10x over-fetch, re-rank", overfetch, most=few)
    bench.run("(d) query shift towards the popular", shifted, most=few)
    for percentile in PERCENTILES:
        allowed = c.popularity >= np.float32(percentile / 100)
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little")))
        selected = lambda queries, parameters=parameters: flat.search(queries, K, params=parameters)[1]  # noqa: E731
        bench.run("(c) FAISS flat with IDSelectorBitmap", selected, 0.0, percentile, few)
        if graph is not None and graph.index is not None:
            index = graph.index

            def post_filtered(queries: np.ndarray, index: Index = index, allowed: np.ndarray = allowed) -> np.ndarray:
                rows = index.candidates(queries, np.zeros(len(queries), np.float32), Effort(128, 10 * K))
                kept = np.where((rows >= 0) & allowed[rows], rows, -1)
                return np.take_along_axis(kept, np.argsort(kept < 0, axis=1, kind="stable")[:, :K], axis=1)

            def selected_graph(queries: np.ndarray, index: Index = index, allowed: np.ndarray = allowed) -> np.ndarray:
                return index.candidates(queries, np.zeros(len(queries), np.float32), Effort(128, K), allowed)

            bench.run("(b) HNSW, 10x over-fetch, post-filter", post_filtered, 0.0, percentile)
            bench.run("(c) HNSW with IDSelectorBitmap", selected_graph, 0.0, percentile)


def milvus(data: Data, out: Path, queries: np.ndarray, batch: int) -> list[dict[str, Any]]:
    """Run (e), Milvus Lite, and our catalogue, both on only the first pictures."""
    try:
        import pymilvus  # noqa: F401

        from runtime.catalogue.milvus import upload
    except ImportError:
        print("pymilvus is not installed, so (e) is left out")
        return []
    n = min(MILVUS_PICTURES, len(data.vectors))
    small = Data(data.vectors[:n], data.counts[:n], data.queries, data.tuning, data.images[:n])
    options = PopularityConfig(), IndexConfig("exact")
    catalogue, _ = build(out / "small", ArrayPictures(small), labels(small), *options, overwrite=True)
    there = upload(catalogue, str(out / "milvus.db"))
    row_of = {key: row for row, key in enumerate(catalogue.rows["image"].to_pylist())}
    bench = Bench(catalogue, queries[: 2 * batch], batch)
    for percentile in (0.0, *PERCENTILES):

        def search(queries: np.ndarray, percentile: float = percentile) -> np.ndarray:
            hits = there.search(queries, K, WEIGHT, percentile)
            return np.array([[row_of[hit.key] for hit in one] for one in hits])

        bench.run(f"ours, {n} pictures", ours(catalogue, WEIGHT, percentile), WEIGHT, percentile)
        bench.run(f"(e) Milvus Lite, {n} pictures", search, WEIGHT, percentile)
    there.close()
    return bench.results


def size_bytes(catalogue: Catalogue, *names: str) -> int:
    return sum((catalogue.folder / name).stat().st_size for name in names if (catalogue.folder / name).exists())


def built(kind: str, data: Data, out: Path) -> tuple[Catalogue, dict[str, Any]]:
    start = time.perf_counter()
    options = PopularityConfig(), IndexConfig(kind, MIN_RECALL.get(kind, 0.99))
    catalogue, _ = build(out / kind, ArrayPictures(data), labels(data), *options, queries=data.tuning, overwrite=True)
    build_s = time.perf_counter() - start
    start = time.perf_counter()
    catalogue = Catalogue.open(out / kind)
    opening_s = time.perf_counter() - start
    index = size_bytes(catalogue, "index.faiss", "cells.npy", "nodes.npy", "popularity.npy")
    facts = {
        "kind": kind,
        "build_s": round(build_s, 1),
        "open_s": round(opening_s, 3),
        "memory_ratio": round((index + size_bytes(catalogue, "vectors.npy")) / data.vectors.nbytes, 3),
        "index_ratio": round(index / data.vectors.nbytes, 3),
        "index": catalogue.manifest["index"],
    }
    print(facts, flush=True)
    return catalogue, facts


def curve(bench: Bench, catalogue: Catalogue, kind: str) -> None:
    """Measure recall and throughput for every effort."""
    tuned = next(one for one in catalogue.manifest["index"]["efforts"] if one["weight"] == WEIGHT)
    for probes, candidates in ((1 / 8, 1), (1 / 4, 1), (1 / 3, 3 / 4), (0.4, 3 / 4), (1 / 2, 1), (2, 1), (4, 1)):
        effort = Effort(max(1, int(tuned["probes"] * probes)), max(2 * K, int(tuned["candidates"] * candidates)))
        bench.run(f"ours, {kind}", at_effort(catalogue, effort))


def markdown(report: dict[str, Any]) -> str:
    lines = [f"{report['n']:,} x {report['dim']}, batches of {report['batch']}, {report['hardness']}", ""]
    lines += ["| way | weight | least percentile | recall@10 | queries/s | to exact |", "|---|---|---|---|---|---|"]
    for row in report["results"]:
        ratio = row["queries_per_s"] / report["exact_queries_per_s"]
        cells = [row["name"], row["weight"], row["min_percentile"], row["recall_at_10"], row["queries_per_s"]]
        lines.append(f"| {' | '.join(map(str, cells))} | {ratio:.1f}x |")
    lines += ["", "| index | build s | open s | index / vectors | both / vectors |", "|---|---|---|---|---|"]
    for row in report["builds"]:
        cells = [row[name] for name in ("kind", "build_s", "open_s", "index_ratio", "memory_ratio")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"Refresh of all counts: {report['refresh_s']} s"]
    return "\n".join(lines) + "\n"


def plot(results: list[dict[str, Any]]) -> str:
    """Return an SVG of recall (x, by decades of the missed share) and queries a second (y, logarithmic).

    It shows results at one popularity weight, without a filter.
    """
    rows = [row for row in results if row["weight"] == WEIGHT and row["min_percentile"] == 0]
    names = list(dict.fromkeys(row["name"] for row in rows))
    speeds = np.log10([row["queries_per_s"] for row in rows])
    low, high = np.floor(speeds.min()), np.ceil(speeds.max() + 1e-9)
    decades = 4  # of the missed share, from everything to one in ten thousand, which also stands for nothing missed
    colors = ("#1b6ca8", "#d1495b", "#2e933c", "#8b5fbf", "#e08e1b", "#555555", "#00a6a6", "#b36a5e")

    def place(row: dict[str, Any]) -> tuple[float, float]:
        across = -np.log10(max(1 - row["recall_at_10"], 10.0**-decades)) / decades
        return 70 + 500 * across, 370 - 340 * (np.log10(row["queries_per_s"]) - low) / (high - low)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="900" height="430" font-family="sans-serif" font-size="12">'
    ]
    parts.append('<rect width="900" height="430" fill="white"/><path d="M70 30V370H570" fill="none" stroke="#333"/>')
    for power in range(int(low), int(high) + 1):
        y = 370 - 340 * (power - low) / (high - low)
        parts.append(f'<text x="62" y="{y + 4:.0f}" text-anchor="end">{10**power}</text>')
        parts.append(f'<path d="M70 {y:.0f}H570" stroke="#ddd"/>')
    for i, recall in enumerate(("0", "0.9", "0.99", "0.999", "1")):
        parts.append(f'<text x="{70 + 500 * i / decades:.0f}" y="388" text-anchor="middle">{recall}</text>')
    parts.append('<text x="320" y="412" text-anchor="middle">recall at 10 of the blended score, weight 0.3</text>')
    parts.append('<text x="70" y="18">queries a second</text>')
    for i, name in enumerate(names):
        color = colors[i % len(colors)]
        points = sorted(place(row) for row in rows if row["name"] == name)
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>' for x, y in points]
        parts.append(f'<circle cx="592" cy="{46 + 22 * i}" r="5" fill="{color}"/>')
        parts.append(f'<text x="604" y="{50 + 22 * i}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", default=["ivf-pq", "ivf-sq", "hnsw"])
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--popularity", type=Path)
    args = parser.parse_args()
    let_threads_sleep()
    import faiss

    faiss.omp_set_num_threads(args.threads)
    work = args.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    if args.cache:
        data = real_data(args.cache, args.popularity, args.queries)
    else:
        data = made_data(args.n, args.dim, args.queries)
    report: dict[str, Any] = {"n": len(data.vectors), "dim": data.vectors.shape[1], "batch": args.batch}
    report["hardness"] = hardness(data)
    print(report, flush=True)

    exact, facts = built("exact", data, work)
    bench, builds, graph = Bench(exact, data.queries, args.batch), [facts], None
    few = 4 * args.batch
    bench.run("ours, exact", ours(exact), most=few)
    for percentile in PERCENTILES:
        bench.run("ours, exact", ours(exact, WEIGHT, percentile), WEIGHT, percentile)
    for kind in args.kinds:
        catalogue, facts = built(kind, data, work)
        builds.append(facts)
        for weight in WEIGHTS:
            bench.run(f"ours, {kind}", ours(catalogue, weight), weight)
        for percentile in PERCENTILES:
            bench.run(f"ours, {kind}", ours(catalogue, WEIGHT, percentile), WEIGHT, percentile)
        curve(bench, catalogue, kind)
        graph = catalogue if kind == "hnsw" else graph
    rivals(bench, graph)
    last = work / (args.kinds[0] if args.kinds else "exact")
    start = time.perf_counter()
    refreshed, _ = refresh(last, labels(data, seed=1))
    report["refresh_s"] = round(time.perf_counter() - start, 1)
    report["refreshed_index"] = refreshed.manifest["index"]
    report["exact_queries_per_s"] = max(
        row["queries_per_s"]
        for row in bench.results
        if row["name"] in ("ours, exact", "FAISS flat on [x, popularity]") and row["min_percentile"] == 0
    )
    report["results"] = bench.results + milvus(data, work, data.queries, args.batch)
    report["builds"] = builds
    (args.out / "catalogue.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "catalogue.md").write_text(markdown(report))
    (args.out / "catalogue.svg").write_text(plot(bench.results))
    shutil.rmtree(work)
    print(markdown(report))


if __name__ == "__main__":
    main()
