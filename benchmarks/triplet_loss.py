"""Time sentence-transformers' TripletLoss on the pairs of heads.py, in an interpreter that has it but not plaudit.

heads.py runs it with three arguments: the folder with img.npy, txt.npy and pairs.npy, the number of pairs, and the
batch size. It prints one JSON document."""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from sentence_transformers.losses import TripletDistanceMetric, TripletLoss
from torch.utils.data import DataLoader, Dataset

folder, sample, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
image, text = np.load(folder + "/img.npy"), np.load(folder + "/txt.npy")
a, b, wins = np.load(folder + "/pairs.npy")
each, dim = len(image) // len(text), image.shape[1]


class Triplets(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return min(len(a), sample)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        first, second = (a[i], b[i]) if wins[i] else (b[i], a[i])
        return tuple(torch.from_numpy(x).float() for x in (text[a[i] // each], image[first], image[second]))


class Sides(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sides = torch.nn.ModuleDict({side: torch.nn.Linear(dim, dim, bias=False) for side in ("text", "image")})

    def forward(self, features: dict[str, Any]) -> dict[str, torch.Tensor]:
        vectors = self.sides[features["side"]](features["vectors"])
        return {"sentence_embedding": torch.nn.functional.normalize(vectors, dim=-1)}


model = Sides()
loss = TripletLoss(model, distance_metric=TripletDistanceMetric.EUCLIDEAN, triplet_margin=0.3)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
start = time.monotonic()
for anchor, positive, negative in DataLoader(Triplets(), batch_size=batch, shuffle=True):
    sides = zip(("text", "image", "image"), (anchor, positive, negative), strict=True)
    value = loss([{"side": side, "vectors": x} for side, x in sides], torch.zeros(len(anchor)))
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
print(json.dumps({"pairs_per_s": min(len(a), sample) / (time.monotonic() - start)}))
