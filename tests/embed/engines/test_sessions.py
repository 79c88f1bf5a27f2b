"""Sessions: what was asked for is active, or the error says what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from embed import ort
from embed.engines import sessions
from embed.spec import InputError


def doubling() -> bytes:
    """y = x + x for x (n, 2)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_session_gives_what_the_graph_computes() -> None:
    session = sessions.open_session(doubling(), ["cpu"], threads=1)
    x = np.array([[1, 2], [3, 4]], np.float32)
    assert np.array_equal(sessions.run(session, {"x": x})[0], 2 * x)
    assert sessions.signature(session) == {
        "inputs": {"x": ("float32", ("n", 2))},
        "outputs": {"y": ("float32", ("n", 2))},
    }


def test_bound_run_equals_plain_run() -> None:
    session = sessions.open_session(doubling())
    x = np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2]  # not contiguous
    assert np.array_equal(sessions.run_bound(session, {"x": x}, "cpu")[0], 2 * x)


def test_unknown_provider_names_near_ones() -> None:
    with pytest.raises(InputError, match="near names: cuda"):
        sessions.resolve_providers(["cuda0"], ["CPUExecutionProvider"])


def test_provider_that_is_not_installed_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no CUDAExecutionProvider, .* plaudit\[gpu\]"):
        sessions.open_session(doubling(), ["cuda"])


def test_best_installed_provider_is_taken_and_the_cpu_comes_last() -> None:
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    found = sessions.resolve_providers(None, available)
    assert [name for name, _ in found] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert sessions.resolve_providers(None, ["CPUExecutionProvider"]) == [("CPUExecutionProvider", {})]


def test_tensorrt_keeps_its_engines(tmp_path: Path) -> None:
    available = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    (name, options), _ = sessions.resolve_providers([("tensorrt", {"trt_fp16_enable": True})], available, tmp_path)
    assert name == "TensorrtExecutionProvider"
    assert options["trt_engine_cache_path"] == str(tmp_path)
    assert options["trt_engine_cache_enable"] and options["trt_fp16_enable"]


def test_what_tensorrt_cannot_compute_is_cudas_and_half_precision_is_let_through() -> None:
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    found = sessions.resolve_providers(["tensorrt"], available)
    assert [name for name, _ in found] == available and found[0][1] == {}
    assert found[1] == sessions.resolve_providers(["cuda"], available)[0]
    assert sessions.resolve_providers(["tensorrt"], available, precision="fp16")[0][1] == {"trt_fp16_enable": True}


class Dropping:
    """An onnxruntime whose CUDA does not start, as with a wrong driver."""

    class SessionOptions:
        def add_session_config_entry(self, name: str, value: str) -> None: ...

    @staticmethod
    def get_available_providers() -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    class InferenceSession:
        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]


def test_provider_that_does_not_start_is_an_error_where_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sessions, "require_onnxruntime", lambda: Dropping)
    with pytest.raises(InputError, match="CUDAExecutionProvider did not start"):
        sessions.open_session(b"", ["cuda"])
    sessions.open_session(b"")
    assert "CUDAExecutionProvider did not start" in caplog.text


@pytest.mark.parametrize(("asked", "loaded"), [("cuda", 1), ("tensorrt", 1), ("cpu", 0)])
def test_cudas_libraries_are_loaded_before_the_first_session_that_needs_them(
    asked: str, loaded: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []

    class Starting(Dropping):
        class InferenceSession:
            def __init__(self, model: bytes, options: Any, providers: list[Any], **others: Any) -> None:
                events.append("session")
                self.providers = [name for name, _ in providers]

            def get_providers(self) -> list[str]:
                return self.providers

        @staticmethod
        def get_available_providers() -> list[str]:
            return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

        @staticmethod
        def preload_dlls() -> None:
            events.append("libraries")
            print("Failed to load one of them")

    for module in (sessions, ort):
        monkeypatch.setattr(module, "require_onnxruntime", lambda: Starting)
    ort.load_cuda_libraries.cache_clear()
    for _ in range(2):
        sessions.open_session(b"", [asked])
    ort.load_cuda_libraries.cache_clear()
    assert events == [*["libraries"] * loaded, "session", "session"]
    assert capsys.readouterr().out == ""  # what a command prints may be read by a program


def test_damaged_graph_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"broken\.onnx"):
        sessions.open_session(path)


def test_newer_operators_than_the_runtime_knows_are_an_error() -> None:
    model = onnx.load_from_string(doubling())
    model.opset_import[0].version = 99
    with pytest.raises(InputError, match="cannot load a graph of"):
        sessions.open_session(model.SerializeToString())
