"""What a bundle gives: heads by name, the cosine of zero-shot CLIP, and weighted sums; in torch, and as one graph.

What torch gives here is what the graphs are compared with, so nothing of it is taken from them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embed.arrays import Float32s
from embed.spec import Identity, InputError, require_same_identity
from embed.wording import unknown_name
from export.graphs import compose, many
from runtime.scoring.manifest import BundleManifest, OutputEntry
from runtime.scoring.outputs import FIRST, require_names, spelled

if TYPE_CHECKING:
    from onnx import ModelProto

    from heads.committee import Committee
    from heads.models import Head

SIMILARITY = "clip_similarity"
BLEND = "blend"
PROVENANCE = ("training", "data", "split", "metrics")
TERM = re.compile(r"(?:([0-9.]+(?:e[+-]?[0-9]+)?)\s*\*\s*)?([A-Za-z]\w*)\s*", re.ASCII)


@dataclass(frozen=True)
class NamedHead:
    """A head with what makes it sure, and its manifest, which is that of head.json; and its graph, if that is known."""

    name: str
    head: "Head"
    committee: "Committee | None"
    manifest: Mapping[str, Any]
    graph: "ModelProto | None" = None  # of one that is kept as a bundle has it (see export.graphs.kept)

    @property
    def described(self) -> dict[str, Any]:
        """Its shape and its committee, as manifests of bundles have them."""
        if self.graph is not None:
            return {"config": dict(self.manifest["head"]), "committee": self.manifest["committee"]}
        members = self.committee
        committee = {"members": len(members.members), "groups": members.groups} if members else None
        return {"config": dict(self.manifest["head"]), "committee": committee}


@dataclass(frozen=True)
class Outputs:
    """The outputs of a bundle: the heads, of which the first is the one that is scored by unless another is asked for,
    and what is made beside them. A head without another is nameless, and its bundle is as there always were."""

    heads: tuple[NamedHead, ...]
    clip_similarity: bool = False
    blends: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # the weights of outputs, by name

    def __post_init__(self) -> None:
        if not self.named:
            return
        require_names(self.names)
        scores = self.names[: len(self.names) - len(self.blends)]
        for term in (term for terms in self.blends.values() for term in terms):
            if term not in scores:
                raise unknown_name("output in --blend", term, scores)
        first, *others = self.heads
        identity = Identity.from_json(first.manifest["identity"])
        for other in others:
            theirs = Identity.from_json(other.manifest["identity"])
            require_same_identity(identity, f"the head {first.name}", theirs, f"the head {other.name}")

    @classmethod
    def of(cls, head: "Head", committee: "Committee | None", manifest: Mapping[str, Any]) -> "Outputs":
        """Those of one head."""
        return cls((NamedHead(FIRST, head, committee, manifest),))

    @classmethod
    def of_bundle(cls, manifest: BundleManifest, heads: Sequence[NamedHead]) -> "Outputs":
        """Those of a bundle that was made of these heads; raise InputError unless there are as many."""
        entries = manifest.get("outputs") or []
        names = [entry["name"] for entry in entries if entry["kind"] == "head"] or [FIRST]
        if len(heads) != len(names):
            raise InputError(
                f"got {len(heads)} heads for a bundle of {len(names)}; name each that it was made of, in the same order"
            )
        named = tuple(replace(head, name=name) for name, head in zip(names, heads, strict=True))
        blends = {entry["name"]: entry["terms"] for entry in entries if entry["kind"] == "blend"}
        return cls(named, any(entry["kind"] == "similarity" for entry in entries), blends)

    @property
    def named(self) -> bool:
        """Whether outputs are asked for by name."""
        return len(self.names) > 1 or self.heads[0].name != FIRST

    @property
    def names(self) -> tuple[str, ...]:
        return (*(head.name for head in self.heads), *([SIMILARITY] if self.clip_similarity else []), *self.blends)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The vectors that all of them read."""
        return tuple(dict.fromkeys(name for output in self.names for name in self.inputs_of(output)))

    def inputs_of(self, name: str) -> tuple[str, ...]:
        """The vectors that an output depends on."""
        if name == SIMILARITY:
            return ("image_embedding", "text_embedding")
        if name in self.blends:
            return tuple(dict.fromkeys(one for term in self.blends[name] for one in self.inputs_of(term)))
        return next(head.head.inputs for head in self.heads if head.name == name)

    def called(self, name: str, value: str = "score") -> str:
        """What the graphs call a value of an output."""
        return value if name == self.heads[0].name else spelled(name, value)

    def scores(self, vectors: Mapping[str, Float32s]) -> dict[str, Float32s]:
        """The score (n,) of each output by torch, of vectors with n rows each."""
        found = {head.name: torch_scores(head.head, vectors) for head in self.heads}
        if self.clip_similarity:
            image, text = (vectors[name].astype(np.float64) for name in ("image_embedding", "text_embedding"))
            found[SIMILARITY] = (image * text).sum(axis=1).astype(np.float32)
        for name, terms in self.blends.items():
            parts = [weight * found[term].astype(np.float64) for term, weight in terms.items()]
            found[name] = np.sum(parts, axis=0).astype(np.float32)
        return found

    def uncertainties(self, vectors: Mapping[str, Float32s]) -> dict[str, Float32s]:
        """The uncertainty (n,) by torch of each head that has one."""
        return {head.name: torch_scores(head.committee, vectors) for head in self.heads if head.committee}

    def graph(self, widths: Mapping[str, int]) -> "ModelProto":
        """The vectors that are read, (n, widths[name]) float32 each -> every value of every output (n,)."""
        parts = {
            one.name: compose.export_scores(one.head, one.committee, widths, one.manifest.get("calibration"))
            if one.graph is None
            else one.graph
            for one in self.heads
        }
        if not self.named:
            return parts[FIRST]
        model = many.merge(parts)
        if self.clip_similarity:
            many.add_similarity(model, SIMILARITY, widths["text_embedding"])
        for name, terms in self.blends.items():
            many.add_blend(model, name, {self.called(term): weight for term, weight in terms.items()})
        return model

    def entries(self) -> list[OutputEntry]:
        """What a bundle's manifest says of the outputs, where they have names."""
        if not self.named:
            return []
        found: list[OutputEntry] = []
        for one in self.heads:
            provenance = {name: one.manifest.get(name) for name in PROVENANCE}
            found.append(
                {
                    "name": one.name,
                    "kind": "head",
                    "inputs": list(one.head.inputs),
                    "calibration": one.manifest.get("calibration"),
                    "provenance": provenance,
                    **one.described,  # type: ignore[typeddict-item]
                }
            )
        if self.clip_similarity:
            found.append({"name": SIMILARITY, "kind": "similarity", "inputs": list(self.inputs_of(SIMILARITY))})
        for name, terms in self.blends.items():
            inputs = list(self.inputs_of(name))
            found.append({"name": name, "kind": "blend", "inputs": inputs, "terms": dict(terms)})
        return found


def torch_scores(head: "Head", vectors: Mapping[str, Float32s]) -> Float32s:
    """The head's scores (n,) of vectors with n rows each."""
    import torch

    with torch.inference_mode():
        scores: torch.Tensor = head(**{name: torch.from_numpy(vectors[name]) for name in head.inputs})
        return scores.numpy()


def parse_blends(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """The weights of each blend by its name, from texts such as "0.7*liked + 0.3*aesthetic" or "mix = liked - unsafe".

    >>> parse_blends(["0.7*liked + 0.3*aesthetic", "mix = liked - 2 * unsafe"])
    {'blend': {'liked': 0.7, 'aesthetic': 0.3}, 'mix': {'liked': 1.0, 'unsafe': -2.0}}
    """
    blends: dict[str, dict[str, float]] = {}
    for text in texts:
        before, equals, after = text.partition("=")
        name, formula = (before.strip(), after) if equals else (BLEND, text)
        if name in blends:
            raise InputError(f"two blends are called {name}; give each a name, as in 'mix = {formula.strip()}'")
        blends[name] = _terms(text, formula)
    return blends


def _terms(text: str, formula: str) -> dict[str, float]:
    terms: dict[str, float] = {}
    rest = formula.strip()
    while rest or not terms:
        sign = rest[:1] if rest[:1] in ("+", "-") else ""
        found = TERM.match(rest := rest[len(sign) :].lstrip())
        try:
            if found is None or (terms and not sign):
                raise ValueError
            weight = float(found[1] or 1) * (-1 if sign == "-" else 1)
        except ValueError:
            said = f"--blend {text!r} is no weighted sum of outputs at {rest[:30]!r}"
            wanted = "wanted one such as '0.7*liked + 0.3*aesthetic' or 'mix = liked - 0.5*unsafe'"
            raise InputError(f"{said}; {wanted}") from None
        if found[2] in terms or abs(weight) > np.finfo(np.float32).max.item():
            raise InputError(f"--blend {text!r}: wanted each output once, with a finite weight, not {found[0].strip()}")
        terms[found[2]], rest = weight, rest[found.end() :]
    return terms
