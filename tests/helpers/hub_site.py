"""A stand-in for a hub of models: repositories of commits in memory, over as much HTTP as huggingface_hub asks for."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What was pushed: the files of each commit of each repository, and who asked for what."""

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit with these files, and give its name."""
        of = self.commits.setdefault(repo, [])
        name = hashlib.sha1(f"{repo} {len(of)}".encode()).hexdigest()
        of.append((name, files))
        return name

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a revision names and its files."""
        for name, files in reversed(self.commits.get(repo, [])):
            if revision in ("main", name):
                return name, files
        return None


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """A hub at an address of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *parts: object) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def document(self, value: Any, status: int = 200) -> None:
            self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

        def refuse(self, code: str) -> None:
            self.answer(404, b"{}", X_Error_Code=code, X_Error_Message="not here", Content_Type="application/json")

        def do_GET(self) -> None:
            hub.asked.append((self.command, self.path))
            hub.tokens.add(self.headers.get("Authorization"))
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                repo, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
            else:
                repo, revision = "/".join(parts[:2]), parts[3]
            if repo not in hub.commits:
                return self.refuse("RepoNotFound")
            if (found := hub.files(repo, revision)) is None:
                return self.refuse("RevisionNotFound")
            sha, files = found
            if parts[:2] == ["api", "models"]:
                if "tree" in parts:
                    return self.document(
                        [{"type": "file", "path": n, "size": len(d), "oid": sha} for n, d in files.items()]
                    )
                siblings = [{"rfilename": name} for name in files]
                return self.document(
                    {"id": repo, "sha": sha, "siblings": siblings, "private": hub.private.get(repo, False)}
                )
            name = "/".join(parts[4:])
            if name not in files:
                return self.refuse("EntryNotFound")
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            self.answer(200, files[name], ETag=etag, X_Repo_Commit=sha, Content_Type="application/octet-stream")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.asked.append((self.command, self.path))
            hub.tokens.add(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers["Content-Length"]))
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts == ["api", "repos", "create"]:
                wanted = json.loads(body)
                repo = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
                if repo in hub.commits:
                    return self.document({"error": "there already", "url": f"{hub.url}/{repo}"}, 409)
                hub.private[repo] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
                hub.commit(repo, {".gitattributes": b""})
                return self.document({"url": f"{hub.url}/{repo}", "name": repo})
            if parts == ["api", "validate-yaml"]:  # of the model card
                return self.document({"errors": [], "warnings": []})
            repo = "/".join(parts[2:4])
            if parts[4] == "preupload":
                asked = json.loads(body)["files"]
                known = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for one in asked
                ]
                return self.document({"files": known})
            files = dict(hub.files(repo, "main")[1])  # type: ignore[index]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            sha = hub.commit(repo, files)
            self.document({"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo}/commit/{sha}"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
