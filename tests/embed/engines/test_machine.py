import os
from pathlib import Path

import pytest
from embed_fakes import IDENTITY

from embed.engines.machine import machine_cache, remember_identity, remembered_identity
from embed.spec import Source


def test_an_identity_is_remembered_until_the_checkpoint_changes(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"1")
    source = Source("ViT-B-32", f"openai@{weights}")
    assert remembered_identity(source, tmp_path) is None
    remember_identity(source, IDENTITY, tmp_path)
    assert remembered_identity(source, tmp_path) == IDENTITY
    assert remembered_identity(Source("ViT-B-32", str(tmp_path / "other.pt")), tmp_path) is None
    status = weights.stat()
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert remembered_identity(source, tmp_path) is None


def test_a_folder_counts_by_its_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "open_clip_config.json").write_text("{}")
    source = Source(f"local-dir:{model}")
    remember_identity(source, IDENTITY, tmp_path)
    assert remembered_identity(source, tmp_path) == IDENTITY
    (model / "open_clip_model.safetensors").write_bytes(b"1")
    assert remembered_identity(source, tmp_path) is None


def test_a_damaged_note_is_no_note(tmp_path: Path) -> None:
    remember_identity(Source("m"), IDENTITY, tmp_path)
    (file,) = (tmp_path / "identities").iterdir()
    file.write_text("{}")
    assert remembered_identity(Source("m"), tmp_path) is None


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PLAUDIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine_cache() == tmp_path / "plaudit"
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "mine"))
    assert machine_cache() == tmp_path / "mine"


@pytest.mark.parametrize("home", ["a file", "none"])
def test_a_home_that_cannot_be_written_costs_only_the_memory_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, home: str
) -> None:
    monkeypatch.delenv("PLAUDIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "file").touch()
    if home == "none":  # of a user without an entry in the list of users

        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "file")
    folder = machine_cache()
    (folder / "engines").mkdir()
    assert machine_cache() == folder, "one folder a run"
    (warning,) = caplog.messages
    assert "are not kept for the next run" in warning and "$PLAUDIT_CACHE" in warning
