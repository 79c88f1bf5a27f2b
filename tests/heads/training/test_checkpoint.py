"""States are written now and then, read as they were written, and refused where they are not."""

from pathlib import Path

import pytest
import torch

from embed.spec import InputError
from heads.training.checkpoint import Checkpoints

STATE = {"weights": {"a": torch.arange(3) + 0.5}, "history": [{"loss": float("nan")}], "step": 3}


def test_states_are_written_now_and_then_and_cleared(tmp_path: Path) -> None:
    now = [0.0]
    saved = Checkpoints(tmp_path / "c", "this", 60, lambda: now[0]).part("seed-0")
    assert not saved.due()
    now[0] = 60
    assert saved.due()
    saved.save(STATE)
    assert not saved.due()
    assert (tmp_path / "c" / "training-seed-0.pt").is_file()
    assert str(saved.load()) == str(STATE)
    assert saved.part("other").load() is None
    (tmp_path / "c" / ".training-seed-0.pt.tmp").touch()  # as a process leaves it that is killed while it writes
    saved.clear()
    assert not (tmp_path / "c").exists()


def test_states_that_take_long_to_write_are_written_less_often(tmp_path: Path) -> None:
    times = iter([0, 100, 106, 200, 225, 226, 300])
    saved = Checkpoints(tmp_path, "this", 60, lambda: next(times))
    saved.save(STATE)  # from 100 to 106
    assert [saved.due() for _ in range(4)] == [False, False, True, True]


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "this").save(STATE)
    with pytest.raises(
        InputError, match=rf"training.pt belongs to another training.* to start again, remove {tmp_path}$"
    ):
        Checkpoints(tmp_path, "other").load()
    torch.save({**STATE, "identity": "this"}, tmp_path / "training.pt")  # as before there was a format
    with pytest.raises(InputError, match=r"or another version of plaudit"):
        Checkpoints(tmp_path, "this").load()


def test_no_damage_goes_unseen(tmp_path: Path) -> None:
    saved, path = Checkpoints(tmp_path, "this"), tmp_path / "training.pt"
    saved.save(STATE)
    whole = path.read_bytes()
    damaged = [b"", b"no checkpoint", *(whole[:length] for length in range(1, len(whole), 50))]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            assert str(saved.load()) == str(STATE), "the byte was one that says nothing"
        except InputError as error:
            assert str(error) == f"{path} is damaged; to start again, remove {tmp_path}"
            refused += 1
    assert refused > len(damaged) / 2


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "harm",)

    torch.save({"identity": "this", "x": Harmful()}, tmp_path / "training.pt")
    with pytest.raises(InputError, match="is damaged"):
        Checkpoints(tmp_path, "this").load()
    assert not (tmp_path / "harm").exists()
