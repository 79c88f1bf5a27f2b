"""A small table of candidates with pictures, and a service that asks for votes on them."""

import csv
from pathlib import Path

from service_server import small_picture


def write_candidates(folder: Path, prompts: int = 6, each: int = 4) -> Path:
    """A table of prompts and pictures, and the pictures beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(prompts):
        for j in range(each):
            name = f"{i}-{j}.png"
            (folder / name).write_bytes(small_picture(10 * i + j))
            rows.append((name, f"prompt {i}"))
    with open(folder / "candidates.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "prompt"), *rows])
    return folder / "candidates.csv"
