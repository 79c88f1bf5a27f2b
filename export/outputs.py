"""The outputs of a bundle: named heads, the cosine of zero-shot CLIP, and weighted sums, in torch and as one graph.

The graphs are compared with what torch gives here, so nothing here uses the graphs.
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
    """A head, its committee, its manifest (the content of head.json), and its graph if that is known."""

    name: str
    head: "Head"
    committee: "Committee | None"
    manifest: Mapping[str, Any]
    graph: "ModelProto | None" = None  # for a head that is taken from a bundle (see export.graphs.kept)

    @property
    def described(self) -> dict[str, Any]:
        """The head's configuration and committee, as in a bundle's manifest."""
        if self.graph is not None:
            return {"config": dict(self.manifest["head"]), "committee": self.manifest["committee"]}
        members = self.committee
        committee = {"members": len(members.members), "groups": members.groups} if members else None
        return {"config": dict(self.manifest["head"]), "committee": committee}


@dataclass(frozen=True)
class Outputs:
    """The outputs of a bundle: heads, the first of which is the default, and outputs made from them.

    A single head without other outputs has no name, and its bundle has the format of bundles with one output.
    """

    heads: tuple[NamedHead, ...]
    clip_similarity: bool = False
    blends: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # from each name to weights of outputs

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
        """Return the outputs of one head."""
        return cls((NamedHead(FIRST, head, committee, manifest),))

    @classmethod
    def of_bundle(cls, manifest: BundleManifest, heads: Sequence[NamedHead]) -> "Outputs":
        """Return the outputs of a bundle that was made from these heads. Raise InputError if their number differs."""
        entries = manifest.get("outputs") or []
        names = [entry["name"] for entry in entries if entry["kind"] == "head"] or [FIRST]
        if len(heads) != len(names):
            raise InputError(
                f"got {len(heads)} heads for a bundle of {len(names)}; name those that it was made from, in order"
            )
        named = tuple(replace(head, name=name) for name, head in zip(names, heads, strict=True))
        blends = {entry["name"]: entry["terms"] for entry in entries if entry["kind"] == "blend"}
        return cls(named, any(entry["kind"] == "similarity" for entry in entries), blends)

    @property
    def named(self) -> bool:
        """Whether the outputs have names."""
        return len(self.names) > 1 or self.heads[0].name != FIRST

    @property
    def names(self) -> tuple[str, ...]:
        return (*(head.name for head in self.heads), *([SIMILARITY] if self.clip_similarity else []), *self.blends)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The vectors that the outputs read, together."""
        return tuple(dict.fromkeys(name for output in self.names for name in self.inputs_of(output)))

    def inputs_of(self, name: str) -> tuple[str, ...]:
        """Return the vectors that an output depends on."""
        if name == SIMILARITY:
            return ("image_embedding", "text_embedding")
        if name in self.blends:
            return tuple(dict.fromkeys(one for term in self.blends[name] for one in self.inputs_of(term)))
        return next(head.head.inputs for head in self.heads if head.name == name)

    def called(self, name: str, value: str = "score") -> str:
        """Return the graphs' name for a value of an output."""
        return value if name == self.heads[0].name else spelled(name, value)

    def scores(self, vectors: Mapping[str, Float32s]) -> dict[str, Float32s]:
        """Return torch's scores (n,) for each output, from vectors with n rows each."""
        found = {head.name: torch_scores(head.head, vectors) for head in self.heads}
        if self.clip_similarity:
            image, text = (vectors[name].astype(np.float64) for name in ("image_embedding", "text_embedding"))
            found[SIMILARITY] = (image * text).sum(axis=1).astype(np.float32)
        for name, terms in self.blends.items():
            parts = [weight * found[term].astype(np.float64) for term, weight in terms.items()]
            found[name] = np.sum(parts, axis=0).astype(np.float32)
        return found

    def uncertainties(self, vectors: Mapping[str, Float32s]) -> dict[str, Float32s]:
        """Return torch's uncertainties (n,) for each head that has a committee."""
        return {head.name: torch_scores(head.committee, vectors) for head in self.heads if head.committee}

    def graph(self, widths: Mapping[str, int]) -> "ModelProto":
        """Export a graph from the vectors that are read, (n, widths[name]) float32 each, to all values of all
        outputs."""
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
        """Return the entries of the outputs in a bundle's manifest, empty if they have no names."""
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
    """Return the head's scores (n,) from vectors with n rows each."""
    import torch

    with torch.inference_mode():
        scores: torch.Tensor = head(**{name: torch.from_numpy(vectors[name]) for name in head.inputs})
        return scores.numpy()


def parse_blends(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the weights of each blend by its name, from texts such as "0.7*liked + 0.3*aesthetic".


    A text may begin with a name, as in "mix = liked - unsafe". Raise InputError if a text is not a weighted sum.
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
            said = f"--blend {text!r} is not a weighted sum of outputs, from {rest[:30]!r} on"
            wanted = "wanted one such as '0.7*liked + 0.3*aesthetic' or 'mix = liked - 0.5*unsafe'"
            raise InputError(f"{said}; {wanted}") from None
        if found[2] in terms or abs(weight) > np.finfo(np.float32).max.item():
            raise InputError(f"--blend {text!r}: wanted each output once, with a finite weight, not {found[0].strip()}")
        terms[found[2]], rest = weight, rest[found.end() :]
    return terms
