"""Folding leaves the function as it is, at sizes it did not see, and leaves no known size to be computed."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from embed.engines.sessions import open_session
from embed.graphs import trace
from embed.graphs.folding import fold_constants, hoist_constants, inferred, without_weights


class Windows(nn.Module):
    """Pads by a size that it computes, pools, and reshapes by sizes of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(2, 4, 3, stride=2)
        self.cls = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        x = nn.functional.pad(x, [width % 2, 1, height % 3, 1])
        x = self.layer(x)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        halves = x.reshape(x.shape[0], x.shape[1], 2, x.shape[2] // 2).transpose(1, 2)
        return halves.softmax(-2).sum(dim=(1, 2))


class Batched(nn.Module):
    """What Python does with the batch's size is frozen by a trace."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() * torch.full((1,), float(len(range(x.shape[0]))))


def traced(module: nn.Module, example: torch.Tensor, free: dict[int, str]) -> onnx.ModelProto:
    with trace.quiet_exporter(), torch.no_grad():
        model = trace._trace(module.eval(), {"x": example}, ["y"], {"x": free})
    assert model is not None
    return model


def test_the_folded_graph_is_the_same_function_at_other_sizes() -> None:
    module, x = Windows().eval(), torch.randn(7, 2, 9, 11)
    model = fold_constants(traced(module, x[:2], {0: "n"}), ({"n": 2}, {"n": 3}))
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString())
    for rows in (1, 2, 7):
        found = session.run(None, {"x": x[:rows].numpy()})[0]
        np.testing.assert_allclose(found, module(x[:rows]).detach().numpy(), atol=1e-6)
    assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == ["n", 2]


def test_only_the_batch_is_left_to_be_computed() -> None:
    model = traced(Windows(), torch.randn(2, 2, 9, 11), {0: "n"})
    before = [node.op_type for node in model.graph.node]
    constants = {tensor.name for tensor in fold_constants(model, ({"n": 2}, {"n": 3})).graph.initializer}
    after = [node.op_type for node in model.graph.node]
    assert before.count("Shape") > 3 and after.count("Shape") == 1  # for the class token
    for node in model.graph.node:
        if node.op_type in ("Reshape", "Pad"):
            assert node.input[1] in constants


def test_two_free_dimensions_are_taken_as_they_come() -> None:
    class Heads(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.float().unsqueeze(-1) * torch.arange(6.0)
            x = x.reshape(x.shape[0], x.shape[1], 3, 2).transpose(1, 2)
            return x.flatten(1).sum(dim=-1)

    x = torch.randint(0, 9, (5, 8))
    model = fold_constants(traced(Heads(), x, {0: "n", 1: "c"}), ({"n": 5, "c": 8}, {"n": 4, "c": 7}))
    session = open_session(model.SerializeToString())
    for part in (x, x[:1], x[:, :3]):
        np.testing.assert_array_equal(session.run(None, {"x": part.numpy()})[0], Heads()(part).numpy())
    assert [node.op_type for node in model.graph.node].count("Concat") == 0


def test_a_module_that_a_trace_would_freeze_goes_to_the_newer_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []
    capture = trace._capture
    monkeypatch.setattr(trace, "_capture", lambda *args: captured.append(1) or capture(*args))
    x = torch.ones(4, 3, dtype=torch.int32)
    try:
        model = trace.export_tower(Batched(), {"x": x[:2]}, ["y"], {"x": {0: "n"}})
    except Exception as error:  # torch's: the newer exporter says that the dimension must be fixed
        assert "n" in str(error)
    else:
        found = open_session(model.SerializeToString()).run(None, {"x": x.numpy()})[0]
        assert np.array_equal(found, Batched()(x).numpy())
    assert captured == [1]


def test_weights_are_left_out_but_their_types_known() -> None:
    weights = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 64]) for n in "xy")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y], [weights]))
    assert without_weights(model).ByteSize() < 500 < len(weights.raw_data)
    assert {value.name for value in inferred(model)} == {"x", "y"}
    assert hoist_constants(model) is model
