"""The benchmark for a GPU runs everywhere but for the sizes, and a section that fails leaves the others' figures."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paths import ROOT

# What each section must say at least.
KEYS = {
    "ceilings": {"matmul_float16_tflops", "matmul_bfloat16_tflops", "copy_on_device_gb_s"},
    "service": {"photos", "fp32, 2 decoders"},
    "job": {"photos", "workers", "tiny"},
    "parity": {"ViT-B-32"},
    "tuning": {"state"},
    "training": {"head_epoch_s", "blocks"},
    "search": {"cpu float32", "cpu float16", "cpu FAISS flat", "cpu our ivf-pq"},
    "towers": {"ceiling_tflops", "ViT-B-32"},
}
RATES = ("_per_s", "_s", "_ms", "_tflops", "_gb_s")


def run(tmp_path: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The command as a dry run, and its JSON."""
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--dry-run", "--json", tmp_path / "gpu.json", *options]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    return done, json.loads((tmp_path / "gpu.json").read_text())


def numbers(found: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a JSON document, and its key."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from numbers(value, key)
    elif isinstance(found, int | float):
        yield name, found


def test_every_section_gives_its_figures(tmp_path: Path) -> None:
    done, found = run(tmp_path)
    assert (done.returncode, found["failed"]) == (0, {}), done.stderr
    assert list(found["sections"]) == list(KEYS)
    for name, section in found["sections"].items():
        assert KEYS[name] <= set(section), name
        assert not [(key, value) for key, value in numbers(section) if key.endswith(RATES) and not value > 0], name
    judged = {name for name, section in found["sections"].items() if section.get("wanted")}
    assert judged == {"towers", "job", "service", "parity", "training"}
    assert done.stdout.count("\nwanted: ") == sum(len(found["sections"][name]["wanted"]) for name in judged)
    assert found["machine"]["torch"] and found["machine"]["providers"]
    assert found["sections"]["service"]["fp32, 2 decoders"]["refused"] == 0
    job = found["sections"]["job"]["tiny"]
    assert {"processes_decode_per_s", "device_decode_per_s", "torchvision_per_s"} <= set(job["parts"]["all"])
    for rates in job["engines"].values():
        assert {"engine_per_s", "processes_job_per_s", "device_job_per_s"} <= set(rates)
    searched = found["sections"]["search"].values()
    exact = [one["agrees"] for one in searched if isinstance(one, dict) and "agrees" in one and "build_s" not in one]
    assert len(exact) == 3 and min(exact) > 0.99
    assert [line for line in done.stdout.splitlines() if line.startswith("== ")] == [
        f"== {name}" for name in ["machine", *KEYS]
    ]


def test_a_section_that_fails_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    done, found = run(tmp_path, "--sections", "c,a", "--photos", str(tmp_path / "photos"))
    assert done.returncode == 1
    assert "holds no JPEG files" in found["failed"]["job"] and "Traceback" in done.stderr
    assert list(found["sections"]) == ["ceilings"]


def test_sections_for_which_no_time_is_left_are_told(tmp_path: Path) -> None:
    done, found = run(tmp_path, "--sections", "a", "--limit-s", "0")
    assert done.returncode == 1 and found["failed"]["ceilings"] == "no time is left"
