"""Pictures for a prompt of one's own: what a generator answers, and what it must not."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from votes_tiny import write_candidates

from runtime.collect.generators import GeneratorError, open_generator, pictures_in


class Generating(BaseHTTPRequestHandler):
    """Answers a prompt of "fail" with 500, others with what was asked."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        pictures = [f"{asked['prompt']} {asked['seed']} {i}".encode() for i in range(asked["n"])]
        body = json.dumps({"pictures": [base64.b64encode(one).decode() for one in pictures]}).encode()
        self.send_response(500 if asked["prompt"] == "fail" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Generating)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/generate"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_generator_is_asked_over_http(url: str) -> None:
    generator = open_generator(url, 1 << 20)
    assert asyncio.run(generator.pictures("a cat", 7, 2)) == [b"a cat 7 0", b"a cat 7 1"]
    with pytest.raises(GeneratorError, match="answered 500"):
        asyncio.run(generator.pictures("fail", 7, 2))
    with pytest.raises(GeneratorError, match="cannot be reached"):
        asyncio.run(open_generator("http://127.0.0.1:9/", 1 << 20).pictures("a cat", 7, 2))


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"pictures": ["?"]}', b'{"pictures": [1]}', b'{"pictures": []}']
)
def test_an_answer_that_is_none_is_refused(answer: bytes) -> None:
    with pytest.raises(GeneratorError):
        pictures_in(answer, 1)


def test_a_table_is_replayed_by_prompt_and_seed(tmp_path: Path) -> None:
    generator = open_generator(str(write_candidates(tmp_path, 3, 4)), 1 << 20)
    found = asyncio.run(generator.pictures("prompt 1", 5, 3))
    of_prompt = {(tmp_path / f"1-{j}.png").read_bytes() for j in range(4)}
    assert len(set(found)) == 3 and set(found) <= of_prompt
    assert asyncio.run(generator.pictures("prompt 1", 5, 3)) == found
    assert len(asyncio.run(generator.pictures("something else", 5, 12))) == 12
