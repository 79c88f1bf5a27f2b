"""Write the model card of a bundle from its manifest: what it is, what it was measured on, and what it is for."""

from collections.abc import Mapping, Sequence
from typing import Any

from embed.options import Only, hints_of, metadata
from embed.spec import UNKNOWN
from heads.config import STEPPED, HeadConfig, TrainConfig
from heads.report.figures import ends, number
from runtime.scoring.manifest import (
    BundleManifest,
    DecodingParity,
    OutputEntry,
    Parity,
    PrecisionParity,
    UncertaintyParity,
)

# The part of a card that a hub reads. Licence and base model are missing, because only the person who pushes knows
# them.
FRONT = """---
library_name: plaudit
tags:
- onnx
- clip
- human-preference
- reward-model
- image-aesthetics
---"""
NOT_FOR = (
    "Judging people, or finding out who is in a picture: it has learnt what was liked, and nothing about anybody.",
    "Deciding alone what is shown, removed or paid for: a person should see its decisions and be able to appeal.",
    "Finding out whether a picture is true, safe or lawful: what is liked may be none of these.",
    "Pictures and prompts unlike the data above: their scores are guesses.",
    "Being the only measure of a generator that was tuned to please it.",
)
FIGURES = {
    "pair_accuracy": "Pairs in the same order as people's choices (equal scores count half)",
    "frozen_pair_accuracy": "The same before unfreezing",
    "zero_shot_pair_accuracy": "The same for zero-shot CLIP",
    "chance": "The same for chance",
}


def model_card(manifest: BundleManifest) -> str:
    """Return README.md of the bundle, in Markdown."""
    identity, head, provenance = manifest["identity"], manifest["head"], manifest["provenance"]
    entries = manifest.get("outputs", [])
    sections = [
        FRONT,
        f"# {len(entries)} outputs on {identity['model']}"
        if entries
        else f"# A preference head on {identity['model']}",
        "Scores how likely a community is to applaud a picture"
        + (" under a prompt. " if "text_embedding" in head["inputs"] else ". ")
        + "Higher is preferred; a score has no unit, and only differences of scores"
        + (" under one prompt" if "text_embedding" in head["inputs"] else "")
        + " mean something.",
        "## Use",
        _use(manifest),
        "## What it is made of",
        _list(
            {
                "Backbone": f"{identity['model']}, weights {identity['weights'][:16]}",
                "Pixels": _pixels(identity["preprocess"]),
                "Activation": _known(identity["activation"]),
                "Tokenizer": _known(identity["tokenizer"], f", context {identity['context_length']}"),
                "Head": None if entries else _inline(used_options(head["config"], _kind(head["config"]))),
                "Graphs": f"ONNX opset {manifest['opset']} at {', '.join(manifest['precisions'])}",
            }
        ),
    ]
    if entries:
        sections += ["## Outputs", _outputs(entries)]
        for one in entries:
            if one["kind"] == "head":
                about = _head(one["provenance"], _kind(one["config"]), one["calibration"], one["committee"])
                sections += [f"## {one['name']}", *(text.replace("## ", "### ", 1) for text in about)]
    else:
        sections += _head(provenance, _kind(head["config"]), manifest["calibration"], head.get("committee"))
    first = entries[0]["name"] if entries else ""
    sections += ["## Agreement with torch", *_parity(manifest["parity"], manifest["precisions"], first)]
    sections += [
        "## What it is not for",
        "The head has learnt the taste of the people in its data, and the backbone has the biases of its own data.",
        "\n".join(f"- {what}" for what in NOT_FOR),
        "## Made with",
        _list(provenance["versions"]),
    ]
    return "\n\n".join(sections) + "\n"


def _outputs(entries: Sequence[OutputEntry]) -> str:
    rows = ["| output | what it is | depends on |", "|---|---|---|"]
    for place, one in enumerate(entries):
        if one["kind"] == "blend":
            what = " + ".join(f"{weight:g} * {name}" for name, weight in one["terms"].items())
        else:
            similarity = "cosine of picture and prompt, zero-shot CLIP's score"
            what = similarity if one["kind"] == "similarity" else f"head: {_inline(one['config'])}"
        first = "; the default" if place == 0 else ""
        rows.append(f"| {one['name']} | {what}{first} | {', '.join(one['inputs'])} |")
    return "\n".join(rows)


def used_options(options: Mapping[str, Any], kind: str | None) -> dict[str, Any]:
    """Return those options of a head or its training that have an effect for a head of this kind and its loss."""
    hints = {**hints_of(HeadConfig), **hints_of(TrainConfig)}
    of = {"head": kind, "loss": options.get("loss")}

    def used(name: str) -> bool:
        only = metadata(hints[name], Only) if name in hints else None
        stepped = name not in ("warmup", "max_grad_norm") or kind in STEPPED
        return (
            name != "history"
            and stepped
            and (only is None or of[only.option] is None or of[only.option] in only.values)
        )

    return {name: value for name, value in options.items() if used(name)}


def _figures(found: Mapping[str, Any]) -> list[str]:
    """Return a table of how good a head is, each figure with its interval, and the protocol of the measurement."""
    rows = ["| figure | value | 95 % interval |", "|---|---|---|"]
    for name, label in FIGURES.items():
        if one := found.get(name):
            rows.append(f"| {label} | {number(one['value'], '.3f')} | {ends(one)} |")
    for name, lead in found.get("lead", {}).items():
        over = {"zero_shot": "zero-shot CLIP"}.get(name, name)
        difference = lead["difference"]
        said = f"{number(difference['value'], '+.3f')}, p = {number(lead['p_value'], '.2g')}"
        rows.append(f"| Lead over {over} | {said} | {ends(difference, '+.3f')} |")
    protocol = found.get("protocol")
    of = f" of {protocol['pairs']}; {protocol['average']}; {protocol['interval']}" if protocol else ""
    return ["\n".join(rows), f"{found['pairs']:,} pairs{of}."] if "pairs" in found else ["\n".join(rows)]


def _head(
    provenance: Mapping[str, Any],
    kind: str | None,
    calibration: Mapping[str, Any] | None,
    committee: Mapping[str, int] | None,
) -> list[str]:
    """Return the sections on where a head comes from and what its scores mean."""
    sections = []
    for title, name in (("Data", "data"), ("Training", "training"), ("Held-out split", "split")):
        if entry := provenance[name]:
            sections += [f"## {title}", _list(used_options(entry, kind) if name == "training" else entry)]
    if figures := provenance["metrics"]:
        sections += ["## Figures", *_figures(figures)]
    if calibration:
        fitted = {"Temperature": calibration["temperature"]["value"], **calibration.get("fitted_on", {})}
        sections += ["## Calibration", _list(fitted)]
    if committee:
        sections += [
            "## How sure a score is",
            "Each score comes with its `uncertainty`, in the same units: a standard error from"
            f" {committee['members']} heads, each trained without one of {committee['groups']} parts of the"
            " data. The uncertainty of a difference is the square root of the sum of both squares. It says how much"
            " other data of the same kind would have changed the score. It says nothing about errors of all such data.",
        ]
    return sections


def _use(manifest: BundleManifest) -> str:
    check = "python -m export check BUNDLE"
    if any("image" in graphs for graphs in manifest["graphs"].values()):
        named = " --outputs all" if manifest.get("outputs") else ""
        prompt = "a photo of a cat" if "text_embedding" in manifest["head"]["inputs"] else ""
        return (
            f"```sh\npython -m runtime score BUNDLE --prompt 'a photo of a cat'{named} 1.jpg\n{check}\n```\n\n"
            "In Python, with a list of files or bytes of pictures:\n\n```python\nfrom plaudit import Scorer\n\n"
            f'scores = Scorer.load("BUNDLE").score("{prompt}", ["1.jpg", "2.jpg"])\n```'
        )
    vectors = ", ".join(f'"{name}": {name}s' for name in manifest["head"]["inputs"])
    return (
        "It holds only a head, and scores vectors that the backbone below makes elsewhere: (n, d) float32 of length 1."
        f" In Python:\n\n```\nfrom runtime.scoring.scorer import Scorer\n\n"
        f'scores = Scorer.load("BUNDLE").score_vectors({{{vectors}}})["score"]\n```\n\n'
        f"On the command line:\n\n```\n{check}\n```"
    )


def _kind(config: Mapping[str, Any]) -> str | None:
    """Return the kind of head that a configuration describes, or None for a head from elsewhere."""
    kind = config.get("kind")
    return kind if isinstance(kind, str) else None


def _known(name: str, more: str = "") -> str | None:
    return None if name == UNKNOWN else name + more


def _pixels(preprocess: Mapping[str, Any] | None) -> str | None:
    if preprocess is None:
        return None
    height, width = preprocess["size"]
    return f"{height} x {width}, {preprocess['resize_mode']}, {preprocess['interpolation']}"


def measured_on(parity: Parity) -> str:
    """Describe in words what a bundle and torch were compared on."""
    scores = next(iter(parity["precisions"].values()))["scores"]
    what = "random vectors of pictures" if parity["pictures"] == "vectors" else f"{parity['pictures']} pictures"
    return f"{scores['pictures']} {what} under {scores['prompts']} prompts"


def lowest_cosine(figures: PrecisionParity) -> str:
    """Return the lowest cosine between a bundle's vectors and torch's, or an empty string if it has no vectors."""
    cosines = [vector["cosine_min"] for vector in figures["vectors"].values()]
    return f"{min(cosines):.7f}" if cosines else ""


def scores_of(figures: PrecisionParity, first: str) -> dict[str, dict[str, Any]]:
    """Return how far the scores of each output are from torch's. The first head gets the name `first`."""
    return {first: figures["scores"]} | {name: of["scores"] for name, of in figures.get("outputs", {}).items()}


def _parity(parity: Parity, precisions: Sequence[str], first: str) -> list[str]:
    named = "| output " if first else ""
    rows = [
        f"| precision {named}| largest score difference | rank correlation | pairs | order changed | lowest cosine |"
    ]
    rows.append("|---|---|---|---|---|---|" + "---|" * bool(first))
    for precision, figures in parity["precisions"].items():
        for name, scores in scores_of(figures, first).items():
            of = f"| {name} " if first else ""
            rows.append(
                f"| {precision} {of}| {scores['max_score_difference']:.2e} | {scores['spearman']:.6f} "
                f"| {scores['decided_pairs']} | {scores['flips']:.3%} | {lowest_cosine(figures)} |"
            )
    moved = parity.get("decoding")
    decoded = [] if moved is None else [_decoding(moved)]
    each = scores_of(next(iter(parity["precisions"].values())), first)
    spreads = [f"{scores['score_spread']:.3g}" + f" ({name})" * bool(first) for name, scores in each.items()]
    spread = ", ".join(spreads)
    note = f"Measured on {measured_on(parity)}; torch's scores spread by {spread}."
    uncertainties = [
        f"Uncertainties {f'of {name} ' * bool(name)}at {precision} are {doubt['mean']:.3g} on average, and differ by"
        f" at most {doubt['max_difference']:.2e}."
        for precision, figures in parity["precisions"].items()
        for name, doubt in _doubts(figures, first).items()
    ]
    unmeasured = [
        f"{precision} runs only on CUDA, and this bundle was made without CUDA. Its structure equals torch in float32,"
        " and the service compares it with the bundle's reference when it starts."
        for precision in precisions
        if precision not in parity["precisions"]
    ]
    return [note, "\n".join(rows), *uncertainties, *unmeasured, *decoded]


def _doubts(figures: PrecisionParity, first: str) -> dict[str, UncertaintyParity]:
    others = figures.get("outputs", {})
    found = {first: figures["uncertainty"]} if "uncertainty" in figures else {}
    return found | {name: of["uncertainty"] for name, of in others.items() if "uncertainty" in of}


def _decoding(moved: DecodingParity) -> str:
    return (
        f"Large JPEGs are decoded at a fraction of their size. Compared with exact pixels, {moved['pictures']} of the"
        f" pictures have a cosine of at least {moved['cosine_min']:.6f}, and {moved['flips']:.3%} of"
        f" {moved['decided_pairs']} pairs change their order."
    )


def _list(values: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {_inline(value)}" for name, value in values.items() if value is not None)


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_inline(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_inline(inner) for inner in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
