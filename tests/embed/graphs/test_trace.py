"""Export of a module: equal to torch, free of traces, the same bytes each time; certificates against a slow loop."""

import math

import numpy as np
import onnx
import pytest
import torch

from embed.engines.sessions import open_session
from embed.graphs import trace
from embed.graphs.trace import OPSET, certificate, export_tower


class Tower(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.layer(x.float()), dim=-1)


def exported() -> onnx.ModelProto:
    return export_tower(Tower().eval(), {"x": torch.zeros(2, 4, dtype=torch.uint8)}, ["y"], {"x": {0: "n"}})


def test_graph_equals_torch_at_any_batch_and_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    model = exported()
    assert capfd.readouterr().out == ""
    session = open_session(model.SerializeToString())
    x = np.random.default_rng(0).integers(0, 256, (17, 4), dtype=np.uint8)
    expected = Tower().eval()(torch.from_numpy(x)).detach().numpy()
    for rows in (1, 2, 17):
        np.testing.assert_allclose(session.run(None, {"x": x[:rows]})[0], expected[:rows], atol=1e-6)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "y"]
    assert [o.version for o in model.opset_import if o.domain == ""] == [OPSET]
    onnx.checker.check_model(model, full_check=True)


def test_same_module_gives_same_bytes_without_paths() -> None:
    first, second = (exported().SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert b".py" not in first and b"pkg." not in first


class Named(Tower):
    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(inputs["x"]) - super().forward(inputs["y"])


def test_what_takes_inputs_by_any_name_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trace, "_capture")  # which would do it too, in ten times the time
    example = {"y": torch.zeros(2, 4), "x": torch.ones(2, 4)}
    module = Named().eval()
    model = export_tower(module, example, ["z"], {"y": {0: "n"}, "x": {0: "n"}})
    y, x = np.random.default_rng(0).random((2, 5, 4), np.float32)
    expected = module(x=torch.from_numpy(x), y=torch.from_numpy(y)).detach().numpy()
    assert np.ptp(expected) > 0.1
    found = open_session(model.SerializeToString()).run(None, {"x": x, "y": y})[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert {tensor.name for tensor in model.graph.initializer} >= {"layer.weight", "layer.bias"}


def test_fastpath_is_restored() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    exported()
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_certificate_equals_a_slow_loop() -> None:
    generator = np.random.default_rng(0)
    reference = generator.standard_normal((5, 3)).astype(np.float32)
    outputs = reference + generator.normal(0, 0.1, (5, 3)).astype(np.float32)
    cosines, largest = [], 0.0
    for a, b in zip(reference.tolist(), outputs.tolist(), strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        cosines.append(dot / math.hypot(*a) / math.hypot(*b))
        largest = max([largest, *(abs(x - y) for x, y in zip(a, b, strict=True))])
    found = certificate("int8", reference, outputs)
    assert (found.precision, found.rows) == ("int8", 5)
    assert found.cosine_mean == pytest.approx(sum(cosines) / 5)
    assert found.cosine_min == pytest.approx(min(cosines))
    assert found.max_difference == pytest.approx(largest)


def test_certificate_refuses_what_is_not_finite_or_not_comparable() -> None:
    vectors = np.ones((2, 3))
    with pytest.raises(FloatingPointError, match="1 of 2 vectors at fp16 are not finite"):
        certificate("fp16", vectors, np.array([[1, 1, 1], [1, np.nan, 1]]))
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(2, 3\)"):
        certificate("fp16", vectors, np.ones((1, 3)))
