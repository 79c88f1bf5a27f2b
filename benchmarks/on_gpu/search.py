"""Compare exact search on the device, a matrix product and its largest values, with FAISS and our index on the CPU.

Vectors lie in clusters, like those of pictures; queries are near some of them.
"""

import importlib.util
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from on_gpu.common import Context

if TYPE_CHECKING:
    from torch import Tensor

K = 50
PROBES, CANDIDATES = 64, 256  # of the inverted lists; their recall with these values is measured


def measure(context: Context) -> dict[str, object]:
    """Return milliseconds a batch, and queries a second for the largest batch."""
    n, dim = context.sized((1_000_000, 512), (1_000, 32))
    batches = (1, 16, 256)
    vectors, queries = clustered(context, n, dim, max(batches))
    found: dict[str, object] = {"vectors": n, "dim": dim, "k": K}
    rows: list[list[object]] = []
    truth = best(vectors, queries)
    for name in ("float32", "float16"):
        rates = on_device(context, vectors, queries, name, batches)
        rates["agrees"] = agreement(best(vectors.to(_dtype(name)), queries.to(_dtype(name))), truth)
        found[f"{context.device} {name}"] = rates
        rows.append([f"{context.device} {name}", *_shown(rates, batches)])
    halves, asked = vectors.half().cpu().numpy(), queries.cpu().numpy()
    del vectors
    context.release()
    on_cpu = faiss_on_cpu if importlib.util.find_spec("faiss") else torch_on_cpu
    for name, rates in on_cpu(context, halves, asked, truth.cpu().numpy(), batches).items():
        found[name] = rates
        rows.append([name, *_shown(rates, batches)])
    context.show(
        ["", *(f"ms, batch {b}" for b in batches), "queries a second", f"of the exact {K}", "building, s"], rows
    )
    bars = {name: rates["queries_per_s"] for name, rates in found.items() if isinstance(rates, dict)}
    return {**found, "bars": {"unit": "queries a second", "values": bars}}


def _dtype(name: str) -> "torch.dtype":  # type: ignore[name-defined]  # noqa: F821
    import torch

    return getattr(torch, name)


def _shown(rates: dict[str, float], batches: tuple[int, ...]) -> list[str]:
    times = [f"{rates[f'batch_{b}_ms']:.3f}" for b in batches]
    return [*times, f"{rates['queries_per_s']:,.0f}", f"{rates['agrees']:.4f}", f"{rates.get('build_s', 0):.1f}"]


def clustered(context: Context, n: int, dim: int, queries: int) -> "tuple[Tensor, Tensor]":
    """Return unit vectors (n, dim) around centres, and queries near some of them, float32 on the device."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    centres = F.normalize(torch.randn(max(8, n // 500), dim, device=context.device))
    place = torch.randint(len(centres), (n,), device=context.device)
    noise = torch.randn(n, dim, device=context.device) * dim**-0.5
    vectors = F.normalize(centres[place] + noise)
    some = vectors[torch.randint(n, (queries,), device=context.device)]
    return vectors, F.normalize(some + 0.5 * dim**-0.5 * torch.randn_like(some))


def best(vectors: "Tensor", queries: "Tensor") -> "Tensor":
    """Return (m, K): the rows with the largest products, best first."""
    return (queries @ vectors.T).topk(K, dim=1).indices


def agreement(found: "Tensor", truth: "Tensor") -> float:
    """Return the share of the true rows that were found."""
    return recall(found.cpu().numpy(), truth.cpu().numpy())


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the true rows (m, k) that are among those found (m, k)."""
    return float(np.mean([np.isin(true, ours).mean() for true, ours in zip(truth, found, strict=True)]))


def on_device(
    context: Context, vectors: "Tensor", queries: "Tensor", name: str, batches: tuple[int, ...]
) -> dict[str, float]:
    """Measure search in vectors on the device; queries and answers are copied."""
    vectors, host = vectors.to(_dtype(name)), queries.to(_dtype(name)).cpu()

    def search(batch: int) -> float:
        asked = host[:batch]
        run = lambda: best(vectors, asked.to(context.device)).cpu()  # noqa: E731
        return context.median_s(run, context.sized(20, 3))

    return _rates({batch: search(batch) for batch in batches})


def _rates(seconds: dict[int, float]) -> dict[str, float]:
    largest = max(seconds)
    return {f"batch_{batch}_ms": 1000 * s for batch, s in seconds.items()} | {
        "queries_per_s": largest / seconds[largest]
    }


def torch_on_cpu(
    context: Context, halves: np.ndarray, queries: np.ndarray, truth: np.ndarray, batches: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """Measure the same on the CPU in float32, if FAISS is not installed."""
    import torch

    context.say("FAISS is not installed, so torch searches on the CPU")
    on_cpu = replace(context, device="cpu")
    vectors, asked = torch.from_numpy(halves).float(), torch.from_numpy(queries)
    rates = on_device(on_cpu, vectors, asked, "float32", batches)
    return {"cpu torch": {**rates, "agrees": recall(best(vectors, asked).numpy(), truth)}}


def faiss_on_cpu(
    context: Context, halves: np.ndarray, queries: np.ndarray, truth: np.ndarray, batches: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """Measure FAISS's exact index, and our inverted lists with exact scores of their candidates."""
    import faiss

    from on_gpu.common import elapsed_s
    from runtime.index.base import Effort
    from runtime.index.blend import best_of
    from runtime.index.factory import build_index

    on_cpu = replace(context, device="cpu")
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    flat = faiss.IndexFlatIP(halves.shape[1])
    flat.add(halves.astype(np.float32))
    popularity = np.linspace(1, 0, len(halves), dtype=np.float32)
    made = []
    build_s = elapsed_s(lambda: made.append(build_index("ivf-pq", halves, popularity)))
    (lists,) = made
    effort = Effort(min(PROBES, lists.lists), CANDIDATES)

    def approximate(asked: np.ndarray) -> np.ndarray:
        weights = np.zeros(len(asked), np.float32)
        candidates = lists.candidates(asked, weights, effort)
        return best_of(candidates, halves, popularity, asked, weights, K)[0]

    ways = {"cpu FAISS flat": lambda asked: flat.search(asked, K)[1], "cpu our ivf-pq": approximate}
    found = {}
    for name, search in ways.items():
        repeats = context.sized(5, 2)
        seconds = {b: on_cpu.median_s(lambda b=b, search=search: search(queries[:b]), repeats) for b in batches}  # type: ignore[misc]
        found[name] = {**_rates(seconds), "agrees": recall(search(queries), truth)}
    found["cpu our ivf-pq"]["build_s"] = build_s
    return found
