"""The model repository: its configuration under Triton's own schema, its graphs those of the bundle."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from embed.engines.sessions import signature
from embed.spec import InputError
from export.cli.main import main
from export.triton import export_repository
from runtime.config import SessionConfig
from runtime.scoring.bundle import Bundle, open_bundle
from runtime.scoring.scorer import Scorer

NUMPY = {"TYPE_UINT8": "uint8", "TYPE_INT32": "int32", "TYPE_FP32": "float32"}


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


def config_of(folder: Path) -> schema.ModelConfig:
    """What Triton would read; ParseError for a field or value that its schema lacks."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def shape_of_tensor(tensor: schema.ModelInput | schema.ModelOutput) -> tuple[int | str, ...]:
    """The shape that Triton gives to the model: the batch, then `reshape` where there is one, else `dims`."""
    return "any", *(
        "any" if d < 0 else d for d in (tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
    )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_configurations_describe_the_graphs(opened: Bundle, tmp_path: Path, precision: str) -> None:
    names = export_repository(opened, tmp_path / "repo", precision, "scores")
    assert names == ["scores", "scores_image", "scores_text", "scores_head"]
    assert sorted(path.name for path in (tmp_path / "repo").iterdir()) == sorted(names)
    for name in names:
        folder = tmp_path / "repo" / name
        config = config_of(folder)
        assert config.name == name and config.backend == "onnxruntime" and config.max_batch_size > 1
        assert config.HasField("dynamic_batching")
        session = onnxruntime.InferenceSession(folder / "1" / config.default_model_filename)
        found = signature(session)
        for side, tensors in (("inputs", config.input), ("outputs", config.output)):
            described = {
                tensor.name: (NUMPY[schema.DataType.Name(tensor.data_type)], shape_of_tensor(tensor))
                for tensor in tensors
            }
            assert described == {
                key: (kind, tuple(d if isinstance(d, int) else "any" for d in shape))
                for key, (kind, shape) in found[side].items()
            }
            assert all(tensor.dims for tensor in tensors)  # Triton refuses a tensor without


def test_the_models_score_like_the_bundle(opened: Bundle, tmp_path: Path) -> None:
    export_repository(opened, tmp_path / "repo")
    pixels = np.random.default_rng(0).integers(0, 256, (3, *opened.identity.preprocess.size, 3), dtype=np.uint8)
    prompts = ["a cat", "a dog", "a long and winding road"]
    session = onnxruntime.InferenceSession(tmp_path / "repo" / "plaudit" / "1" / "model.onnx")
    (score,) = session.run(["score"], {"pixels": pixels, "tokens": opened.tokenizer()(prompts)})
    np.testing.assert_allclose(
        score, Scorer(opened, SessionConfig(threads=1)).run_whole(pixels, prompts)["score"], atol=1e-6
    )


def test_the_weights_lie_on_disk_once(opened: Bundle, tmp_path: Path) -> None:
    export_repository(opened, tmp_path / "repo")
    weights = [path.stat() for path in (tmp_path / "repo").rglob("weights.bin")]
    assert len(weights) == 4 and len({status.st_ino for status in weights}) == 1


def test_nothing_is_overwritten_and_names_are_checked(opened: Bundle, tmp_path: Path) -> None:
    (tmp_path / "repo" / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match=r"not a Triton repository and not empty \(it has mine\)"):
        export_repository(opened, tmp_path / "repo")
    with pytest.raises(InputError, match="wanted letters"):
        export_repository(opened, tmp_path / "other", name="../evil")
    assert list(tmp_path.iterdir()) == [tmp_path / "repo"]


def test_the_command(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "repo"
    assert main(["triton", str(bundle), "--out", str(out), "--precision", "int8", "--json"]) == 0
    assert '"plaudit_image"' in capsys.readouterr().out
    assert main(["triton", str(bundle), "--out", str(out)]) == 2
    assert "choose another --out" in capsys.readouterr().err
