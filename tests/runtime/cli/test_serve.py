"""`python -m runtime serve` as a process: it starts, takes signals, ends well, and says what it was given wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from export_tiny import changed_manifest
from paths import ROOT
from service_server import base64_of, small_picture
from waiting import wait_until

from embed.cli import console
from embed.spec import InputError
from runtime.cli import serve
from runtime.cli.main import main
from runtime.cli.serve import TOKEN_VARIABLE, read_tokens, require_token
from runtime.config import ServiceConfig


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
        url = "http://" + wait_for("serving ").rpartition(" on ")[2].partition(";")[0]
        wait_for("Application startup complete")
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
            started, reloaded = (json.loads(wait_for(f'"event": "{event}"')) for event in ("serving", "reloaded"))
            assert started["bundle"] == first["bundle"] and reloaded["bundle"] == second["bundle"]
            known = {"decoders": 1, "threads": 1, "tokens": 1, "version": version("plaudit")}
            assert known.items() <= started.items() and "a word" not in json.dumps(started)

            # SIGTERM while a request is under way: it is answered, then the process and its children end.
            body = json.dumps(asked).encode()
            request = HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
            length = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
            request.request("POST", "/v1/score", body[:100], {**headers, **length})
            wait_until(lambda: "plaudit_pending_bytes 100.0" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            wait_for("Shutting down")
            request.send(body[100:])
            assert request.getresponse().status == 200
            request.close()
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(map(alive, workers)))
    records = [json.loads(line) for line in lines() if line.startswith("{")]
    assert {"info"} == {record["level"] for record in records}
    assert [r["status"] for r in records if r["event"] == "request"] == [200, 401, 200, 200]
    events = [record["event"] for record in records]
    assert events.index("serving") < events.index("draining") < events.index("Shutting down")


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
        (["--host", "0.0.0.0"], "there is no token: put one into $PLAUDIT_TOKEN or --token-file, or give --no-token"),
        (["--host", "203.0.113.7", "--no-token"], "cannot listen on 203.0.113.7:8000"),
        (["--port", "99999"], "wanted"),
        (["--max-queue", "1"], "max_queue is 1; wanted at least max_items"),
        (["--precision", "fp8"], "no graphs at fp8"),
        (["--catalogue", "/nonexistent"], "is not a catalogue"),
        (["--provider", "cuda"], "has no CUDAExecutionProvider, only"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    bundle: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(bundle), "--decoders", "1", *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_options_from_a_file_and_from_variables_are_checked_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('token = "a secret"\n')
    assert main(["serve", "bundle", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert "unknown option --token in" in error and "--token-file" in error and "a secret" not in error
    file.write_text('host = "0.0.0.0"\n')
    assert main(["serve", "bundle", "--config", str(file)]) == 2
    assert "--host 0.0.0.0 lets other machines in" in capsys.readouterr().err
    monkeypatch.setenv("PLAUDIT_SERVE_HOST", "203.0.113.7")
    monkeypatch.setenv(TOKEN_VARIABLE, "a word")
    assert main(["serve", "bundle", "--config", str(file)]) == 2
    assert "cannot listen on 203.0.113.7:8000" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(tmp_path / "no bundle"), "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_who_waits_for_requests_says_nothing_of_its_own_accord(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paused, app = [], SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace(drain=None)))
    running = SimpleNamespace(run=lambda sockets: paused.append(console.SIGNS.is_paused))
    monkeypatch.setattr("runtime.service.app.create_app", lambda config: app)
    monkeypatch.setattr("runtime.service.network.listening.Server", lambda *given: running)
    monkeypatch.setattr(serve, "log_json_lines", lambda: None)
    serve.serve_locally(ServiceConfig(tmp_path), "127.0.0.1", 0, 0.0)
    assert paused == [True] and not console.SIGNS.is_paused and "stop with Ctrl-C" in capsys.readouterr().out


def test_tokens_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(" new \n\nold\r\n")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_tokens(None, TOKEN_VARIABLE) == ()
    monkeypatch.setenv(TOKEN_VARIABLE, "other\n")
    assert read_tokens(file, TOKEN_VARIABLE) == ("new", "old") and read_tokens(None, TOKEN_VARIABLE) == ("other",)
    file.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_tokens(file, TOKEN_VARIABLE)
    monkeypatch.setenv(TOKEN_VARIABLE, " ")
    with pytest.raises(InputError, match=r"\$PLAUDIT_TOKEN is empty"):
        read_tokens(None, TOKEN_VARIABLE)


def test_who_lets_others_in_says_how() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        require_token(host, (), no_token=False)
    require_token("0.0.0.0", ("word",), no_token=False)
    require_token("0.0.0.0", (), no_token=True)
    for host in ("0.0.0.0", "::", "10.0.0.1", "name"):
        with pytest.raises(InputError, match="lets other machines in"):
            require_token(host, (), no_token=False)
    with pytest.raises(InputError, match="--no-token was given together with a token"):
        require_token("127.0.0.1", ("word",), no_token=True)


def test_numpy_shares_no_product_among_threads_unless_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert main(["serve", "nowhere"]) == 2 and os.environ["OPENBLAS_NUM_THREADS"] == "3"
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    assert main(["serve", "nowhere"]) == 2 and os.environ["OPENBLAS_NUM_THREADS"] == "1"
