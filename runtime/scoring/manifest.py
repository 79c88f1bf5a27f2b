"""Types of the contents of bundle.json, and the names of a bundle's graphs and outputs."""

from typing import Any, Literal, NotRequired, TypedDict, get_args

from runtime.config import Precision

Part = Literal["model", "image", "text", "head"]
PARTS: tuple[Part, ...] = get_args(Part)
# The values that a graph of scores may give, each float32 (n,).
OUTPUTS = {
    "score": "the head's own score",
    "uncertainty": "standard error of the score, in its units, from heads trained without a part of the rows",
    "calibrated_score": "score / temperature: sigmoid(difference of two) is the probability that one is preferred",
    "percentile": "share of a reference set of scores that is lower; 0 to 1 in the graph, else 0 to 100",
}


class FileEntry(TypedDict):
    """The manifest's entry for a file."""

    sha256: str
    bytes: int


Tensors = dict[str, tuple[str, list[int | str]]]  # (type, shape) by name; in JSON each tuple is a list


class GraphEntry(TypedDict):
    """The manifest's entry for a graph; see Graph."""

    file: str
    inputs: Tensors
    outputs: Tensors


class HeadEntry(TypedDict):
    """The manifest's entry for the head."""

    inputs: list[str]
    config: dict[str, object]  # the fields of heads.models.HeadConfig
    committee: NotRequired[dict[str, int] | None]  # the numbers of members and of groups behind the uncertainty


class OutputEntry(TypedDict):
    """The entry for one output, in the manifest of a bundle with several. The first is that of a head."""

    name: str
    kind: Literal["head", "blend", "similarity"]
    inputs: list[str]  # the vectors that it depends on
    terms: NotRequired[dict[str, float]]  # for a blend: the weight of each output in its sum
    config: NotRequired[dict[str, object]]  # for a head, like the fields below: the fields of heads.models.HeadConfig
    committee: NotRequired[dict[str, int] | None]
    calibration: NotRequired[dict[str, Any] | None]
    provenance: NotRequired[dict[str, Any]]  # training, data, split and metrics, if the head's manifest has them


class UncertaintyParity(TypedDict):
    """How far uncertainties differ from torch's, and how large those are."""

    max_difference: float
    mean: float


class OutputParity(TypedDict):
    """How far one of several outputs differs from torch's."""

    scores: dict[str, Any]  # the fields of export.parity.ScoreParity, and the limit at fp32
    uncertainty: NotRequired[UncertaintyParity]  # if the bundle gives one and torch computed it too


class PrecisionParity(TypedDict):
    """How far the results of the graphs at one precision differ from torch's."""

    scores: dict[str, Any]  # for the first head: the fields of export.parity.ScoreParity, and the limit at fp32
    vectors: dict[str, dict[str, Any]]  # by name, the fields of embed.graphs.trace.Certificate
    whole_graph: NotRequired[float]  # the largest difference of scores between model.onnx and the parts
    uncertainty: NotRequired[UncertaintyParity]  # if the bundle gives one and torch computed it too
    outputs: NotRequired[dict[str, OutputParity]]  # by name, if there are more outputs than the first head's


class DecodingParity(TypedDict):
    """How the bundle's decoding of large JPEGs changes results, compared with exact pixels, by torch at fp32."""

    pictures: int  # number of large pictures
    cosine_min: float
    max_score_difference: float
    decided_pairs: int
    flips: float


class Parity(TypedDict):
    """How far a bundle's results differ from torch's, and on which pictures that was measured."""

    pictures: Literal["real", "generated", "vectors"]  # "vectors" are random ones, for a head alone
    precisions: dict[Precision, PrecisionParity]
    decoding: NotRequired[DecodingParity]  # if the bundle scales, and some of the real pictures are large


class DecodingEntry(TypedDict):
    """How large JPEGs are decoded, and how that changed vectors when it was chosen."""

    scale: int  # of embed.inputs.scaled
    rows: int  # number of pictures on which the cosine to exact vectors was measured
    cosine_mean: float
    cosine_min: float


class Provenance(TypedDict):
    """The origin of a bundle: versions of libraries, and fields of the head's manifest as far as it has them."""

    versions: dict[str, str]
    training: dict[str, object] | None
    data: dict[str, object] | None
    split: dict[str, object] | None
    metrics: dict[str, object] | None


class BundleManifest(TypedDict):
    """The contents of bundle.json."""

    format: int
    opset: int
    identity: dict[str, Any]  # the fields of Identity
    source: dict[str, Any]  # the fields of Source
    head: HeadEntry  # the first head, with the inputs of all heads
    outputs: NotRequired[list[OutputEntry]]  # absent if there is only one head
    precisions: list[Precision]
    tokenizer: dict[str, Any] | None  # the fields of TokenizerConfig
    calibration: dict[str, Any] | None  # fitted by heads.evaluation.calibration
    decoding: NotRequired[DecodingEntry | None]  # None, or absent in older bundles, for exact decoding
    provenance: Provenance
    graphs: dict[Precision, dict[Part, GraphEntry]]
    reference: dict[Precision, dict[str, float]]  # how far results on another machine may differ from reference.npz
    parity: NotRequired[Parity]  # this and the next two are written last
    files: NotRequired[dict[str, FileEntry]]
    digest: NotRequired[str]
