"""What may stand where an artifact is written, and that whoever is killed leaves the old one or the new one, whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from embed import files
from embed.files import GROWING, replacing, require_out, require_out_file
from embed.spec import InputError

MARKED = {
    "head": "head.json",
    "bundle": "bundle.json",
    "tuned backbone": "tuned.json",
    "sweep": "sweep.json",
    "job of scores": "job.json",
    "cache": "manifest.json",
    "catalogue": "v000003/rows.arrow",
    "Triton repository": "plaudit/config.pbtxt",
}


def make(folder: Path, name: str, text: str = "old") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("kind", MARKED)
def test_another_kind_of_artifact_is_named_and_the_same_one_needs_leave(tmp_path: Path, kind: str) -> None:
    out = make(tmp_path / "out", MARKED[kind])
    if kind == "catalogue":
        make(out, "manifest.json")
    for other in set(MARKED) - {kind}:
        with pytest.raises(InputError, match=f"out is a {kind}, not a {other}; choose another --out"):
            require_out(out, other, overwrite=True)
    with pytest.raises(InputError, match=f"out is a {kind} already; say --overwrite to replace it, or choose"):
        require_out(out, kind, overwrite=False)
    require_out(out, kind, overwrite=True)
    make(out, "my notes.txt")
    if kind in GROWING:
        require_out(out, kind, overwrite=True)
    else:
        with pytest.raises(InputError, match=rf"out is a {kind} that also holds my notes\.txt, which would be lost"):
            require_out(out, kind, overwrite=True)


def test_what_is_not_ours_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"not a head and not empty \(it has \.git\)"):
        require_out(make(tmp_path / "work", ".git").parent / "work", "head", overwrite=True)
    with pytest.raises(InputError, match=r"notes\.txt is a file; wanted a folder to write a head to"):
        require_out(make(tmp_path, "notes.txt") / "notes.txt", "head", overwrite=True)
    with pytest.raises(InputError, match=r"cannot be written, because .*notes.txt is a file"):
        require_out(tmp_path / "notes.txt" / "a" / "head", "head", overwrite=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    require_out(empty, "head", overwrite=False)
    monkeypatch.chdir(empty)
    with pytest.raises(InputError, match="the current folder and cannot be replaced"):
        require_out(Path("."), "head", overwrite=True)
    require_out(Path("."), "cache", overwrite=True)  # which grows where it is
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mounted")
    (tmp_path / "mounted").mkdir()
    with pytest.raises(InputError, match="mounted is a mount"):
        require_out(tmp_path / "mounted", "head", overwrite=True)


def test_a_folder_without_permission_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # who runs the tests may be root
    for path in (tmp_path / "head", tmp_path / "a" / "b" / "head"):
        with pytest.raises(InputError, match=f"head cannot be written: no permission to write in {tmp_path}"):
            require_out(path, "head", overwrite=False)
    with pytest.raises(InputError, match="no permission"):
        require_out_file(tmp_path / "page.html", "--report")


def test_files_are_refused_where_a_folder_is_and_where_they_may_not_be_replaced(tmp_path: Path) -> None:
    make(tmp_path, "whole.pt")
    require_out_file(tmp_path / "whole.pt", "--scores")
    with pytest.raises(InputError, match="is a folder; wanted a file for --scores"):
        require_out_file(tmp_path, "--scores")
    with pytest.raises(InputError, match="exists already; say --overwrite to replace it, or choose another --out"):
        require_out_file(tmp_path / "whole.pt", "--out", overwrite=False)
    with pytest.raises(InputError, match=r"cannot be written, because .* is a file"):
        require_out_file(tmp_path / "whole.pt" / "page.html", "--report")


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_new_artifact_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
    out = make(make(tmp_path / "out", "head.json"), "folds.safetensors")
    (tmp_path / "link").symlink_to(out)
    make(tmp_path / ".out.tmp", "left by a killed process")
    with pytest.raises(ZeroDivisionError), replacing(out, "head", overwrite=True) as folder:
        make(folder, "head.json", "half")
        raise ZeroDivisionError
    assert (out / "head.json").read_text() == "old" and sorted(os.listdir(tmp_path)) == ["link", "out"]
    with replacing(tmp_path / "link", "head", overwrite=True) as folder:
        make(folder, "head.json", "new")
        assert (out / "head.json").read_text() == "old"
    assert os.listdir(out) == ["head.json"] and (out / "head.json").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]
    with replacing(tmp_path / "a" / "b", "head") as folder:
        make(folder, "head.json", "new")
    assert os.listdir(tmp_path / "a") == ["b"]
    with pytest.raises(InputError, match="say --overwrite"), replacing(out, "head"):
        raise AssertionError("begun")


# Forks a writer that kills itself at step N of what it does with files, for every N up to the last.
KILLER = """
import os, signal, sys
from pathlib import Path
from embed import files

if sys.argv[2] == "renames":
    files._exchanged = lambda first, second: False

STEPS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "ctypes.dlsym"}
steps, last = 0, 10**9

def step(event, args):
    global steps
    if event in STEPS:
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1

def write(text):
    with files.replacing(Path(sys.argv[1]), "head", overwrite=True) as folder:
        for name in ("head.json", "head.safetensors"):
            (folder / name).write_text(text)

write("first")
sys.addaudithook(step)
for number in range(1000):
    pid = os.fork()
    if pid == 0:
        steps, last = 0, number
        write(f"after {number} steps")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print("killed" if os.WIFSIGNALED(status) else "ended", flush=True)
    input()
    if not os.WIFSIGNALED(status):
        break
"""


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_one(tmp_path: Path, how: str) -> None:
    out, seen, kills = tmp_path / "out", set[str](), 0
    command, pipe = [sys.executable, "-c", KILLER, str(out), how], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as killer:
        assert killer.stdin is not None and killer.stdout is not None
        for line in killer.stdout:
            if how == "renames" and not out.exists():  # for an instant the old one stands beside, for the next writer
                require_out(out, "head", overwrite=True)
            texts = {(out / name).read_text() for name in ("head.json", "head.safetensors")}
            assert len(texts) == 1
            seen |= texts
            kills += line == "killed\n"
            print(file=killer.stdin, flush=True)
    assert killer.returncode == 0 and kills > 10
    assert os.listdir(tmp_path) == ["out"]
    # Some were killed when the new one already stood there, most before.
    assert 2 < len(seen) < kills
