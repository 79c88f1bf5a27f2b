"""Bundles go to a hub and come back byte for byte, and what is not what its manifest says never appears."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")
from hub_site import Hub, serving_hub
from huggingface_hub import HfApi, constants

from embed.spec import InputError
from runtime.cli.main import main
from runtime.hub.bundles import pull, push
from runtime.scoring.bundle import manifest_bytes

REPO = "me/likes"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setattr(constants, name, True)
    for name in ("HF_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "kept"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving_hub() as hub:
        api = HfApi(endpoint=hub.url)
        monkeypatch.setattr("runtime.hub.bundles._api", lambda: api)
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_comes_back_byte_for_byte(
    hub: Hub, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = json.dumps({"files": {"former.onnx": {}, "head.onnx": {}}}).encode()
    hub.commit(REPO, {".gitattributes": b""})
    first = hub.commits[REPO][0][0]
    hub.commit(REPO, {".gitattributes": b"", "former.onnx": b"x", "bundle.json": former, "notes.txt": b"ours"})
    assert main(["push", str(bundle), REPO, "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out)
    assert pushed["commit"] == hub.commits[REPO][-1][0] and pushed["url"] == f"{hub.url}/{REPO}"
    assert hub.commits[REPO][-1][1] == contents(bundle) | {".gitattributes": b"", "notes.txt": b"ours"}
    assert hub.tokens == {"Bearer hf_secret"}
    # Whatever else lies in the repository stays there.
    hub.commit(REPO, {**hub.commits[REPO][-1][1], "run_me.py": b"raise SystemExit", "pickle.bin": b"\x80\x04."})
    hub.asked.clear()
    assert main(["pull", REPO, "--out", str(tmp_path / "pulled"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["commit"] == hub.commits[REPO][-1][0]
    assert contents(tmp_path / "pulled") == contents(bundle)
    assert not [path for _, path in hub.asked if "run_me" in path or "pickle" in path]
    assert main(["pull", REPO, "--out", str(tmp_path / "pulled")]) == 2
    assert "say --overwrite" in capsys.readouterr().err
    assert pull(REPO, tmp_path / "pulled", pushed["commit"], overwrite=True) == pushed["commit"]
    with pytest.raises(InputError, match="lacks a file of a bundle"):
        pull(REPO, tmp_path / "early", first)


def test_a_repository_of_something_else_is_left_alone(hub: Hub, bundle: Path) -> None:
    hub.commit(REPO, {"README.md": b"", "model.safetensors": b"trained for weeks"})
    with pytest.raises(InputError, match=r"holds 1 files that are not a bundle, such as model\.safetensors"):
        push(bundle, REPO)
    assert len(hub.commits[REPO]) == 1


def test_a_new_repository_is_private_unless_public(hub: Hub, bundle: Path) -> None:
    push(bundle, "me/one")
    push(bundle, "me/two", public=True)
    assert hub.private == {"me/one": True, "me/two": False}


def _evil(name: str, files: dict[str, bytes]) -> bytes:
    manifest = json.loads(files["bundle.json"])
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    return manifest_bytes(manifest)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: {"weights.bin": f["weights.bin"][:-1] + b"\x00\x01"}, "weights.bin has"),
        (lambda f: {"head.onnx": f["head.onnx"][:-1] + bytes([f["head.onnx"][-1] ^ 1])}, "its SHA-256 differs"),
        (
            lambda f: {"bundle.json": f["bundle.json"].replace(b'"opset": ', b'"opset": 1')},
            "was changed after the export",
        ),
        (lambda f: {"bundle.json": b"[" * 100_000}, "is not a manifest of a bundle"),
        (lambda f: {"bundle.json": _evil("../../evil", f)}, "names '../../evil', which is not a file of bundles"),
        (lambda f: {"bundle.json": _evil("/etc/evil", f)}, "names '/etc/evil', which is not a file of bundles"),
    ],
)
def test_what_is_not_what_was_pushed_never_appears(hub: Hub, bundle: Path, tmp_path: Path, change, said: str) -> None:
    files = contents(bundle)
    hub.commit(REPO, files | change(files))
    with pytest.raises(InputError, match=said):
        pull(REPO, tmp_path / "in" / "pulled")
    assert not (tmp_path / "in" / "pulled").exists() and contents(tmp_path / "in") == {}
    assert not list(tmp_path.rglob("evil*"))


def test_what_the_hub_refuses_is_said_in_one_line(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    for repo, revision, said in (
        ("me/nothing", None, "the hub has no repository me/nothing"),
        ("a/b/c", None, "'a/b/c' is not a name of a repository"),
    ):
        with pytest.raises(InputError, match=said):
            pull(repo, tmp_path / "pulled", revision)
    with pytest.MonkeyPatch.context() as patch:
        nowhere = HfApi(endpoint="http://127.0.0.1:1")
        patch.setattr("runtime.hub.bundles._api", lambda: nowhere)
        with pytest.raises(InputError, match="the hub cannot be reached"):
            pull(REPO, tmp_path / "pulled")
    hub.commit(REPO, contents(bundle))
    with pytest.raises(InputError, match="has no such revision"):
        pull(REPO, tmp_path / "pulled", "v9")
    with pytest.raises(InputError, match="bundle"):
        push(tmp_path, REPO)  # is none
    assert not (tmp_path / "pulled").exists()
