"""A graph with its memory set aside gives what a plain run gives, whatever the batch and whoever asks, and copies the
next batch while one is computed."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from embed.engines import device
from embed.engines.device import PLACES, RUN_ROWS, SIZES, DeviceGraph, sizes_for
from embed.engines.sessions import open_session

WAIT_S = 60.0  # for what happens at once, unless it never does


class Watched:
    """A session in whose runs `before` and `after` are called, in the thread that runs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.before()
        self._session.run_with_iobinding(binding, options)
        self.after()


@pytest.fixture
def graph() -> Iterator[DeviceGraph]:
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
    session: Any = Watched(open_session(model.SerializeToString(), ["cpu"], 1))
    graph = DeviceGraph(session, (1, 4, 8), "cpu")
    yield graph
    graph.close()
    assert {places.qsize() for places in graph._free.values()} <= {PLACES}, "a place was not given back"


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


def test_the_next_batch_is_copied_while_one_is_computed(graph: DeviceGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, update = threading.Semaphore(0), onnxruntime.OrtValue.update_inplace

    def update_inplace(self: Any, array: Any) -> None:
        update(self, array)
        copied.release()

    def before() -> None:  # the first run goes on once its own inputs and those of another batch have been copied
        for _ in range(waited.pop() if waited else 0):
            assert copied.acquire(timeout=WAIT_S), "no other batch was copied"

    waited, session = [2], graph.session
    monkeypatch.setattr(onnxruntime.OrtValue, "update_inplace", update_inplace)
    session.before = before  # type: ignore[attr-defined]
    first, second = np.full((4, 3), 1, np.uint8), np.full((4, 3), 2, np.uint8)
    with ThreadPoolExecutor(2) as pool:
        found = [one[0] for one in pool.map(graph, [first, second])]
    assert np.array_equal(found, [2.0 * first, 2.0 * second])
    waited.append(2)  # and of one call, whose inputs are too many for a run
    many = np.arange(48, dtype=np.uint8).reshape(16, 3)
    while copied.acquire(blocking=False):
        pass
    assert np.array_equal(graph(many)[0], 2.0 * many)


def test_no_place_is_filled_while_it_is_computed(graph: DeviceGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fills one gives the processor to the others in the midst of it, and so does every run."""
    computing: list[np.ndarray] = []
    threads = set()
    update = onnxruntime.OrtValue.update_inplace

    def update_inplace(self: Any, array: Any) -> None:
        time.sleep(0)
        update(self, array)
        time.sleep(0)

    def inputs() -> np.ndarray:
        return np.concatenate([place.inputs.numpy().ravel() for place in graph_places if place.binding is bound[-1]])

    graph_places: list[Any] = []
    bound: list[Any] = []
    make = DeviceGraph._new_place

    def new_place(self: DeviceGraph, size: int) -> Any:
        graph_places.append(place := make(self, size))
        return place

    def run_with_iobinding(binding: Any, options: Any) -> None:
        bound.append(binding)
        threads.add(threading.get_ident())
        before = inputs().copy()
        time.sleep(0)
        session._session.run_with_iobinding(binding, options)
        time.sleep(0)
        computing.append(before - inputs())

    session: Any = graph.session
    monkeypatch.setattr(DeviceGraph, "_new_place", new_place)
    monkeypatch.setattr(onnxruntime.OrtValue, "update_inplace", update_inplace)
    monkeypatch.setattr(session, "run_with_iobinding", run_with_iobinding)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (rng.integers(1, 30), 3), np.uint8) for _ in range(200)]
    with ThreadPoolExecutor(6) as pool:
        for x, (twice, negative) in zip(batches, pool.map(graph, batches), strict=True):
            assert np.array_equal(twice, 2.0 * x) and np.array_equal(negative, -1.0 * x)
    assert len(computing) > 200 and not any(change.any() for change in computing)
    assert len(threads) == 1 and len(graph_places) <= PLACES * len(graph.sizes)


def test_a_run_that_fails_leaves_the_places_to_others(graph: DeviceGraph) -> None:
    def fail() -> None:
        raise RuntimeError("the device is gone")

    x = np.ones((23, 3), np.uint8)  # of several runs
    graph.session.before = fail  # type: ignore[attr-defined]
    for _ in range(2 * PLACES):
        with pytest.raises(RuntimeError, match="is gone"):
            graph(x)
    with pytest.raises(RuntimeError):
        graph(np.ones((4, 5), np.uint8))  # what cannot be copied
    graph.session.before = lambda: None  # type: ignore[attr-defined]
    assert np.array_equal(graph(x)[0], 2.0 * x)


def test_a_place_is_recorded_once_and_nothing_else_is_done_meanwhile(
    graph: DeviceGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Noted:
        """Says under what the device is used."""

        @contextmanager
        def _noted(self, name: str) -> Iterator[None]:
            held.append(name)
            yield
            held.pop()

        def using(self) -> Any:
            return self._noted("using")

        def recording(self) -> Any:
            return self._noted("recording")

    held: list[str] = []
    monkeypatch.setattr(device, "recordings", Noted())
    graph._cuda_graph = True
    graph.session.before = lambda: done.append(held[-1])  # type: ignore[attr-defined]
    graph.record()
    assert done == ["recording"] * PLACES * len(graph.sizes)
    made = [places.get() for places in graph._free.values() for _ in range(PLACES)]
    for place in made:
        graph._free[place.size].put(place)
    assert len({place.options.get_run_config_entry("gpu_graph_id") for place in made}) == PLACES * len(graph.sizes)
    done.clear()
    graph(np.ones((23, 3), np.uint8))
    graph.compute(8)
    assert done == ["using"] * (len(sizes_for(23, graph.sizes)) + 1)


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
