"""The model card of a bundle, written from its manifest alone: what it is, what it was measured on, what it is for."""

from collections.abc import Mapping, Sequence
from typing import Any

from embed.spec import UNKNOWN
from runtime.scoring.manifest import BundleManifest, DecodingParity, Parity, PrecisionParity


def model_card(manifest: BundleManifest) -> str:
    """README.md of the bundle, Markdown."""
    identity, head, provenance = manifest["identity"], manifest["head"], manifest["provenance"]
    sections = [
        f"# A preference head on {identity['model']}",
        "Scores how much a community is likely to applaud a picture"
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
                "Head": _inline(head["config"]),
                "Graphs": f"ONNX opset {manifest['opset']} at {', '.join(manifest['precisions'])}",
            }
        ),
    ]
    for title, entry in (
        ("Data", provenance["data"]),
        ("Training", provenance["training"]),
        ("Held-out split", provenance["split"]),
        ("Figures", provenance["metrics"]),
    ):
        if entry:
            sections += [f"## {title}", _list(entry)]
    if calibration := manifest["calibration"]:
        fitted = {"Temperature": calibration["temperature"]["value"], **calibration.get("fitted_on", {})}
        sections += ["## Calibration", _list(fitted)]
    if committee := head.get("committee"):
        sections += [
            "## How sure a score is",
            "Beside each score stands its `uncertainty`, in the score's units: the standard error by"
            f" {committee['members']} heads, of which each did without another of {committee['groups']} parts of the"
            " data. That of a difference is the root of the sum of both squares. It says how far other data of the same"
            " kind would have moved the score, and nothing of what all such data gets wrong.",
        ]
    sections += ["## Agreement with torch", *_parity(manifest["parity"], manifest["precisions"])]
    sections += [
        "## Limits",
        "The head has learnt the taste of the people in its data, and the backbone the biases of its own. It judges"
        " pictures, not people; it should not decide alone what is shown or removed. Scores of pictures unlike the"
        " data above are guesses.",
        "## Made with",
        _list(provenance["versions"]),
    ]
    return "\n\n".join(sections) + "\n"


def _use(manifest: BundleManifest) -> str:
    check = "python -m export check BUNDLE"
    if any("image" in graphs for graphs in manifest["graphs"].values()):
        return f"```\npython -m runtime score BUNDLE --prompt 'a photo of a cat' 1.jpg\n{check}\n```"
    vectors = ", ".join(f'"{name}": {name}s' for name in manifest["head"]["inputs"])
    return (
        "It holds a head alone and scores vectors that the backbone below makes elsewhere, (n, d) float32 of length 1."
        f" In Python:\n\n```\nfrom runtime.scoring.scorer import Scorer\n\n"
        f'scores = Scorer.load("BUNDLE").score_vectors({{{vectors}}})["score"]\n```\n\n'
        f"On the command line:\n\n```\n{check}\n```"
    )


def _known(name: str, more: str = "") -> str | None:
    return None if name == UNKNOWN else name + more


def _pixels(preprocess: Mapping[str, Any] | None) -> str | None:
    if preprocess is None:
        return None
    height, width = preprocess["size"]
    return f"{height} x {width}, {preprocess['resize_mode']}, {preprocess['interpolation']}"


def measured_on(parity: Parity) -> str:
    """What a bundle and torch were compared on, in words."""
    scores = next(iter(parity["precisions"].values()))["scores"]
    what = "random vectors of pictures" if parity["pictures"] == "vectors" else f"{parity['pictures']} pictures"
    return f"{scores['pictures']} {what} under {scores['prompts']} prompts"


def lowest_cosine(figures: PrecisionParity) -> str:
    """Of a bundle's vectors to torch's; nothing where it makes none."""
    cosines = [vector["cosine_min"] for vector in figures["vectors"].values()]
    return f"{min(cosines):.7f}" if cosines else ""


def _parity(parity: Parity, precisions: Sequence[str]) -> list[str]:
    rows = ["| precision | largest score difference | rank correlation | pairs | order changed | lowest cosine |"]
    rows.append("|---|---|---|---|---|---|")
    for precision, figures in parity["precisions"].items():
        scores = figures["scores"]
        rows.append(
            f"| {precision} | {scores['max_score_difference']:.2e} | {scores['spearman']:.6f} "
            f"| {scores['decided_pairs']} | {scores['flips']:.3%} | {lowest_cosine(figures)} |"
        )
    moved = parity.get("decoding")
    decoded = [] if moved is None else [_decoding(moved)]
    first = next(iter(parity["precisions"].values()))["scores"]
    note = f"Measured on {measured_on(parity)}; torch's scores spread by {first['score_spread']:.3g}."
    uncertainties = [
        f"Uncertainties at {precision} are {figures['uncertainty']['mean']:.3g} in the mean, and differ by"
        f" {figures['uncertainty']['max_difference']:.2e} at most."
        for precision, figures in parity["precisions"].items()
        if "uncertainty" in figures
    ]
    unmeasured = [
        f"{precision} runs on CUDA alone, where this bundle was not made: its structure equals torch in float32, and"
        " the service compares it with the bundle's reference when it starts."
        for precision in precisions
        if precision not in parity["precisions"]
    ]
    return [note, "\n".join(rows), *uncertainties, *unmeasured, *decoded]


def _decoding(moved: DecodingParity) -> str:
    return (
        f"Large JPEGs are decoded to a fraction of their size. Against exact pixels, {moved['pictures']} of the"
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
