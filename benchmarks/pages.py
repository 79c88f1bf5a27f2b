"""How long the service takes for what the pages ask of a large catalogue: a search, a move of the slider, a ranking.

    python benchmarks/pages.py BUNDLE --work FOLDER [--pictures 1000000]

Pictures are those of catalogue_data.py, made of the length of the bundle's vectors. `search` is what the page asks for
new words (their vector, then the hits), `slider` the same vector with another weight, `look` a hundred pictures from
anywhere in the ranking by popularity. First by one person, then by 20 at once, from a process of their own. Times are
those of whole requests on loopback. The last line of stdout is one JSON document.
"""

import argparse
import json
import multiprocessing
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from catalogue_data import ArrayPictures, labels, made_data  # noqa: E402

from embed.cli.console import table  # noqa: E402

PEOPLE = (1, 20)
SHOWN = 48


class Made(ArrayPictures):
    """The made pictures, as if the bundle's backbone had embedded them."""

    def pooled_embeddings(self) -> None:
        return None

    def places(self) -> object:
        import pyarrow as pa

        return pa.nulls(len(self.data.vectors), pa.string())

    def image_rows(self, keys: object, place: object = None) -> np.ndarray:
        return super().image_rows(keys)  # type: ignore[arg-type]


def make_catalogue(bundle: Path, out: Path, pictures: int) -> None:
    from runtime.catalogue.writer import build
    from runtime.config import IndexConfig, PopularityConfig
    from runtime.scoring.scorer import Scorer

    identity = Scorer.load(bundle).identity
    data = made_data(pictures, identity.dim, 400)
    made = Made(data)
    made.identity = identity
    build(out, made, labels(data), PopularityConfig(), IndexConfig(), queries=data.tuning)


def serve(bundle: Path, catalogue: Path, port: "multiprocessing.Queue[int]") -> None:
    from runtime.config import ServiceConfig
    from runtime.service.app import create_app
    from runtime.service.network.listening import Server, listen

    config = ServiceConfig(bundle, catalogue=catalogue, pages=True, max_queue=1024)
    app = create_app(config)
    socket = listen("127.0.0.1", 0)
    port.put(socket.getsockname()[1])
    Server(app, config, app.state.service.drain).run([socket])


def measured(base: str, people: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each request, by kind; every person goes on as soon as they are answered."""
    import httpx

    found: dict[str, list[float]] = {"search": [], "slider": [], "look": []}
    lock = threading.Lock()

    def person(number: int) -> None:
        rng = np.random.default_rng(number)
        with httpx.Client(base_url=base, trust_env=False, timeout=60) as client:

            def ask(path: str, body: dict[str, object]) -> dict[str, object]:
                answer = client.post(path, json=body)
                assert answer.status_code == 200, answer.text
                return answer.json()  # type: ignore[no-any-return]

            for round_ in range(rounds):
                start = time.perf_counter()
                words = f"picture {number} of {round_}"
                vector = ask("/v1/embed", {"prompts": [words]})["prompts"][0]["embedding"]  # type: ignore[index]
                wish = {"likes": [{"vector": vector}], "k": SHOWN, "dedup": 0.97}
                ask("/v1/similar", wish | {"popularity_weight": 0.3})
                middle = time.perf_counter()
                ask("/v1/similar", wish | {"popularity_weight": float(rng.random())})
                moved = time.perf_counter()
                ask("/v1/browse", {"by": "popularity", "k": 100, "offset": int(rng.integers(10_000))})
                end = time.perf_counter()
                with lock:
                    for name, took in (("search", middle - start), ("slider", moved - middle), ("look", end - moved)):
                        found[name].append(1000 * took)

    with ThreadPoolExecutor(people) as pool:
        list(pool.map(person, range(people)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    catalogue = options.work / f"catalogue-{options.pictures}"
    if not (catalogue / "manifest.json").exists():
        make_catalogue(options.bundle, catalogue, options.pictures)
    context = multiprocessing.get_context("spawn")
    port: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=serve, args=(options.bundle, catalogue, port))
    process.start()
    try:
        base = f"http://127.0.0.1:{port.get(timeout=300)}"
        measured(base, 1, 3)  # what is computed once
        rows, document = [], {}
        for people in PEOPLE:
            for name, times in measured(base, people, max(5, options.rounds // people)).items():
                p50, p95 = np.percentile(times, [50, 95])
                rows.append((name, people, len(times), f"{p50:.0f}", f"{p95:.0f}"))
                document[f"{name}_{people}"] = {"p50_ms": round(p50, 1), "p95_ms": round(p95, 1)}
    finally:
        process.terminate()
        process.join()
    print(*table(("request", "people", "n", "p50 ms", "p95 ms"), rows), sep="\n")
    print(json.dumps({"pictures": options.pictures, **document}))


if __name__ == "__main__":
    main()
