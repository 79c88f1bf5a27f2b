"""What bundle.json holds, as types, and what the graphs of a bundle and their outputs are called."""

from typing import Any, Literal, NotRequired, TypedDict, get_args

from runtime.config import Precision

Part = Literal["model", "image", "text", "head"]
PARTS: tuple[Part, ...] = get_args(Part)
# What a graph of scores may give, each float32 (n,).
OUTPUTS = {
    "score": "the head's own score",
    "uncertainty": "standard error of the score, in its units, by heads that each did without a part of its training",
    "calibrated_score": "score / temperature: sigmoid(difference of two) is the probability that one is preferred",
    "percentile": "share of a reference set of scores that lies below; the graph gives 0 to 1, and all else 0 to 100",
}


class FileEntry(TypedDict):
    """What the manifest says of a file."""

    sha256: str
    bytes: int


Tensors = dict[str, tuple[str, list[int | str]]]  # type and shape by name; in JSON each tuple is a list


class GraphEntry(TypedDict):
    """What the manifest says of a graph; see Graph."""

    file: str
    inputs: Tensors
    outputs: Tensors


class HeadEntry(TypedDict):
    """What the manifest says of the head."""

    inputs: list[str]
    config: dict[str, object]  # the fields of heads.models.HeadConfig
    committee: NotRequired[dict[str, int] | None]  # how many members give the uncertainty, and of how many groups


class OutputEntry(TypedDict):
    """What the manifest of a bundle with several outputs says of one of them; the first is a head's."""

    name: str
    kind: Literal["head", "blend", "similarity"]
    inputs: list[str]  # the vectors that it depends on
    terms: NotRequired[dict[str, float]]  # of a blend: the weight of each output that it sums
    config: NotRequired[dict[str, object]]  # of a head, as all that follows: the fields of heads.models.HeadConfig
    committee: NotRequired[dict[str, int] | None]
    calibration: NotRequired[dict[str, Any] | None]
    provenance: NotRequired[dict[str, Any]]  # training, data, split and metrics, where its manifest says them


class UncertaintyParity(TypedDict):
    """How far uncertainties are from torch's, and how large these are."""

    max_difference: float
    mean: float


class OutputParity(TypedDict):
    """How far one output of several is from torch."""

    scores: dict[str, Any]  # the fields of export.parity.ScoreParity, and the limit at fp32
    uncertainty: NotRequired[UncertaintyParity]  # where the bundle gives one, and torch was asked


class PrecisionParity(TypedDict):
    """How far the graphs of one precision are from torch."""

    scores: dict[str, Any]  # of the first head: the fields of export.parity.ScoreParity, and the limit at fp32
    vectors: dict[str, dict[str, Any]]  # by name, the fields of embed.graphs.trace.Certificate
    whole_graph: NotRequired[float]  # the largest difference of scores between model.onnx and the parts
    uncertainty: NotRequired[UncertaintyParity]  # where the bundle gives one, and torch was asked
    outputs: NotRequired[dict[str, OutputParity]]  # by name, where there are more than the first head's


class DecodingParity(TypedDict):
    """What decoding large JPEGs as the bundle does changes against exact pixels, by torch at fp32."""

    pictures: int  # the large ones
    cosine_min: float
    max_score_difference: float
    decided_pairs: int
    flips: float


class Parity(TypedDict):
    """How far a bundle is from torch, and on which pictures that was measured."""

    pictures: Literal["real", "generated", "vectors"]  # the last are random, of a head alone
    precisions: dict[Precision, PrecisionParity]
    decoding: NotRequired[DecodingParity]  # where the bundle scales, and large ones are among real pictures


class DecodingEntry(TypedDict):
    """How large JPEGs are decoded, and what that did to vectors where it was chosen."""

    scale: int  # of embed.inputs.scaled
    rows: int  # pictures on which the cosine to exact was measured
    cosine_mean: float
    cosine_min: float


class Provenance(TypedDict):
    """Where a bundle comes from: versions of libraries, and what the head's manifest says, where it does."""

    versions: dict[str, str]
    training: dict[str, object] | None
    data: dict[str, object] | None
    split: dict[str, object] | None
    metrics: dict[str, object] | None


class BundleManifest(TypedDict):
    """bundle.json."""

    format: int
    opset: int
    identity: dict[str, Any]  # the fields of Identity
    source: dict[str, Any]  # the fields of Source
    head: HeadEntry  # the first, with the inputs of all
    outputs: NotRequired[list[OutputEntry]]  # absent where there is one head alone
    precisions: list[Precision]
    tokenizer: dict[str, Any] | None  # the fields of TokenizerConfig
    calibration: dict[str, Any] | None  # as heads.evaluation.calibration fits it
    decoding: NotRequired[DecodingEntry | None]  # None, or absent from older bundles, where all is decoded exactly
    provenance: Provenance
    graphs: dict[Precision, dict[Part, GraphEntry]]
    reference: dict[Precision, dict[str, float]]  # how far another machine may be off reference.npz
    parity: NotRequired[Parity]  # this and the next two come last
    files: NotRequired[dict[str, FileEntry]]
    digest: NotRequired[str]
