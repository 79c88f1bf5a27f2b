"""Compare training heads on frozen embeddings with other ways, as ratios within one run.

    python benchmarks/heads.py --photos ../shared/data/photos
    python benchmarks/heads.py --pairs 20000 --images 4000 --prompts 400 --epochs 2     # a trial of the script

Pairs are drawn between pictures of one prompt; vectors are random clusters, and the preference is known. Every way runs
in a separate process, which reports its peak memory:

    linear          to convergence, and with its penalty chosen on a tenth of the prompts, as in `heads train`
    cosine, fusion  `--epochs` epochs of AdamW with the loss preference
    matrix product  only the products of one epoch: of the items that a batch scores with the weights, forward and
                    for the weights' gradient, in the same shapes and number
    DataLoader      the same head, loss and batch size behind torch's DataLoader over pairs of embeddings
    CLIP            Social Reward's way: JPEGs decoded, ViT-B/32 forward and backward and AdamW at every step, batch 32,
                    random weights, for `--steps` steps
    TripletLoss     sentence-transformers' loss and a matrix on each side with a DataLoader, to compare with our triplet
                    loss, if `--sentence-transformers PYTHON` names an interpreter that has it

DataLoader and TripletLoss are timed on `--sample` pairs and compared by their rates. The last line of stdout is one
JSON document."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, which holds a file named like the package `heads`

BATCH = 16384
CLIP_BATCH = 32  # Social Reward's
HIDDEN = 256


def write_data(folder: Path, images: int, prompts: int, pairs: int, dim: int) -> None:
    """Write img.npy, txt.npy (float16, unit norm), pairs.npy (3, pairs): two images of a prompt, 1 if the first
    wins."""
    from scipy.special import expit

    rng = np.random.default_rng(0)

    def unit(rows: int) -> np.ndarray:
        centers = rng.normal(size=(100, dim)).astype(np.float32)
        x = centers[rng.integers(0, 100, rows)] + rng.normal(size=(rows, dim)).astype(np.float32)
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)

    image = unit(images)
    np.save(folder / "img.npy", image)
    np.save(folder / "txt.npy", unit(prompts))
    each = images // prompts  # image i belongs to prompt i // each
    prompt = rng.integers(0, prompts, pairs)
    first = rng.integers(0, each, pairs)
    second = (first + rng.integers(1, each, pairs)) % each
    a, b = prompt * each + first, prompt * each + second
    direction = rng.normal(size=dim).astype(np.float32)
    lead = (image[a] - image[b]).astype(np.float32) @ direction
    wins = rng.random(pairs) < expit(4 * lead)
    np.save(folder / "pairs.npy", np.stack([a, b, wins]))


def load(folder: Path) -> tuple[Any, Any]:
    """Return features and pairs as in `heads train`, with one item for each image."""
    from heads.data.comparisons import Pairs
    from heads.data.features import features_of

    image, text = np.load(folder / "img.npy"), np.load(folder / "txt.npy")
    a, b, wins = np.load(folder / "pairs.npy")
    rows = np.arange(len(image))
    features = features_of(image, text, rows, rows // (len(image) // len(text)))
    return features, Pairs(a, b, wins.astype(np.float32), np.ones(len(a), np.float32), a, a)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.monotonic()
    value = function()
    return time.monotonic() - start, value


def way_linear(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from heads.config import HeadConfig
    from heads.data.comparisons import Pairs
    from heads.models import Linear, build_head
    from heads.training import convex
    from heads.training.objectives import Part

    features, pairs = load(args.folder)
    dim = features.image_embeddings.shape[1]

    def new_head() -> Linear:
        head = build_head(HeadConfig("linear", dim))
        assert isinstance(head, Linear)
        return head

    prompt = features.prompt.numpy()[pairs.a]
    aside = prompt < 0.1 * prompt.max()
    kept, validation = (
        Pairs(**{name: getattr(pairs, name)[rows] for name in pairs.__dataclass_fields__})
        for rows in (np.flatnonzero(~aside), np.flatnonzero(aside))
    )
    one = convex.Round([Part("preference", kept)], validation, Part("preference", validation))
    choose_s, (penalty, history) = timed(lambda: convex.choose_penalty(new_head, features, [one]))
    solve_s, solution = timed(lambda: convex.solve(new_head(), features, [Part("preference", pairs)], penalty))
    basis, weight = torch.randn(len(prompt) and len(features.image), dim), torch.randn(dim)

    def product() -> None:
        for _ in range(10):
            basis.T @ (basis @ weight)

    product_s = timed(product)[0] / 10
    return {
        "choose_s": choose_s, "solve_s": solve_s, "penalty": penalty, "penalties": len(history),
        "iterations": solution.iterations, "converged": solution.converged, "product_s_an_iteration": product_s,
    }  # fmt: skip


def way_stepped(args: argparse.Namespace) -> dict[str, Any]:
    """Time cosine or fusion, and the matrix products of an epoch."""
    import torch

    from heads.config import HeadConfig, TrainConfig
    from heads.models import build_head
    from heads.training.objectives import Part
    from heads.training.train import _order, fit

    features, pairs = load(args.folder)
    dim = features.image_embeddings.shape[1]
    config = TrainConfig(epochs=args.epochs, batch_size=BATCH, weight_decay=0.01)
    head = build_head(HeadConfig(args.way, dim, hidden=HIDDEN, input_dropout=0.0))
    train_s, history = timed(lambda: fit(head, features, pairs, None, config))

    shapes = {"cosine": [(dim, dim), (dim, dim)], "fusion": [(4 * dim, HIDDEN)]}[args.way]
    order = np.array_split(_order(Part("preference", pairs), features), -(-len(pairs) // BATCH))
    rows = [len(np.unique(np.concatenate([pairs.a[batch], pairs.b[batch]]))) for batch in order]
    operands = [(torch.randn(max(rows), n), torch.randn(n, m), torch.randn(max(rows), m)) for n, m in shapes]

    def products() -> None:
        for count in rows:
            for x, weight, gradient in operands:
                x[:count] @ weight
                x[:count].T @ gradient[:count]

    products()
    product_s = timed(products)[0]
    return {
        "train_s": train_s, "pairs_per_s": args.epochs * len(pairs) / train_s, "product_s_an_epoch": product_s,
        "items_scored_a_pair": sum(rows) / len(pairs), "train_loss": history[-1]["train_loss"],
        "share_of_product_rate": args.epochs * product_s / train_s,
    }  # fmt: skip


def way_loader(args: argparse.Namespace) -> dict[str, Any]:
    """Time the head with a DataLoader that gives the vectors of each pair."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    from heads import losses
    from heads.config import HeadConfig
    from heads.models import build_head

    image, text = np.load(args.folder / "img.npy"), np.load(args.folder / "txt.npy")
    a, b, wins = np.load(args.folder / "pairs.npy")
    each = len(image) // len(text)

    class PairsOfEmbeddings(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return min(len(a), args.sample)

        def __getitem__(self, i: int) -> Any:
            vectors = (image[a[i]], image[b[i]], text[a[i] // each])
            return *(torch.from_numpy(vector).float() for vector in vectors), float(wins[i])

    head = build_head(HeadConfig(args.head, image.shape[1], hidden=HIDDEN, input_dropout=0.0)).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    loader = DataLoader(PairsOfEmbeddings(), batch_size=BATCH, shuffle=True)

    def epoch() -> None:
        for image_a, image_b, prompt, target in loader:
            given_a, given_b = (
                {name: {"image_embedding": side, "text_embedding": prompt}[name] for name in head.inputs}
                for side in (image_a, image_b)
            )
            loss = losses.preference(head(**given_a), head(**given_b), target.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return {"pairs_per_s": len(PairsOfEmbeddings()) / timed(epoch)[0]}


def way_clip(args: argparse.Namespace) -> dict[str, Any]:
    """Time Social Reward's training loop, which computes gradients for the whole model."""
    import open_clip
    import torch
    from PIL import Image

    from heads import losses

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
    files = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    rng = np.random.default_rng(0)
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a photograph of a town by the sea"] * CLIP_BATCH)

    def pictures() -> torch.Tensor:
        chosen = rng.integers(0, len(files), CLIP_BATCH)
        return torch.stack([preprocess(Image.open(files[i]).convert("RGB")) for i in chosen])

    def step() -> None:
        positive, negative = (model.encode_image(pictures(), normalize=True) for _ in range(2))
        loss = losses.triplet(model.encode_text(tokens, normalize=True), positive, negative)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    seconds = timed(lambda: [step() for _ in range(args.steps)])[0]
    return {"pairs_per_s": args.steps * CLIP_BATCH / seconds, "steps": args.steps}


def way_triplet(args: argparse.Namespace) -> dict[str, Any]:
    """Time one epoch of our triplet loss with the cosine head."""
    from heads.config import HeadConfig, TrainConfig
    from heads.models import build_head
    from heads.training.objectives import Part
    from heads.training.train import fit

    features, pairs = load(args.folder)
    swapped = np.where(pairs.target > 0.5, pairs.a, pairs.b), np.where(pairs.target > 0.5, pairs.b, pairs.a)
    triplets = type(pairs)(*swapped, np.ones_like(pairs.target), pairs.weight, pairs.row_a, pairs.row_b)
    head = build_head(HeadConfig("cosine", features.image_embeddings.shape[1]))
    config = TrainConfig("triplet", epochs=1, batch_size=BATCH)
    train_s, _ = timed(lambda: fit(head, features, [Part("triplet", triplets)], None, config))
    return {"pairs_per_s": len(pairs) / train_s}


WAYS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "linear": way_linear, "cosine": way_stepped, "fusion": way_stepped, "loader": way_loader, "clip": way_clip,
    "triplet": way_triplet,
}  # fmt: skip


def run(name: str, command: list[str]) -> dict[str, Any]:
    """Return the JSON that a process prints last. Raise RuntimeError with its output if it fails."""
    print(f"{name} ...", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--sample", type=int, default=100_000, help="pairs that DataLoader and TripletLoss are timed on"
    )
    parser.add_argument("--steps", type=int, default=3, help="steps of CLIP, after one to warm up")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs, for CLIP")
    parser.add_argument("--sentence-transformers", metavar="PYTHON", help="an interpreter that has it")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # one way, in this process
    parser.add_argument("--head", default="fusion", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        result = WAYS[args.way](args)
        status = Path("/proc/self/status").read_text()  # getrusage gives the parent's peak if that is larger
        peak = 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        print(json.dumps({**result, "peak_memory_bytes": peak}))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), args.images, args.prompts, args.pairs, args.dim)
        results = measure(args, folder)
    show(results)
    print(json.dumps(results))


def measure(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    given = [f"--{name}={getattr(args, name)}" for name in ("epochs", "sample", "steps")]
    own = [sys.executable, __file__, f"--folder={folder}", *given]
    results = {name: run(name, [*own, f"--way={name}"]) for name in ("linear", "cosine", "fusion", "triplet")}
    for head in ("cosine", "fusion"):
        results[f"{head} DataLoader"] = run(f"{head} DataLoader", [*own, "--way=loader", f"--head={head}"])
    if args.photos:
        results["CLIP"] = run("CLIP", [*own, "--way=clip", f"--photos={args.photos}"])
    else:
        print("CLIP is left out: give --photos", file=sys.stderr)
    if args.sentence_transformers:
        script = Path(__file__).with_name("triplet_loss.py").read_text()  # as text, as this folder shadows packages
        command = [args.sentence_transformers, "-c", script, folder, str(args.sample), str(BATCH)]
        results["TripletLoss"] = run("TripletLoss", command)
    else:
        print("TripletLoss is left out: give --sentence-transformers PYTHON", file=sys.stderr)
    ratios = {}
    for head in ("cosine", "fusion"):
        rate = results[head]["pairs_per_s"]
        ratios[f"{head} / DataLoader"] = rate / results[f"{head} DataLoader"]["pairs_per_s"]
        if "CLIP" in results:
            ratios[f"{head} / CLIP"] = rate / results["CLIP"]["pairs_per_s"]
        ratios[f"{head} / matrix product"] = results[head]["share_of_product_rate"]
    if "TripletLoss" in results:
        ratios["triplet / TripletLoss"] = results["triplet"]["pairs_per_s"] / results["TripletLoss"]["pairs_per_s"]
    return {"data": {name: getattr(args, name) for name in ("pairs", "images", "prompts", "dim", "epochs")},
            "ways": results, "ratios": ratios}  # fmt: skip


def show(results: dict[str, Any]) -> None:
    from embed.cli.console import table

    ways = results["ways"]
    rows = []
    for name, way in ways.items():
        seconds = way.get("train_s") or way.get("choose_s", 0.0) + way.get("solve_s", 0.0)
        peak = way.get("peak_memory_bytes")
        rate = way.get("pairs_per_s")
        rows.append([name, f"{rate:,.0f}" if rate else "", f"{seconds:.1f}" if seconds else "",
                     f"{peak / 2**30:.2f}" if peak else ""])  # fmt: skip
    print(*table(["", "pairs a second", "seconds", "peak GiB"], rows), "", sep="\n")
    print(*table(["ratio", ""], [[name, f"{value:,.2f}"] for name, value in results["ratios"].items()]), sep="\n")


if __name__ == "__main__":
    main()
