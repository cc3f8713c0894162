"""TLS, headers, loading and the shell's side of the client, against a real tritonserver that wants all of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engines import demo_folder
from tests.serve_fixture import Running, free_ports
from tests.test_openai import started
from tests.tiny import ROOT, trtbuild
from trtbuild.client import AsyncClient, Client, Generation, Reach, Retry, Tls
from trtbuild.errors import RequestError, ServerError

MODEL = "tensorrt_llm"
HEADER = {
    "triton-grpc-protocol-team": "seven"
}  # Triton's own prefix, then the name that --grpc-restricted-protocol has
ONCE = Retry(times=0)


@dataclass
class Secure:
    """A server that lets in who has a certificate of its authority, and to models only who sends the header."""

    url: str
    folder: Path

    @property
    def tls(self) -> Tls:
        return Tls(self.folder / "ca.pem", self.folder / "client.key", self.folder / "client.pem")

    @property
    def options(self) -> tuple[object, ...]:
        files = ("--ca", self.tls.root_certificates, "--client-cert", self.tls.certificate_chain)
        (header,) = [f"{name}: {value}" for name, value in HEADER.items()]
        return (*files, "--client-key", self.tls.private_key, "--header", header, "--timeout", 20)


def openssl(folder: Path, *words: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not there to make certificates")
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def certificates(folder: Path) -> None:
    """An authority, and certificates of it for server and client, for a day."""
    for name in ("ca", "server", "client"):
        openssl(folder, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{name}.key")
    subject = ("-subj", "/CN=authority", "-days", "1")
    openssl(folder, "req", "-x509", "-new", "-key", "ca.key", *subject, "-out", "ca.pem")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(folder, *f"req -new -key {name}.key -subj /CN={name} -out {name}.csr".split())
        signed = (
            f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile names -out {name}.pem"
        )
        openssl(folder, *signed.split())


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """tritonserver itself, as `trtbuild serve` has no TLS; explicit model control; a llmapi model with a stand-in."""
    from trtbuild.repo.llmapi import LlmapiOptions, write_llmapi_repository
    from trtbuild.serve.install import find_triton

    folder = tmp_path_factory.mktemp("secure")
    certificates(folder)
    write_llmapi_repository(demo_folder(), folder / "repo", LlmapiOptions())
    stand_in = ROOT / "tests" / "fakes" / "llmapi" / "tensorrt_llm"
    shutil.copytree(stand_in, folder / "repo" / MODEL / "1" / "tensorrt_llm")
    triton, (grpc,) = find_triton(folder / "triton"), free_ports(1)
    protocols = "inference,model-repository,model-config,metadata,statistics"
    words = [triton.binary, f"--model-repository={folder / 'repo'}", "--disable-auto-complete-config"]
    words += [f"--grpc-port={grpc}", "--allow-http=false", "--allow-metrics=false", "--exit-timeout-secs=30"]
    words += ["--model-control-mode=explicit", f"--load-model={MODEL}"]
    words += ["--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", f"--grpc-root-cert={folder / 'ca.pem'}"]
    words += [f"--grpc-server-cert={folder / 'server.pem'}", f"--grpc-server-key={folder / 'server.key'}"]
    words += [f"--grpc-restricted-protocol={protocols}:team=seven"]
    words += [f"--backend-directory={triton.backends}"] if triton.backends else []
    paths = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, triton.library_dirs)), "PYTHONPATH": str(ROOT)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, **paths, "PATH": path}
        process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, env=environment)
    found = Secure(f"localhost:{grpc}", folder)
    try:
        wait_ready(found, process)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # its own end is not what is tested here
            process.kill()
            process.wait()


def wait_ready(server: Secure, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    with Client(server.url, reach=Reach(server.tls, HEADER)) as client:
        while time.monotonic() < end and process.poll() is None:
            try:
                if client.ready():
                    return
            except ServerError:
                time.sleep(0.1)
    raise AssertionError((server.folder / "log").read_text()[-3000:])


def test_both_clients_with_certificates_and_headers(secure: Secure) -> None:
    reach, asked = Reach(secure.tls, HEADER, timeout_s=20), Generation("abc", max_tokens=4)

    async def asynchronously() -> Any:
        async with AsyncClient(secure.url, model=MODEL, reach=reach) as client:
            assert await client.live()
            return await client.infer(asked)

    with Client(secure.url, model=MODEL, reach=reach) as client:
        answer = client.infer(asked)
    assert answer == asyncio.run(asynchronously())
    assert answer.text == "abca"


def test_who_lacks_something_is_kept_out(secure: Secure) -> None:
    others = {
        "no TLS": Reach(None, HEADER, retry=ONCE),
        "no certificate of ours": Reach(Tls(secure.folder / "ca.pem"), HEADER, retry=ONCE),
        "another authority": Reach(Tls(secure.folder / "client.pem", *_own(secure)), HEADER, retry=ONCE),
    }
    for what, reach in others.items():
        with Client(secure.url, reach=reach) as client, pytest.raises(ServerError):
            pytest.fail(f"{what}: {client.live()}")
    for headers in ({}, {"triton-grpc-protocol-team": "eight"}):
        with Client(secure.url, model=MODEL, reach=Reach(secure.tls, headers, timeout_s=20)) as client:
            assert client.live(), "that is open to all with a certificate"
            with pytest.raises(RequestError, match="This protocol is restricted"):
                client.infer(Generation("abc"))
    missing = Reach(Tls(secure.folder / "nothing.pem"))
    with Client(secure.url, reach=missing) as client, pytest.raises(ServerError, match="cannot read a certificate"):
        client.live()


def _own(secure: Secure) -> tuple[Path | None, Path | None]:
    return secure.tls.private_key, secure.tls.certificate_chain


def test_every_command_has_the_options(secure: Secure, tmp_path: Path) -> None:
    at = ("--url", secure.url, *secure.options)
    done = trtbuild("generate", "abc", "--model", MODEL, "-n", 5, *at)
    assert (done.stdout, done.returncode) == ("abcab\n", 0), done.stderr
    done = trtbuild("chat", "--model", MODEL, "--tokenizer", demo_folder(), "-n", 5, *at, input="Hi\n")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 6
    done = trtbuild("client", *secure.options, "index", "--url", secure.url)  # before the command, as well
    assert done.stdout == f"{MODEL} 1 READY\n"
    assert trtbuild("client", "index", *at).stdout == done.stdout
    words = ("bench", f"grpc://{secure.url}#{MODEL}", "--requests", 2, "--output-len", 3)
    done = trtbuild(*words, *secure.options[:-2], "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert not [path for path in (tmp_path / "run").iterdir() if b"seven" in path.read_bytes()], "headers are secrets"
    assert trtbuild(*words).returncode == 7
    port = int(secure.url.rpartition(":")[2])
    served = Running(None, tmp_path, tmp_path, 0, port, 0)  # type: ignore[arg-type]
    options = map(str, (*at, "--model", MODEL))
    process, listens = started(served, *options)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{listens}/v1", api_key="x", max_retries=0)
        assert client.completions.create(model=MODEL, prompt="abc", max_tokens=4).choices[0].text == "abca"
    finally:
        process.terminate()
        process.wait(30)
    for wrong in (("--header", "nonsense"), ("--client-cert", "x.pem")):
        assert trtbuild("generate", "x", *wrong).returncode == 2
        assert trtbuild("client", *wrong, "live").returncode == 2


def test_loading_with_another_configuration(secure: Secure, tmp_path: Path) -> None:
    """And back: after an unload config.pbtxt holds again."""
    with Client(secure.url, model=MODEL, reach=Reach(secure.tls, HEADER, timeout_s=20)) as client:
        before = client.config()
        client.load(MODEL, {**before, "parameters": {"mine": {"string_value": "7"}}})
        assert client.config()["parameters"] == {"mine": {"string_value": "7"}}
        assert client.infer(Generation("abc", max_tokens=4)).text == "abca"
        client.unload(MODEL)
        wait_for(lambda: not client.model_ready())
        with pytest.raises((RequestError, ServerError), match=MODEL):
            client.infer(Generation("abc"))
        with pytest.raises((RequestError, ServerError), match="nothing"):
            client.load("nothing")
        client.load(MODEL)
        assert client.config() == before
        assert client.infer(Generation("abc", max_tokens=4)).text == "abca"

    async def asynchronously() -> None:
        async with AsyncClient(secure.url, model=MODEL, reach=Reach(secure.tls, HEADER, timeout_s=20)) as client:
            await client.load(MODEL, {**before, "parameters": {"mine": {"string_value": "8"}}})
            assert (await client.config())["parameters"]["mine"] == {"string_value": "8"}
            await client.unload(MODEL)
            await client.load(MODEL)
            assert await client.config() == before

    asyncio.run(asynchronously())
    at = ("--url", secure.url, *secure.options)
    (tmp_path / "config.json").write_text(json.dumps({**before, "parameters": {"mine": {"string_value": "9"}}}))
    loaded = trtbuild("client", "load", MODEL, "--config", tmp_path / "config.json", *at, "--json")
    assert json.loads(loaded.stdout) == {"schema": 1, "loaded": MODEL}
    told = json.loads(trtbuild("client", "config", MODEL, *at, "--json").stdout)
    assert (told["schema"], told["config"]["parameters"]["mine"]) == (1, {"string_value": "9"})
    assert json.loads(trtbuild("client", "unload", MODEL, *at, "--json").stdout) == {"schema": 1, "unloaded": MODEL}
    assert trtbuild("client", "load", MODEL, *at).stderr == f"loaded {MODEL}\n"
    assert trtbuild("client", "load", MODEL, "--config", tmp_path / "none.json", *at).returncode == 2


def test_answers_from_a_shell(secure: Secure) -> None:
    at = ("--url", secure.url, *secure.options)
    whole = json.loads(trtbuild("client", "infer", "abc", "--model", MODEL, "-n", 6, *at, "--json").stdout)
    tokens = {"text": "abcabc", "tokens": 6, "prompt_tokens": 4, "finish_reason": "length"}
    assert whole == {"schema": 1, **tokens, "log_probs": [], "tensors": {}, "others": []}
    assert trtbuild("client", "infer", "abc", "--model", MODEL, "-n", 6, *at, "--stop", "ca").stdout == "ab\n"
    lines = trtbuild("client", "stream", "abc", "--model", MODEL, "-n", 6, *at, "--json").stdout.splitlines()
    chunks = [json.loads(each) for each in lines]
    assert "".join(chunk["text"] for chunk in chunks) == "abcabc"
    assert [chunk["final"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["finish_reason"] == "length"
    named = ("--tensor", "return_stop_reason=[true]", "--output", "stop_reason", "--stop", "ca")
    reason = json.loads(trtbuild("client", "infer", "abc", "--model", MODEL, *named, *at, "--json").stdout)
    assert reason["tensors"] == {"stop_reason": ["ca"]}
    for wrong in ("stop_reason", "x=[1", "=1"):
        assert trtbuild("client", "infer", "abc", "--tensor", wrong, *at).returncode == 2
    done = json.loads(trtbuild("generate", "abc", "--model", MODEL, "-n", 6, *at, "--json").stdout)
    assert (done["schema"], done["text"], done["tokens"], done["finish_reason"]) == (1, "abcabc", 6, "length")
    for command, key in (("metadata", "metadata"), ("statistics", "models"), ("index", "models")):
        document = json.loads(trtbuild("client", command, *at, "--json").stdout)
        assert (document["schema"], bool(document[key])) == (1, True)
    assert json.loads(trtbuild("client", "ready", MODEL, *at, "--json").stdout) == {"schema": 1, "ready": True}


def test_cancelling_from_a_shell(secure: Secure) -> None:
    at = ("--url", secure.url, *secure.options)
    lines: list[str] = []
    words = ("client", "stream", "ab", "--model", MODEL, "-n", 50_000, "--request-id", "mine")
    thread = threading.Thread(target=lambda: lines.append(trtbuild(*words, *at, process=True).stdout))
    thread.start()
    with Client(secure.url, reach=Reach(secure.tls, HEADER, timeout_s=20)) as client:
        wait_for(lambda: client.statistics(MODEL)[0]["last_inference"] > 0)
        while thread.is_alive():  # it may not have come to the model yet
            assert json.loads(trtbuild("client", "cancel", "mine", *at, "--json").stdout)["cancelled"] == "mine"
            thread.join(0.5)
    assert len(lines[0]) < 50_000
    assert trtbuild("client", "cancel", "unknown", *at).returncode == 0


def test_a_server_that_is_away() -> None:
    (dead,) = free_ports(1)
    for command in ("live", "ready"):
        done = trtbuild("client", command, "--url", f"127.0.0.1:{dead}", "--json")
        document = json.loads(done.stdout)
        assert (done.returncode, document["schema"], document[command]) == (7, 1, False)
        assert "no server at" in document["error"]


def wait_for(done: Any, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    assert done()
