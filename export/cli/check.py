"""`python -m export check`."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from embed.cli.console import table
from embed.options import Option
from embed.spec import InputError, require_same_identity
from embed.wording import one_line
from export.cli.samples import Samples
from export.config import ParityConfig
from runtime.config import SessionConfig

if TYPE_CHECKING:
    from runtime.scoring.bundle import Bundle
    from runtime.scoring.manifest import Parity


def check(
    bundle: Path,
    /,
    *,
    providers: Annotated[tuple[str, ...] | None, Option("--provider")] = None,
    heads: Annotated[tuple[Path, ...], Option("--head")] = (),
    runtime_only: bool = False,
    config: partial[ParityConfig],
    samples: Samples,
) -> dict[str, object]:
    """Check that a bundle still gives the scores that it gave at export.

    First, this machine's onnxruntime scores the bundle's reference. Then, if torch and the weights are installed here,
    the bundle is compared with torch.

    Example:
        plaudit export check bundle --runtime-only

    Args:
        bundle: A folder made by `python -m export onnx`.
        providers: The execution provider of onnxruntime to use: cpu, cuda or another. By default the best one that is
            installed.
        heads: The head that the bundle was made from, to run it in torch too. If there are several, give each, in the
            bundle's order.
        runtime_only: Do not compare with torch, even if it is installed.
    """
    from runtime.scoring.bundle import open_bundle
    from runtime.scoring.graphs import runnable
    from runtime.scoring.scorer import Scorer

    opened = open_bundle(bundle)
    reference = {
        precision: Scorer(opened, SessionConfig(providers=providers, precision=precision)).check_reference()
        for precision in runnable(opened.graphs, SessionConfig(providers=providers))
    }
    print(f"{bundle}: all files are unchanged since the export")
    if left_out := ", ".join(precision for precision in opened.graphs if precision not in reference):
        print(f"{left_out} is not checked: it runs only on CUDA, which this machine does not have")
    rows = [[precision, *(f"{value:.3g}" for value in row.values())] for precision, row in reference.items()]
    print(*table(["reference", *next(iter(reference.values()))], rows), sep="\n")
    result: dict[str, object] = {"bundle": str(bundle), "digest": opened.digest, "reference": reference, "torch": None}
    missing = [name for name in ("torch", "open_clip") if find_spec(name) is None]
    if runtime_only or missing:
        reason = "--runtime-only" if runtime_only else f"{' and '.join(missing)} not installed"
        print(f"not compared with torch: {reason}")
        return result
    if opened.is_head_alone and not heads:
        print("not compared with torch: the bundle holds only a head; name the head that it was made from with --head")
        return result
    return result | {"torch": _compare_with_torch(opened, heads, samples.fill(config))}


def _compare_with_torch(bundle: "Bundle", folders: tuple[Path, ...], config: ParityConfig) -> "Parity | None":
    from embed.backbones.load import load_backbone
    from export.exported import named_heads, parity_lines
    from export.head_alone import measure_head_alone
    from export.measure import measure
    from export.outputs import Outputs

    names = [entry["name"] for entry in bundle.manifest.get("outputs", [])]
    outputs = Outputs.of_bundle(bundle.manifest, named_heads(folders, None, bool(names))) if folders else None
    if bundle.is_head_alone and outputs:
        result = measure_head_alone(bundle.path, outputs, config)
        print(*parity_lines(result, *names[:1]), sep="\n")
        return result
    try:
        backbone = load_backbone(bundle.source)
    except (InputError, OSError) as error:
        print(f"not compared with torch: the backbone cannot be loaded here ({one_line(error)})")
        return None
    here = "the backbone on this machine"
    require_same_identity(bundle.identity, f"the bundle {bundle.path}", backbone.identity, here)
    result = measure(bundle.path, backbone, outputs, config)
    print(*parity_lines(result, *names[:1]), sep="\n")
    return result
