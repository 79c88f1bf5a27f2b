"""Sessions of a bundle: a thread's own memory for batches on a CUDA device, and one session whoever comes first."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from runtime.config import SessionConfig
from runtime.scoring import graphs as sessions_module
from runtime.scoring.bundle import open_bundle
from runtime.scoring.graphs import BATCH, Sessions


def opened(bundle: Path) -> Sessions:
    return Sessions(open_bundle(bundle), "fp32", SessionConfig(providers=("cpu",), threads=1))


def test_batches_for_a_cuda_device_lie_in_memory_of_their_thread(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def locked(shape: tuple[int, ...]) -> np.ndarray:
        asked.append(shape)
        return np.full(shape, 255, np.uint8)

    monkeypatch.setattr(sessions_module, "locked_array", locked)
    plain, bound = opened(bundle), opened(bundle)
    monkeypatch.setitem(vars(bound), "provider", "CUDAExecutionProvider")
    size = open_bundle(bundle).identity.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, *size, 3), dtype=np.uint8)

    def encode(count: int) -> np.ndarray:
        found = bound.encode(list(pixels[:count]))["image_embedding"]
        assert found.shape == (count, 32)
        return np.array(found)

    with ThreadPoolExecutor(1) as thread:
        for count in (BATCH, 3, 0, 1):
            expected = plain.encode(pixels[:count])["image_embedding"]
            assert np.array_equal(encode(count), expected)
            assert np.array_equal(thread.submit(encode, count).result(), expected)
    assert asked == [(BATCH, *size, 3)] * 2  # once a thread


def test_threads_that_come_at_once_share_one_session(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = []

    def open_session(*args: object, name: str, **more: object) -> object:
        opens.append(Path(name).name)
        return original(*args, name=name, **more)  # type: ignore[arg-type]

    original = sessions_module.open_session
    monkeypatch.setattr(sessions_module, "open_session", open_session)
    ready = opened(bundle)
    vectors = {"image_embedding": np.ones((2, 32), np.float32), "text_embedding": np.ones((2, 32), np.float32)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ready.run("head", vectors)["score"], range(8)))
    assert opens == ["head.onnx"] and len({values.tobytes() for values in found}) == 1
