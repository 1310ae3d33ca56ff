"""A small Hugging Face Hub on 127.0.0.1 for the real client: data sets, their files, and who may do
what.

    with LoopbackHub(folder) as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITE}
        ...
        hub.requests   # [("POST", "/api/repos/create", 200), ...]

It answers what huggingface_hub 2 and datasets 5 ask: whoami-v2, repos/create, validate-yaml,
preupload, commit, Git LFS, dataset info, tree, paths-info and resolve. Only the newest commit is
kept. Parquet is in LFS if ``lfs`` says so, every other file is regular; Xet is never offered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITE = "hf_writeWRITEwriteWRITE01"
READ = "hf_readREADreadREADread02"
OWNER = "me"
REPO = r"(?P<repo>[^/]+/[^/]+)"
FILE = rf"/datasets/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"


class RefusedError(Exception):
    """An answer other than 200: the status, the body, and the code that the client reads in a
    header.
    """

    def __init__(self, status: int, message: str, code: str = "", **more: str):
        super().__init__(message)
        self.status = status
        self.code = code
        self.body = {"error": message} | more


@dataclass
class Repo:
    """A data set: its files by path, and how many commits made them."""

    name: str
    private: bool
    files: dict[str, Path]
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{self.name} {self.commits}".encode()).hexdigest()


class LoopbackHub:
    """The server, in a thread, on a free port. ``requests`` has every request, ``unknown`` those it
    cannot answer.
    """

    def __init__(self, folder: Path, *, lfs: bool = False):
        self.folder = folder
        self.lfs = lfs
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.unknown: list[str] = []
        self.refusals: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        """By a part of the address, such as "/commit/": status, headers and body of the answers to
        the next requests, one each."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self  # type: ignore[attr-defined]
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        # A short poll: shutdown waits for it.
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def store(self, content: bytes) -> Path:
        """Keeps the content under its SHA-256."""
        path = self.folder / hashlib.sha256(content).hexdigest()
        path.write_bytes(content)
        return path

    def describe(self, repo: Repo, path: str) -> dict[str, Any]:
        """A file as tree and paths-info tell of it."""
        content = repo.files[path].read_bytes()
        entry: dict[str, Any] = {
            "type": "file",
            "path": path,
            "size": len(content),
            "oid": git_oid(content),
        }
        if self.in_lfs(path):
            entry["lfs"] = {"oid": repo.files[path].name, "size": len(content), "pointerSize": 134}
        return entry

    def in_lfs(self, path: str) -> bool:
        return self.lfs and path.endswith(".parquet")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body in one packet, or each answer waits 40 ms for the client's acknowledgement.
    wbufsize = -1

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr; ``hub.requests`` is the log."""

    def answer(self) -> None:
        """Finds the route, calls it, and sends what it returns: JSON, or a file's path."""
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.read()
        method = "GET" if self.command == "HEAD" else self.command
        status = 200
        headers = {"Content-Type": "application/json"}
        content = b""
        planned = next((all for part, all in self.hub.refusals.items() if part in url.path), [])
        if planned:
            status, more, content = planned.pop(0)
            self.send(status, headers | more, content)
            return
        try:
            for expected, pattern, route in ROUTES:
                if method == expected and (match := re.fullmatch(pattern, url.path)):
                    result = route(
                        self,
                        **{
                            key: unquote(value) for key, value in match.groupdict().items() if value
                        },
                    )
                    break
            else:
                self.hub.unknown.append(f"{self.command} {self.path}")
                raise RefusedError(404, "no such route in the loopback hub")
            if isinstance(result, Path):
                status, headers, content = self.file(result)
            else:
                content = json.dumps(result).encode()
        except RefusedError as error:
            status, content = error.status, json.dumps(error.body).encode()
            headers |= {"X-Error-Code": error.code} if error.code else {}
        self.send(status, headers, content)

    def send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        """Sends the answer, and notes the request."""
        self.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # the names that http.server calls

    def read(self) -> bytes:
        """The body, in one piece or chunked."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def file(self, path: Path) -> tuple[int, dict[str, str], bytes]:
        """A file's bytes, or the range of them that was asked for."""
        content = path.read_bytes()
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{path.name}"',
        }
        headers["X-Repo-Commit"] = self.sha
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part is not None:
            start = int(part[1])
            end = min(int(part[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return 206, headers, content[start : end + 1]
        return 200, headers, content

    # --- who may ----------------------------------------------------------------------------------

    def user(self) -> str | None:
        """The token that was sent, None where there is none. Refused if nobody has such a token."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        token = header.removeprefix("Bearer ")
        if token not in (WRITE, READ):
            # The real one does not repeat what it was sent. A proxy may: then the token is in the
            # client's error.
            raise RefusedError(401, f"Invalid credentials in Authorization header: {header}")
        return token

    def may_write(self, owner: str) -> None:
        token = self.user()
        if token is None:
            raise RefusedError(401, "Invalid username or password.")
        if token != WRITE or owner != OWNER:
            raise RefusedError(
                403,
                f'You don\'t have the rights to create a dataset under the namespace "{owner}".',
            )

    def readable(self, repo: str, revision: str = "main") -> Repo:
        """The data set, if this user may see it: a private one looks absent to others."""
        found, user = self.hub.repos.get(repo), self.user()
        if found is None or (found.private and user is None):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        if revision not in ("main", found.sha):
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def writable(self, repo: str) -> Repo:
        self.may_write(repo.partition("/")[0])
        return self.readable(repo)

    # --- routes -----------------------------------------------------------------------------------

    def whoami(self) -> object:
        token = self.user()
        if token is None:
            raise RefusedError(401, "Invalid username or password.")
        role = "write" if token == WRITE else "read"
        return {"type": "user", "name": OWNER, "orgs": [], "auth": {"accessToken": {"role": role}}}

    def create(self) -> object:
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or OWNER
        self.may_write(owner)
        name = f"{owner}/{wanted['name']}"
        assert wanted["type"] == "dataset", "the loopback hub has data sets only"
        url = f"{self.hub.url}/datasets/{name}"
        if name in self.hub.repos:
            raise RefusedError(409, "You already created this dataset repo", url=url)
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        first = self.hub.store(b"*.parquet filter=lfs diff=lfs merge=lfs -text\n")
        self.hub.repos[name] = Repo(name, private, {".gitattributes": first})
        return {"url": url, "name": name, "private": private}

    def validate_yaml(self) -> object:
        block = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        if block is None or not isinstance(yaml.safe_load(block[1]), dict):
            raise RefusedError(400, "no YAML at the start of README.md")
        return {"errors": [], "warnings": []}

    def preupload(self, repo: str, revision: str) -> object:
        files = []
        held = self.writable(repo).files
        for announced in json.loads(self.body)["files"]:
            path = announced["path"]
            mode = "lfs" if self.hub.in_lfs(path) else "regular"
            file = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in held:  # so that the client leaves out what has not changed
                file["oid"] = held[path].name if mode == "lfs" else git_oid(held[path].read_bytes())
            files.append(file)
        return {"files": files}

    def lfs_batch(self, repo: str) -> object:
        self.writable(repo)
        objects = []
        for announced in json.loads(self.body)["objects"]:
            entry = dict(announced)
            if not (self.hub.folder / announced["oid"]).exists():
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{announced['oid']}"},
                    "verify": {"href": f"{self.hub.url}/datasets/{repo}.git/info/lfs/verify"},
                }
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> object:
        """Like the bucket that the real one names: the address is the right to write."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, "the content is not what its name says")
        self.hub.store(self.body)
        return {}

    def lfs_verify(self, repo: str) -> object:
        self.writable(repo)
        uploaded = json.loads(self.body)
        if (self.hub.folder / uploaded["oid"]).stat().st_size != uploaded["size"]:
            raise RefusedError(422, "the size is not right")
        return {}

    def commit(self, repo: str, revision: str) -> object:
        found = self.writable(repo)
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "file":
                    found.files[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
                case "lfsFile":
                    found.files[value["path"]] = self.hub.folder / value["oid"]
                    assert found.files[value["path"]].exists(), "committed before it was uploaded"
                case "deletedFile":
                    del found.files[value["path"]]
        found.commits += 1
        url = f"{self.hub.url}/datasets/{repo}/commit/{found.sha}"
        return {"success": True, "commitOid": found.sha, "commitUrl": url}

    def info(self, repo: str, revision: str = "main") -> object:
        found = self.readable(repo, revision)
        files = [{"rfilename": path} for path in found.files]
        facts = {
            "id": repo,
            "author": repo.partition("/")[0],
            "sha": found.sha,
            "private": found.private,
        }
        return facts | {
            "siblings": files,
            "tags": [],
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
        }

    def tree(self, repo: str, revision: str, path: str = "") -> object:
        found = self.readable(repo, revision)
        entries = found.files | {parent: None for file in found.files for parent in folders(file)}
        inside = [name for name in sorted(entries) if name.startswith(f"{path}/" if path else "")]
        if path and not inside:
            raise RefusedError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            inside = [name for name in inside if "/" not in name.removeprefix(f"{path}/")]
        return [self.entry(found, name) for name in inside]

    def paths_info(self, repo: str, revision: str) -> object:
        found = self.readable(repo, revision)
        paths = parse_qs(self.body.decode()).get("paths", [])
        known = {*found.files, *(parent for file in found.files for parent in folders(file))}
        return [self.entry(found, path) for path in paths if path in known]

    def entry(self, repo: Repo, path: str) -> dict[str, Any]:
        if path in repo.files:
            return self.hub.describe(repo, path)
        return {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}

    def resolve(self, repo: str, revision: str, path: str) -> Path:
        found = self.readable(repo, revision)
        self.sha = found.sha
        if path not in found.files:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        return found.files[path]


def folders(path: str) -> list[str]:
    return [str(parent) for parent in Path(path).parents if str(parent) != "."]


DATASET = rf"/api/datasets/{REPO}"
REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., object]]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"{DATASET}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"{DATASET}/commit/{REVISION}", Handler.commit),
    ("POST", rf"/datasets/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("POST", rf"/datasets/{REPO}\.git/info/lfs/verify", Handler.lfs_verify),
    ("GET", DATASET, Handler.info),
    ("GET", f"{DATASET}/revision/{REVISION}", Handler.info),
    ("GET", f"{DATASET}/tree/{REVISION}(/(?P<path>.+))?", Handler.tree),
    ("POST", f"{DATASET}/paths-info/{REVISION}", Handler.paths_info),
    ("GET", FILE, Handler.resolve),
]
