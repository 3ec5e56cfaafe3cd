"""A small look-alike of the Hugging Face hub on the loopback: what its client asks for, answered as the hub answers. Logs every request.

`python hub_lookalike.py PORT FOLDER LOG` serves FOLDER/<owner>/<name> as repositories; their names decide who may read them.
"""

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789012345678901234567890123456789"
TOKEN = "Bearer hf_good"


class Hub(BaseHTTPRequestHandler):
    """Repositories called `gated` and `private` want a token; that of `closed` is not enough."""

    root: Path
    log: Path

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def log_message(self, *_: object) -> None:
        with self.log.open("a") as log:
            log.write(f"{self.command} {self.path}\n")

    def _answer(self, *, has_body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_api else parts
        folder = self.root / owner / name
        token = self.headers.get("authorization")
        if token is not None and token != TOKEN:
            return self._refuse(401, None, "Invalid username or password.")
        if not folder.is_dir() or (name == "private" and token is None):
            return self._refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if name == "gated" and token is None and not is_api:  # what it is may be known to all
            return self._refuse(401, "GatedRepo", "Access to this model is restricted.")
        if name == "closed":
            return self._refuse(403, None, "Forbidden")
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        if is_api:
            return self._listing(folder, rest, has_body=has_body)
        path = folder.joinpath(*rest[2:])
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found")
        return self._send(path.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{_digest(path)}"'}, has_body=has_body)

    def _listing(self, folder: Path, rest: list[str], *, has_body: bool) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [str(path.relative_to(folder)) for path in files]
        if rest[:1] == ["tree"]:
            content = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _digest(path)}
                for name, path in zip(names, files, strict=True)
            ]
        else:
            content = {"id": "/".join(folder.parts[-2:]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"}, has_body=has_body)

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        self._send(b"", {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}, status=status, has_body=False)

    def _send(self, content: bytes, headers: dict[str, str], *, status: int = 200, has_body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(content)


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    Hub.root, Hub.log = Path(sys.argv[2]), Path(sys.argv[3])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Hub).serve_forever()
