"""`python -m runtime serve` as a process: it starts, takes signals, ends well, and says what it was given wrong."""

import json
import os
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from export_tiny import changed_manifest
from paths import ROOT
from service_server import base64_of, small_picture
from waiting import wait_until

from runtime.cli.main import main
from runtime.cli.serve import read_token


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of Unix")
def test_a_life_from_start_to_sigterm(bundle: Path, tmp_path: Path) -> None:
    import shutil

    served, log = tmp_path / "bundle", tmp_path / "log"
    shutil.copytree(bundle, served)
    (tmp_path / "token").write_text("a word\n")
    command = [
        sys.executable,
        "-m",
        "runtime",
        "serve",
        str(served),
        "--port",
        "0",
        "--threads",
        "1",
        "--decoders",
        "1",
        "--deadline",
        "60",  # of what runs beside the tests there is no saying
    ]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*command, "--token-file", str(tmp_path / "token")], cwd=ROOT, stdout=file, stderr=file
        )

    def lines() -> list[str]:
        return log.read_text().splitlines()

    def wait_for(text: str) -> str:
        wait_until(lambda: text in log.read_text() or process.poll() is not None, 120)
        return next((line for line in lines()[::-1] if text in line), None) or pytest.fail(log.read_text())

    headers = {"Authorization": "Bearer a word"}
    try:
        url = wait_for("running on").partition("running on ")[2].split()[0].strip('"')
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            asked = {"prompt": "a cat", "images": [base64_of(small_picture(0))] * 64}
            first = client.post("/v1/score", json=asked).json()
            assert httpx.post(f"{url}/v1/score", json=asked, trust_env=False).status_code == 401

            changed_manifest(served, lambda manifest: manifest["provenance"].update(training="new"))
            process.send_signal(signal.SIGHUP)
            wait_for('"event": "reloaded"')
            second = client.post("/v1/score", json=asked).json()
            assert second["bundle"] != first["bundle"] and second["items"] == first["items"]
            workers = children(process.pid)
            assert len(workers) >= 1

            # SIGTERM while a request is under way: it is answered, then the process and its children end.
            body = json.dumps(asked).encode()
            request = HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
            length = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
            request.request("POST", "/v1/score", body[:100], {**headers, **length})
            wait_until(lambda: f"plaudit_pending_bytes {len(body):.1f}" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            wait_for("Shutting down")
            request.send(body[100:])
            assert request.getresponse().status == 200
            request.close()
        assert process.wait(120) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(map(alive, workers)))
    records = [json.loads(line) for line in lines() if line.startswith("{")]
    assert {"info"} == {record["level"] for record in records}
    assert [r["status"] for r in records if r["event"] == "request"] == [200, 401, 200, 200]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--token-file", "/nonexistent"], "No such file"),
        (["--max-queue", "1"], "max_queue is 1; wanted at least max_items"),
        (["--precision", "fp8"], "no graphs at fp8"),
        (["--catalogue", "/nonexistent"], "is not a catalogue"),
        (["--provider", "cuda"], "CUDAExecutionProvider is asked for"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    bundle: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(bundle), "--decoders", "1", *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_token_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(" word \n")
    monkeypatch.delenv("PLAUDIT_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("PLAUDIT_TOKEN", "other")
    assert (read_token(file), read_token(None)) == ("word", "other")
    file.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_token(file)
