"""Measure how long the service takes for the requests of its pages, and from a vote to the next pair.

    python benchmarks/pages.py BUNDLE --work FOLDER [--pictures 1000000] [--section requests|votes]

`requests`: the pictures are those of catalogue_data.py, with the dimension of the bundle's vectors; the catalogue stays
in the folder for the next run. `search` is the page's request for new words (their vector, then the hits), `slider` the
same vector with another weight, `look` a hundred pictures from anywhere in the ranking by popularity. First there is
one person, then 20 at once who never pause, in a separate process. Times are those of whole requests on loopback.
Beside them is the processor time that the service itself took for each, which other work on the machine changes little.
`votes`: a browser votes on 200 pairs, 0.4 s after each is shown; the time is from the key to the frame in which both
pictures of the next pair are decoded. The last line of stdout is one JSON document."""

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from catalogue_data import ArrayPictures, labels, made_data  # noqa: E402

from embed.cli.console import table  # noqa: E402

PEOPLE = (1, 20)
SHOWN = 48  # hits, as many as the page requests
WANTED_MS = {("search", 1): 60, ("slider", 1): 30, ("search", 20): 200, ("slider", 20): 200}  # limits for 95 %
WANTED_NEXT_MS = 50
CANDIDATES, SIDE = 60, 512
PAUSE_S = 0.4  # the pause of a person who votes quickly


class Made(ArrayPictures):
    """The generated pictures, as if the bundle's backbone had embedded them."""

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


@contextmanager
def served(bundle: Path, *options: object) -> Iterator[tuple[int, int]]:
    """Run a service, and give its port and its process id."""
    command = [sys.executable, "-m", "runtime", "serve", bundle, "--pages", "--port", 0, "--max-queue", 1024, *options]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("pages on "))
        yield int(line.strip().rstrip("/").rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        process.wait()


def processor_s(pid: int) -> float:
    """Return the processor time that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(port: int, people: int, rounds: int, kinds: tuple[str, ...]) -> dict[str, list[float]]:
    """Return milliseconds of each request, by kind; every person sends the next request when one is answered."""
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    lock = threading.Lock()

    def person(number: int) -> None:
        rng = np.random.default_rng(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

        def ask(path: str, body: dict[str, object]) -> bytes:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status == 200, data
            return data

        def vector_of(words: str) -> object:
            return json.loads(ask("/v1/embed", {"prompts": [words]}))["prompts"][0]["embedding"]

        vector = vector_of(f"a picture of {number}")
        for round_ in range(rounds):
            for kind in kinds:
                start = time.perf_counter()
                if kind == "search":
                    vector = vector_of(f"picture {number} of {round_}")
                if kind == "look":
                    ask("/v1/browse", {"by": "popularity", "k": 100, "offset": int(rng.integers(10_000))})
                else:
                    weight = 0.3 if kind == "search" else round(float(rng.random()), 2)
                    wish = {"likes": [{"vector": vector}], "k": SHOWN, "dedup": 0.97, "popularity_weight": weight}
                    ask("/v1/similar", wish)
                took = 1000 * (time.perf_counter() - start)
                with lock:
                    found[kind].append(took)

    with ThreadPoolExecutor(people) as pool:
        list(pool.map(person, range(people)))
    return found


def requests(bundle: Path, catalogue: Path, rounds: int) -> dict[str, dict[str, float | bool | None]]:
    """Measure every kind of request alone, with one person and with 20, and all three in turn with 20."""
    document: dict[str, dict[str, float | bool | None]] = {}
    kinds = ("search", "slider", "look")
    with served(bundle, "--catalogue", catalogue) as (port, pid):
        measured(port, 1, 5, kinds)  # to warm up what is computed once, and memory pages
        for people in PEOPLE:
            for kind in kinds:
                before = processor_s(pid)
                (times,) = measured(port, people, max(10, rounds // people), (kind,)).values()
                each = 1000 * (processor_s(pid) - before) / len(times)
                document[f"{kind}_{people}"] = figures(times, WANTED_MS.get((kind, people))) | {
                    "processor_ms": round(each, 1)
                }
        for kind, times in measured(port, 20, max(10, rounds // 20), kinds).items():
            document[f"{kind}_20_mixed"] = figures(times, WANTED_MS.get((kind, 20)))
    return document


def figures(times: list[float], wanted_ms: float | None) -> dict[str, float | bool | None]:
    p50, p95 = (round(float(value), 1) for value in np.percentile(times, [50, 95]))
    met = None if wanted_ms is None else p95 < wanted_ms
    return {"n": len(times), "p50_ms": p50, "p95_ms": p95, "wanted_p95_ms": wanted_ms, "met": met}


NEXT = """async () => {
    const pictures = () => [...document.querySelectorAll(".pair img")];
    const before = pictures().map((one) => one.src).join();
    const begun = performance.now();
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "1", bubbles: true }));
    for (;;) {
        await new Promise(requestAnimationFrame);
        const now = pictures();
        if (now.length !== 2 || now.map((one) => one.src).join() === before) continue;
        if (!now.every((one) => one.complete && one.naturalWidth)) continue;
        await Promise.all(now.map((one) => one.decode()));
        await new Promise(requestAnimationFrame);
        return performance.now() - begun;
    }
}"""


def votes(bundle: Path, count: int) -> dict[str, dict[str, float | bool | None]]:
    """Return milliseconds from a vote to the frame that shows the next pair, in Chromium."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    rng, times = np.random.default_rng(0), list[float]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        for i in range(CANDIDATES):
            coarse = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"pictures/{i}.jpg")
        voting = ("--votes", folder / "votes.db", "--candidates", folder / "pictures", "--votes-per-minute", 10**6)
        with served(bundle, *voting) as (port, _), sync_playwright() as playwright:
            executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
            sandbox = [] if os.geteuid() else ["--no-sandbox"]
            browser = playwright.chromium.launch(executable_path=executable, args=sandbox)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(f"http://127.0.0.1:{port}/compare")
            page.locator(".pair img").first.wait_for(timeout=60_000)
            for _ in range(count):
                page.wait_for_timeout(1000 * PAUSE_S)
                times.append(page.evaluate(NEXT))
            browser.close()
    return {"next_pair": figures(times, WANTED_NEXT_MS) | {"max_ms": round(max(times), 1)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--votes", type=int, default=200)
    parser.add_argument("--section", choices=["requests", "votes"], action="append")
    options = parser.parse_args()
    sections = options.section or ["requests", "votes"]
    document: dict[str, dict[str, float | bool | None]] = {}
    if "requests" in sections:
        catalogue = options.work / f"catalogue-{options.pictures}"
        if not (catalogue / "manifest.json").exists():
            make_catalogue(options.bundle, catalogue, options.pictures)
        document |= requests(options.bundle, catalogue, options.rounds)
    if "votes" in sections:
        document |= votes(options.bundle, options.votes)
    headings = ("what", "n", "p50 ms", "p95 ms", "wanted", "met", "processor ms")
    rows = [
        (name, *(str(one.get(key) if one.get(key) is not None else "") for key in KEYS))
        for name, one in document.items()
    ]
    print(*table(headings, rows), sep="\n")
    print(json.dumps({"pictures": options.pictures, **document}))


KEYS = ("n", "p50_ms", "p95_ms", "wanted_p95_ms", "met", "processor_ms")

if __name__ == "__main__":
    main()
