"""The hub through a local server that imitates its endpoints; every process has its own cache."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.tiny import trtbuild
from trtbuild.errors import CheckpointError, HubError
from trtbuild.hub.snapshot import hub_id, local_folder
from trtbuild.manifest import read_manifest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "acme/tiny-llama"


@dataclass
class Hub:
    """A fake hub: one public repository, `acme/gated`, and nothing else. `log` holds the paths that were asked for."""

    folder: Path
    url: str = ""
    log: list[str] = field(default_factory=list)
    status: int = 0

    def env(self, cache: Path, **more: str) -> dict[str, str]:
        fixed = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return {**fixed, "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1", **more}


class Handler(BaseHTTPRequestHandler):
    """HEAD and GET of /api/models/REPO/... and /REPO/resolve/REV/FILE."""

    hub: Hub

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def log_message(self, *_: object) -> None:
        return

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.log.append(f"{self.command} {path}")
        if self.hub.status:
            self.send(self.hub.status, b"{}", {}, body)
        elif "acme/gated" in path:
            self.send(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access restricted"}, body)
        elif REPO not in path:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif "no-such-branch" in path:
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        elif path.startswith("/api/"):
            self.api(path, body)
        else:
            self.file(self.hub.folder / path.rpartition("/")[2], body)

    def api(self, path: str, body: bool) -> None:
        names = sorted(p.name for p in self.hub.folder.iterdir())
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": n, "size": (self.hub.folder / n).stat().st_size, "oid": self.oid(n)}
                for n in names
            ]
            self.send(200, json.dumps(tree).encode(), {}, body)
        else:
            info = {
                "_id": "1",
                "id": REPO,
                "modelId": REPO,
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            info |= {"siblings": [{"rfilename": name} for name in names]}
            self.send(200, json.dumps(info).encode(), {}, body)

    def oid(self, name: str) -> str:
        return hashlib.sha1((self.hub.folder / name).read_bytes()).hexdigest()

    def file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            return
        data = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.oid(path.name)}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if asked:
            first, _, last = asked.partition("-")
            total, data = len(data), data[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{total}"
        self.send(206 if asked else 200, data, headers, body)

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(llama_folder: Path) -> Iterator[Hub]:
    state = Hub(llama_folder)
    handler = type("BoundHandler", (Handler,), {"hub": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def test_download_then_offline(hub: Hub, tmp_path: Path) -> None:
    env = hub.env(tmp_path / "cache")
    done = trtbuild("checkpoint", f"{REPO}@main", "-o", tmp_path / "one", env=env)
    assert done.returncode == 0, done.stderr
    source = read_manifest(tmp_path / "one")["source"]
    assert (source["repo_id"], source["revision"], source["model"]) == (REPO, COMMIT, REPO)
    hub.log.clear()
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    again = trtbuild("checkpoint", REPO, "-o", tmp_path / "two", env=offline)
    assert again.returncode == 0, again.stderr
    assert hub.log == []
    one, two = ((tmp_path / name / "rank0.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    plan = trtbuild("plan", REPO, "--json", env=offline)
    assert plan.returncode == 0, plan.stderr


def test_plan_downloads_no_weights(hub: Hub, tmp_path: Path) -> None:
    done = trtbuild("plan", REPO, "--json", env=hub.env(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    here = trtbuild("plan", hub.folder, "--json")
    remote, local = json.loads(done.stdout), json.loads(here.stdout)
    assert {**remote, "model": ""} == {**local, "model": ""}
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("command", ["plan", "checkpoint"])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("acme/gated", ("acme/gated is gated", "HF_TOKEN")),
        ("acme/absent", ("no model acme/absent", "spelling")),
        (f"{REPO}@no-such-branch", ("no revision no-such-branch",)),
    ],
    ids=["gated", "absent", "revision"],
)
def test_refusals(command: str, model: str, words: tuple[str, ...], hub: Hub, tmp_path: Path) -> None:
    options = ("-o", tmp_path / "out") if command == "checkpoint" else ()
    done = trtbuild(command, model, *options, env=hub.env(tmp_path / "cache"))
    assert done.returncode == 6, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["plan", "checkpoint"])
def test_offline_without_cache(command: str, hub: Hub, tmp_path: Path) -> None:
    options = ("-o", tmp_path / "out") if command == "checkpoint" else ()
    done = trtbuild(command, REPO, *options, env=hub.env(tmp_path / "cache", HF_HUB_OFFLINE="1"))
    assert done.returncode == 6, done.stderr
    assert f"HF_HUB_OFFLINE is set and {REPO} is not in the cache" in done.stderr
    assert hub.log == []


@pytest.mark.parametrize("command", ["plan", "checkpoint"])
def test_no_network(command: str, hub: Hub, tmp_path: Path) -> None:
    options = ("-o", tmp_path / "out") if command == "checkpoint" else ()
    env = hub.env(tmp_path / "cache", HF_ENDPOINT="http://127.0.0.1:9")
    done = trtbuild(command, REPO, *options, env=env)
    assert done.returncode == 6, done.stderr
    assert "cannot be reached" in done.stderr
    assert "Check the network" in done.stderr


def test_hub_that_refuses(hub: Hub, tmp_path: Path) -> None:
    hub.status = 403
    done = trtbuild("checkpoint", REPO, "-o", tmp_path / "out", env=hub.env(tmp_path / "cache"))
    assert done.returncode == 6, done.stderr
    assert "HTTP 403" in done.stderr


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_folder("org/name") is None
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert local_folder("org/name") == Path("org/name")  # an existing folder wins
    assert local_folder("hf:org/name") is None
    assert local_folder("local:org/name") == Path("org/name")
    for path in ("local:absent/name", "./absent", "absent", "/absent/model"):
        with pytest.raises(CheckpointError, match="no model folder"):
            local_folder(path)
    assert hub_id("hf:org/name@v1", None) == ("org/name", "v1")
    assert hub_id("org/name", "v2") == ("org/name", "v2")
    with pytest.raises(HubError, match="two revisions"):
        hub_id("org/name@v1", "v2")
