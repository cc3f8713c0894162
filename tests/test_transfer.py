"""`trtbuild push` and `pull`: a real folder, a real S3 server over HTTP, and the hub's API over HTTP.

The hub is imitated by a local server (that of test_hub.py, with what a push needs), which the real huggingface_hub
talks to; nothing was pushed to huggingface.co itself.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.disks import disk_of
from tests.kept import contents, edit_json, flip, run, run_json
from tests.test_hub import REPO, Handler, Hub
from tests.tiny import ROOT, trtbuild
from trtbuild.cache import transfer
from trtbuild.cache.place_folder import FolderPlace
from trtbuild.cache.transfer import place_of, pull, push
from trtbuild.errors import ArtefactError, HubError, OutputError, RemoteError
from trtbuild.pipeline import make_checkpoint
from trtbuild.progress import silent
from trtbuild.spec import ConvertOptions

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def other(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another artefact, with fewer files."""
    return make_checkpoint(str(llama_folder), tmp_path_factory.mktemp("other") / "checkpoint", ConvertOptions())


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: Patch, tmp_path: Path) -> Any:
    """A client of a store with an empty bucket named `shelf`; the environment shows it to boto3."""
    import boto3

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    fixed = {"AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    fixed |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": str(tmp_path / "none"), "NO_PROXY": "127.0.0.1"}
    for name, value in {**fixed, "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shelf")
    yield client
    for item in client.list_objects_v2(Bucket="shelf").get("Contents", ()):
        client.delete_object(Bucket="shelf", Key=item["Key"])


def keys(client: Any) -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket="shelf").get("Contents", ())]


@pytest.fixture(params=["folder", "file", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Every kind of place that tests can have in full."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://shelf/models/tiny"
    return str(tmp_path / "shelf" / "tiny") if request.param == "folder" else f"file://{tmp_path}/shelf/tiny"


def test_there_and_back(address: str, artefact: Path, tmp_path: Path) -> None:
    """The same bytes; a second push of the same does nothing; JSON says what was moved."""
    done = run_json("push", artefact, address)
    assert (done["needed"], done["files"]) == (True, len(contents(artefact)))
    assert done["size"] == sum(map(len, contents(artefact).values()))
    run("pull", address, "-o", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(artefact)
    assert run_json("push", artefact, address)["needed"] is False
    assert run_json("push", tmp_path / "back", address)["needed"] is False
    with pytest.raises(OutputError, match="not empty"):
        pull(address, tmp_path / "back")
    run("pull", address, "-o", tmp_path / "back", "--force")
    assert sorted(path.name for path in tmp_path.iterdir() if "back" in path.name) == ["back"]


def test_another_artefact_is_not_replaced_unasked(address: str, artefact: Path, other: Path, tmp_path: Path) -> None:
    run("push", artefact, address)
    assert "holds another artefact" in run("push", other, address, code=4)
    assert pull(address, tmp_path / "one").files == len(contents(artefact))
    run("push", other, address, "--force")
    pull(address, tmp_path / "two")
    assert contents(tmp_path / "two") == contents(other)
    assert set(place_of(address).files()) == set(contents(other)), "the files that the other one had more are gone"


def test_damage_is_found_on_both_ways(artefact_copy: Path, tmp_path: Path) -> None:
    """Nothing damaged is pushed; what is damaged there does not appear here."""
    shelf = tmp_path / "shelf"
    push(artefact_copy, str(shelf))
    flip(shelf / "rank1.safetensors")
    said = run("pull", shelf, "-o", tmp_path / "back", code=3)
    assert "rank1.safetensors was changed" in said
    flip(shelf / "rank1.safetensors")
    edit_json(shelf / "provenance.intoto.json", lambda d: d["predicate"]["runDetails"]["builder"].update(id="urn:x"))
    assert "builder.id is urn:x" in run("pull", shelf, "-o", tmp_path / "back", code=3)
    (shelf / "rank0.safetensors").unlink()
    assert "rank0.safetensors is missing" in run("pull", shelf, "-o", tmp_path / "back", code=3)
    flip(artefact_copy / "rank0.safetensors")
    assert "rank0.safetensors was changed" in run("push", artefact_copy, tmp_path / "new", code=3)
    assert not (tmp_path / "new").exists()
    assert list(tmp_path.glob("*back*")) == []


def test_what_an_interrupted_push_leaves_is_no_artefact(s3: Any, artefact: Path, tmp_path: Path) -> None:
    """Killed between two uploads: no manifest, no artefact; the next push completes it."""
    code = f"""
import os, signal
from pathlib import Path
from trtbuild.cache import place_s3, transfer
real = place_s3.S3Place._client
class Dies:
    def __init__(self, client): self.client, self.count = client, 0
    def __getattr__(self, name): return getattr(self.client, name)
    def upload_file(self, *a, **k):
        self.count += 1
        if self.count == 4: os.kill(os.getpid(), signal.SIGKILL)
        return self.client.upload_file(*a, **k)
place_s3.S3Place._client = lambda self: self.__dict__.setdefault("dies", Dies(real(self)))
transfer.push(Path({str(artefact)!r}), "s3://shelf/tiny")
"""
    died = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert died.returncode == -signal.SIGKILL
    assert len(keys(s3)) == 3
    assert "tiny/trtbuild.json" not in keys(s3)
    assert "only parts of one" in run("pull", "s3://shelf/tiny", "-o", tmp_path / "back", code=6)
    assert not (tmp_path / "back").exists()
    push(artefact, "s3://shelf/tiny")
    pull("s3://shelf/tiny", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(artefact)


def test_an_interrupted_pull_goes_on(artefact: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """What is here and good is not fetched again; what is damaged or of something else is."""
    from trtbuild.cache import place_folder

    shelf, fetched, real = tmp_path / "shelf", [], place_folder.FolderPlace.fetch
    push(artefact, str(shelf))

    def fails(self: Any, names: Any, folder: Path, progress: Any) -> None:
        real(self, ["rank0.safetensors", "rank1.safetensors"], folder, progress)
        (folder / "something.else").touch()
        flip(folder / "rank1.safetensors")
        raise RemoteError("the line was cut")

    monkeypatch.setattr(place_folder.FolderPlace, "fetch", fails)
    with pytest.raises(RemoteError, match="the line was cut"):
        pull(str(shelf), tmp_path / "back")
    assert not (tmp_path / "back").exists()

    def notes(self: Any, names: Any, folder: Path, progress: Any) -> None:
        fetched.extend(names)
        real(self, names, folder, progress)

    monkeypatch.setattr(place_folder.FolderPlace, "fetch", notes)
    pull(str(shelf), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(artefact)
    assert "rank1.safetensors" in fetched
    assert "rank0.safetensors" not in fetched


def test_places_that_hold_something_else(artefact: Path, tmp_path: Path, s3: Any) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for force in ([], ["--force"]):
        assert "holds other files: thesis.txt" in run("push", artefact, tmp_path / "mine", *force, code=4)
    s3.put_object(Bucket="shelf", Key="tiny/thesis.txt", Body=b"x")
    assert "holds other files" in run("push", artefact, "s3://shelf/tiny", code=4)
    s3.put_object(Bucket="shelf", Key="tiny-2/thesis.txt", Body=b"x")
    push(artefact, "s3://shelf/tiny-")  # a prefix ends at a slash
    assert "lies in the artefact itself" in run("push", artefact, artefact / "copy", code=4)


def test_a_manifest_that_leads_out_of_the_folder(artefact_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    edit_json(artefact_copy / "trtbuild.json", lambda d: d["files"].update({"../outside": "0" * 64}))
    with pytest.raises(ArtefactError, match="leads out of it"):
        pull(str(artefact_copy), tmp_path / "back")


def test_what_s3_refuses(s3: Any, artefact: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """One sentence each, with exit code 6."""
    back = tmp_path / "back"
    assert "there is no bucket nowhere" in run("pull", "s3://nowhere/tiny", "-o", back, code=6)
    assert "there is no bucket nowhere" in run("push", artefact, "s3://nowhere/tiny", code=6)
    assert "there is no artefact at s3://shelf/tiny: nothing" in run("pull", "s3://shelf/tiny", "-o", back, code=6)
    assert "names no bucket" in run("push", artefact, "s3:///tiny", code=6)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "cannot be reached" in run("push", artefact, "s3://shelf/tiny", code=6)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "no credentials for S3" in run("push", artefact, "s3://shelf/tiny", code=6)


def test_s3_without_boto3(artefact: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert "s3:// needs boto3" in run("push", artefact, "s3://shelf/one", code=6)
    assert "s3:// needs boto3" in run("pull", "s3://shelf/one", "-o", tmp_path / "out", code=6)


def test_a_full_disk_is_no_fault_of_the_source(artefact: Path, tmp_path: Path) -> None:
    """Where the copy does not fit, the output is named; where the source is gone, the source is."""
    push(artefact, str(tmp_path / "shelf"))
    size = sum(path.stat().st_size for path in artefact.iterdir())
    with disk_of(tmp_path / "small", size // 1024 + 64) as disk:
        (disk / "filler").write_bytes(bytes(size // 2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transfer, "check_disk", lambda *_: None)
            with pytest.raises(OutputError, match="the disk is full"):
                pull(str(tmp_path / "shelf"), disk / "out")
        assert [path.name for path in disk.iterdir()] == ["filler"]
        with pytest.raises(OutputError, match="the disk is full"):
            push(artefact, str(disk / "shelf"))
    name = "rank1.safetensors"
    (tmp_path / "shelf" / name).unlink()
    (tmp_path / "shelf" / name).symlink_to(tmp_path / "shelf")
    with pytest.raises(RemoteError, match=rf"{name} cannot be read: Is a directory"):
        FolderPlace(tmp_path / "shelf").fetch([name], tmp_path, silent)


def test_addresses() -> None:
    for address, said in (("ftp://a/b", "no transfer by ftp"), ("file://a/b", "three slashes")):
        with pytest.raises(RemoteError, match=said):
            place_of(address)
    with pytest.raises(HubError, match="is no hub id"):
        place_of("hf://just-a-name")


class Pushable(Handler):
    """What a push needs: a repository is made, files are asked about, and come with the commit in base64."""

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.hub.log.append(f"POST {path}")
        if path.endswith("/repos/create"):
            made = json.loads(body)
            assert made["name"] == REPO.partition("/")[2]
            assert made.get("private") is True or made.get("visibility") == "private"
            self.send(200, json.dumps({"url": f"{self.hub.url}/{REPO}"}).encode(), {}, True)
        elif "/preupload/" in path:
            asked = [file["path"] for file in json.loads(body)["files"]]
            answer = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in asked]
            self.send(200, json.dumps({"files": answer}).encode(), {}, True)
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    (self.hub.folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
                elif line["key"] == "deletedFile":
                    (self.hub.folder / value["path"]).unlink()
            answer_ = {"commitUrl": f"{self.hub.url}/{REPO}/commit/{'1' * 40}", "commitOid": "1" * 40}
            self.send(200, json.dumps({**answer_, "success": True}).encode(), {}, True)
        else:
            self.send(404, b"{}", {}, True)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "hub"
    folder.mkdir()
    found = Hub(folder)
    handler = type("OurHandler", (Pushable,), {"hub": found})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def test_the_hub(hub: Hub, artefact: Path, other: Path, tmp_path: Path) -> None:
    """One commit a push, everything in it; files that the next artefact has not are deleted by the same commit."""
    env = hub.env(tmp_path / "hf")

    def ours(*words: object) -> tuple[int, str]:
        done = trtbuild(*words, env={**env, "HF_TOKEN": "hf_test"})
        return done.returncode, done.stderr

    assert ours("push", artefact, f"hf://{REPO}")[0] == 0
    assert contents(hub.folder) == contents(artefact)
    assert sum("/commit/" in line for line in hub.log) == 1
    code, said = ours("push", other, f"hf://{REPO}")
    assert (code, "holds another artefact" in said) == (4, True), said
    code, said = ours("pull", f"hf://{REPO}", "-o", tmp_path / "back")
    assert code == 0, said
    assert contents(tmp_path / "back") == contents(artefact)
    code, said = ours("push", other, f"hf://{REPO}", "--force")
    assert code == 0, said
    assert contents(hub.folder) == contents(other)
    hub.status = 403
    code, said = ours("push", artefact, f"hf://{REPO}")
    assert (code, "HTTP 403" in said) == (6, True), said
