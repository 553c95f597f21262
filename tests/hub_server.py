"""A stand-in on loopback for what huggingface_hub asks of the Hugging Face Hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub.utils.sha import git_hash

_REVISION = r"(?:main|[0-9a-f]{40})"


class HubServer(ThreadingHTTPServer):
    """Serves repositories, which are folders: ``root/user/name``.

    A dataset's id, and so its folder, begins with ``datasets/``.

    Attributes:
        requests: The request lines so far, without the protocol.
        created: What was asked of each repository that was created.
        tokens: The tokens that came with requests to the API.
        commits: How many commits there were.
        cut_off: Requests with this in their line lose their connection half-way.
        cuts: How many more requests are cut off.
        refuses: Whether nobody may create repositories.
        longest_download: Byte after which every download loses its connection.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.root = root
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.commits = 0
        self.cut_off = "nothing"
        self.cuts = 1000
        self.refuses = False
        self.longest_download: int | None = None

    def repo(self, repo_id: str) -> Path:
        """Return a repository's folder, made if there is none."""
        folder = self.root / repo_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Return what is in a repository."""
        folder = self.root / repo_id
        return {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }


class HubHandler(SimpleHTTPRequestHandler):
    """Answers for a HubServer."""

    server: HubServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        self._download(body=False)

    def do_GET(self) -> None:
        self._download(body=True)

    def do_PUT(self) -> None:
        body = self._body()
        if body is None:
            return
        oid = self.path.removeprefix("/uploads/")
        if hashlib.sha256(body).hexdigest() != oid:
            self._error(400, "BadUpload")
            return
        self.server.uploads[oid] = body
        self._json({})

    def do_POST(self) -> None:
        body = self._body()
        if body is None:
            return
        self.server.tokens.add(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._json({})
        elif batch := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            self._in_repo(batch[1], self._uploads, json.loads(body))
        elif api := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|paths-info|commit)/"
            + _REVISION,
            self.path,
        ):
            answer = {
                "preupload": self._preupload,
                "paths-info": self._paths_info,
                "commit": self._commit,
            }[api[3]]
            self._in_repo(_repo_id(api[1], api[2]), answer, body)
        else:
            self._error(404, "RevisionNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        repo_id = f"{asked['organization']}/{asked['name']}"
        if self.server.refuses:
            self._error(403, "Forbidden")
            return
        existed = (self.server.root / repo_id).exists()
        self.server.repo(repo_id)
        self.server.created.append(asked)
        url = f"{self.server.endpoint}/{repo_id}"
        self._json({"url": url}, status=409 if existed else 200)

    def _in_repo(self, repo_id: str, answer: Any, asked: Any) -> None:
        if not (self.server.root / repo_id).exists():
            self._error(404, "RepoNotFound")
        elif (found := answer(repo_id, asked)) is None:
            self._error(404, "EntryNotFound")
        else:
            self._json(found)

    def _preupload(self, _repo_id: str, body: bytes) -> Any:
        files = [
            {
                "path": file["path"],
                "uploadMode": (
                    "lfs" if file["path"].endswith(".safetensors") else "regular"
                ),
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return {"files": files}

    def _uploads(self, _repo_id: str, asked: dict[str, Any]) -> Any:
        objects = [
            o | {"actions": {"upload": {"href": self._upload_url(o["oid"])}}}
            for o in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _upload_url(self, oid: str) -> str:
        return f"{self.server.endpoint}/uploads/{oid}"

    def _paths_info(self, repo_id: str, body: bytes) -> Any:
        files = self.server.files(repo_id)
        asked = parse_qs(body.decode())["paths"]
        return [_file(path, files[path]) for path in asked if path in files]

    def _info(self, repo_id: str, _asked: None) -> Any:
        files = [{"rfilename": path} for path in self.server.files(repo_id)]
        name = repo_id.removeprefix("datasets/")
        return {"id": name, "sha": self._commit_id(), "siblings": files}

    def _tree(self, repo_id: str, asked: tuple[str, bool]) -> Any:
        folder, recursive = asked
        entries: dict[str, Any] = {}
        for path, content in self.server.files(repo_id).items():
            if not path.startswith(folder):
                continue
            child, below, _ = path.removeprefix(folder).partition("/")
            if below and not recursive:
                path = folder + child
                entries[path] = {"type": "directory", "path": path, "oid": "0" * 40}
            else:
                entries[path] = _file(path, content)
        return [*entries.values()] if entries or not folder else None

    def _commit(self, repo_id: str, body: bytes) -> Any:
        changes = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                changes[value["path"]] = self.server.uploads[value["oid"]]
            elif item["key"] == "deletedFile":
                (self.server.repo(repo_id) / value["path"]).unlink()
        for path, content in changes.items():
            file = self.server.repo(repo_id) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self.server.commits += 1
        url = f"{self.server.endpoint}/{repo_id}/commit/{self._commit_id()}"
        return {"commitUrl": url, "commitOid": self._commit_id()}

    def _commit_id(self) -> str:
        return f"{self.server.commits:040x}"

    def _download(self, *, body: bool) -> None:
        self._note()
        url = urlsplit(self.path)
        path = unquote(url.path)
        if info := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/" + _REVISION + ")?",
            path,
        ):
            self._in_repo(_repo_id(info[1], info[2]), self._info, None)
            return
        if tree := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)/tree/" + _REVISION + "(/.*)?", path
        ):
            folder = f"{tree[3][1:]}/" if tree[3] else ""
            recursive = "recursive=true" in url.query.lower()
            self._in_repo(_repo_id(tree[1], tree[2]), self._tree, (folder, recursive))
            return
        match = re.fullmatch(
            r"/((?:datasets/)?[^/]+/[^/]+)/resolve/" + _REVISION + "/(.+)", path
        )
        if match and not (self.server.root / match[1]).exists():
            self._error(404, "RepoNotFound")
            return
        content = self.server.files(match[1]).get(match[2]) if match else None
        if content is None:
            self._error(404, "EntryNotFound")
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{git_hash(content)}"')
        self.send_header("X-Repo-Commit", self._commit_id())
        self.end_headers()
        if body:
            # Fewer bytes than the length that was announced, where that is asked for.
            self.wfile.write(content[start : self.server.longest_download])

    def _body(self) -> bytes | None:
        """Return the request's body, or None if the connection was to be cut off."""
        self._note()
        length = int(self.headers.get("Content-Length", 0))
        if self.server.cut_off in self.requestline and self.server.cuts > 0:
            self.server.cuts -= 1
            self.rfile.read(length // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        return self.rfile.read(length)

    def _note(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")

    def _json(self, answer: Any, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def _repo_id(kind: str, name: str) -> str:
    """Return a repository's id from what the API calls it."""
    return name if kind == "models" else f"{kind}/{name}"


def _file(path: str, content: bytes) -> dict[str, Any]:
    """Return what the API says of a file."""
    size = len(content)
    return {"type": "file", "path": path, "size": size, "oid": git_hash(content)}
