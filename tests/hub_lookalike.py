"""A small look-alike of the Hugging Face hub on the loopback: what its client asks for, answered as the hub answers. Logs every request.

`python hub_lookalike.py PORT FOLDER LOG` begins with FOLDER/models/<owner>/<name> and FOLDER/datasets/<owner>/<name>, and takes what is
created, uploaded and committed. Large files lie behind a redirect to another host, which refuses whoever shows it the hub's token.
`POST /control {"uploads_left": N}` lets N more files be uploaded.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

WRITER, READER = "Bearer hf_good", "Bearer hf_reader"
LARGE_SUFFIXES = (".tar", ".parquet", ".safetensors", ".gz")
API = re.compile(r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)(?:/(?P<what>[a-z-]+)(?:/(?P<rest>.*))?)?")
FILE = re.compile(r"/(?:(?P<kind>dataset)s/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.*)")
BATCH = re.compile(r"/(?:(?P<kind>dataset)s/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
Tree = dict[str, str]  # sha256 of the content by path


@dataclass
class Repository:
    """All commits, newest last, and what each branch is at."""

    private: bool = False
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Tree) -> str:
        told = json.dumps([sorted(tree.items()), len(self.commits), branch])
        oid = hashlib.sha1(told.encode()).hexdigest()
        self.commits[oid], self.branches[branch] = tree, oid
        return oid

    def oid(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Store:
    """Everything the hub holds."""

    def __init__(self, folder: Path) -> None:
        self.lock = threading.Lock()
        self.contents: dict[str, bytes] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads_left: int | None = None
        for kind in ("model", "dataset"):
            for place in (folder / f"{kind}s").glob("*/*"):
                files = sorted(path for path in place.rglob("*") if path.is_file())
                repository = self.repositories[kind, "/".join(place.parts[-2:])] = Repository()
                repository.commit("main", {path.relative_to(place).as_posix(): self.keep(path.read_bytes()) for path in files})

    def keep(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.contents[digest] = content
        return digest

    def blob_id(self, path: str, digest: str) -> str:
        """Git's name of a file: of a large one the pointer's."""
        content = self.contents[digest]
        if is_large(path):
            content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(LARGE_SUFFIXES)


class RefusedError(Exception):
    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Hub(BaseHTTPRequestHandler):
    """Repositories called `gated` and `private` want a token; that of `closed` is not enough."""

    store: Store
    log: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_request(self, code: object = "", size: object = "") -> None:
        with self.log.open("a") as log:
            log.write(f"{self.command} {unquote(self.path)} {code}\n")

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            with self.store.lock:
                status, headers, content = self._routed(unquote(self.path.partition("?")[0]))
        except RefusedError as refused:
            status, content = refused.status, json.dumps({"error": str(refused)}).encode()
            headers = {"X-Error-Message": str(refused), **({"X-Error-Code": refused.code} if refused.code else {})}
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _routed(self, path: str) -> tuple[int, dict[str, str], bytes]:
        token = self.headers.get("authorization")
        if path.startswith("/storage/"):
            return self._storage(path.rpartition("/")[2], token)
        if path == "/control":
            self.store.uploads_left = json.loads(self.body)["uploads_left"]
            return as_json({})
        if token not in (None, WRITER, READER):
            raise RefusedError(401, None, "Invalid username or password.")
        if path == "/api/validate-yaml":
            return as_json({"warnings": [], "errors": []})
        if path == "/api/repos/create":
            return self._create(json.loads(self.body), token)
        if match := API.fullmatch(path):
            repository = self._repository(match["kind"], match["name"], token, is_api=True)
            return self._api(repository, match["name"], match["what"], match["rest"] or "", token)
        if match := BATCH.fullmatch(path):
            self._require_writer(token)
            return self._batch(json.loads(self.body))
        if match := FILE.fullmatch(path):
            repository = self._repository(match["kind"] or "model", match["name"], token, is_api=False)
            return self._file(repository, match["revision"], match["path"])
        raise RefusedError(404, None, "Not found")

    def _repository(self, kind: str, name: str, token: str | None, *, is_api: bool) -> Repository:
        repository, short = self.store.repositories.get((kind, name)), name.partition("/")[2]
        if repository is None or ((short == "private" or repository.private) and token is None):
            raise RefusedError(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if short == "gated" and token is None and not is_api:  # what it is may be known to all
            raise RefusedError(401, "GatedRepo", "Access to this repository is restricted.")
        if short == "closed":
            raise RefusedError(403, None, "Forbidden")
        return repository

    @staticmethod
    def _require_writer(token: str | None) -> None:
        if token != WRITER:
            raise RefusedError(401 if token is None else 403, None, "You don't have the rights to write here.")

    def _create(self, asked: dict, token: str | None) -> tuple[int, dict[str, str], bytes]:
        self._require_writer(token)
        key = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        url = f"{self._origin}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"
        if key in self.store.repositories:
            return as_json({"error": "You already created this repository", "url": url}, 409)
        repository = self.store.repositories[key] = Repository(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        repository.commit("main", {".gitattributes": self.store.keep(b"*.tar filter=lfs\n")})
        return as_json({"url": url, "name": key[1]})

    def _api(self, repository: Repository, name: str, what: str | None, rest: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        if what in (None, "revision", "tree"):
            revision, _, below = rest.partition("/") if what == "tree" else (rest or "main", "", "")
            oid = self._oid(repository, revision)
            tree = {path: digest for path, digest in repository.commits[oid].items() if path.startswith(below)}
            if what == "tree" and below and not tree:
                raise RefusedError(404, "EntryNotFound", "Entry not found")
            if what == "tree":
                return as_json([self._entry(path, digest) for path, digest in sorted(tree.items())])
            about = {"id": name, "sha": oid, "siblings": [{"rfilename": path} for path in tree], "private": repository.private}
            return as_json(about | {"lastModified": "2026-01-01T00:00:00.000Z"})
        self._require_writer(token)
        if what == "branch":
            if rest in repository.branches:
                return as_json({"error": "Reference already exists"}, 409)
            repository.branches[rest] = self._oid(repository, "main")
            return as_json({})
        if what == "preupload":
            tree = repository.commits[self._oid(repository, rest)]
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            modes = [{"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False} for path in paths]
            return as_json({"files": [mode | {"oid": self._known_as(tree, mode["path"])} for mode in modes]})
        assert what == "commit"
        return self._commit(repository, name, rest)

    def _commit(self, repository: Repository, name: str, branch: str) -> tuple[int, dict[str, str], bytes]:
        tree = dict(repository.commits[self._oid(repository, branch)])
        for line in self.body.splitlines():
            key, value = (one := json.loads(line))["key"], one["value"]
            if key == "file":
                tree[value["path"]] = self.store.keep(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.store.contents:
                    raise RefusedError(400, None, f"{value['path']} was not uploaded")
                tree[value["path"]] = value["oid"]
            elif key == "deletedFile":
                del tree[value["path"]]
        oid = repository.commit(branch, tree)
        return as_json({"success": True, "commitOid": oid, "commitUrl": f"{self._origin}/{name}/commit/{oid}"})

    def _batch(self, asked: dict) -> tuple[int, dict[str, str], bytes]:
        objects = []
        for one in asked["objects"]:
            upload = {"upload": {"href": f"{self._storage_origin}/storage/{one['oid']}", "header": {}}}
            objects.append(one if one["oid"] in self.store.contents else one | {"actions": upload})
        return as_json({"transfer": "basic", "objects": objects})

    def _storage(self, digest: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        if token is not None:
            raise RefusedError(400, None, "Only one auth mechanism allowed")
        if self.command != "PUT":
            return self._ranged(self.store.contents[digest], {"ETag": f'"{digest}"'})
        if self.store.uploads_left == 0:
            raise RefusedError(403, None, "The signature has expired")
        if self.store.uploads_left is not None:
            self.store.uploads_left -= 1
        assert self.store.keep(self.body) == digest
        return as_json({})

    def _file(self, repository: Repository, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        oid = self._oid(repository, revision)
        digest = repository.commits[oid].get(path)
        if digest is None:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{self.store.blob_id(path, digest)}"'}
        if not is_large(path):
            return self._ranged(self.store.contents[digest], headers)
        linked = {"X-Linked-Size": str(len(self.store.contents[digest])), "X-Linked-Etag": f'"{digest}"'}
        location = f"{self._storage_origin}/storage/{digest}?of=/resolve/{oid}/{quote(path)}"
        return 302, headers | linked | {"Location": location}, b"Found"

    def _ranged(self, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range") or "")
        if match is None:
            return 200, headers, content
        first, last = int(match[1]), min(int(match[2]), len(content) - 1)
        return 206, headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]

    @staticmethod
    def _oid(repository: Repository, revision: str) -> str:
        oid = repository.oid(revision)
        if oid is None:
            raise RefusedError(404, "RevisionNotFound", "Invalid rev id")
        return oid

    def _known_as(self, tree: Tree, path: str) -> str | None:
        """By what the client sees that a file has not changed: a large one's sha256, git's sha1 of others."""
        if path not in tree:
            return None
        return tree[path] if is_large(path) else self.store.blob_id(path, tree[path])

    def _entry(self, path: str, digest: str) -> dict:
        size = len(self.store.contents[digest])
        large = {"lfs": {"oid": digest, "size": size, "pointerSize": 130}} if is_large(path) else {}
        return {"type": "file", "path": path, "size": size, "oid": self.store.blob_id(path, digest), **large}

    @property
    def _origin(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def _storage_origin(self) -> str:
        return f"http://localhost:{self.server.server_port}"


def as_json(content: object, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


if __name__ == "__main__":
    Hub.store, Hub.log = Store(Path(sys.argv[2])), Path(sys.argv[3])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Hub).serve_forever()
