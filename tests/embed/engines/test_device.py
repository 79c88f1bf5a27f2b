"""A graph with its memory set aside gives what a plain run gives, whatever the batch and whoever asks."""

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement

import numpy as np
import pytest
from onnx import TensorProto, helper

from embed.engines.device import RUN_ROWS, SIZES, DeviceGraph, sizes_for
from embed.engines.sessions import open_session


@pytest.fixture
def graph() -> DeviceGraph:
    """Twice the whole numbers, as float32, and their negatives."""
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["float", "float"], ["twice"]),
        helper.make_node("Neg", ["float"], ["negative"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 3])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("twice", "negative")]
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=opsets, ir_version=9)
    return DeviceGraph(open_session(model.SerializeToString(), ["cpu"], 1), (1, 4, 8), "cpu")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 23])
def test_any_number_of_inputs(graph: DeviceGraph, count: int) -> None:
    x = np.random.default_rng(count).integers(0, 256, (count, 3), np.uint8)
    for _ in range(2):
        twice, negative = graph(x)
        assert np.array_equal(twice, 2.0 * x) and np.array_equal(negative, -1.0 * x)


def test_many_threads_get_their_own_answers(graph: DeviceGraph) -> None:
    batches = [np.full((n % 9 + 1, 3), n, np.uint8) for n in range(64)]
    with ThreadPoolExecutor(8) as pool:
        for x, (twice, _) in zip(batches, pool.map(graph, batches), strict=True):
            assert np.array_equal(twice, 2.0 * x)


def test_batches_are_those_that_take_the_least_time() -> None:
    """Against every set of up to four batches."""
    for count in range(1, 65):
        found = sizes_for(count, SIZES)
        assert sum(found[:-1]) < count <= sum(found), "no batch is empty, and all inputs have a place"
        options = [plan for n in range(1, 5) for plan in combinations_with_replacement(SIZES, n) if sum(plan) >= count]
        least = min(sum(plan) + RUN_ROWS * len(plan) for plan in options)
        assert sum(found) + RUN_ROWS * len(found) == least, count
    assert sizes_for(200, SIZES) == [64, 64, 64, 8]
    assert sizes_for(0, SIZES) == []
