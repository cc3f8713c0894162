"""examples/ci: valid by the vendors' schemas, the two say the same, and their CPU part is executed as it stands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tests.serve_fixture import LONGEST, VOCAB, demo_tokenizer, free_ports, with_command
from tests.tiny import ROOT, make_llama
from trtbuild.cli.app import app
from trtbuild.text.tokenizer import TOKENIZER_FILES

FOLDER = ROOT / "examples" / "ci"
SCHEMAS = {"github-actions.yml": "vendor.github-workflows", "gitlab-ci.yml": "vendor.gitlab-ci"}


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def github_steps(job: str) -> list[str]:
    """What the steps of a job run, without the installation."""
    return [
        s["run"] for s in read("github-actions.yml")["jobs"][job]["steps"] if "run" in s and s.get("id") != "install"
    ]


def commands(text: str) -> list[str]:
    """Lines of a script, continued ones joined."""
    return [re.sub(r"\s+", " ", line).strip() for line in text.replace("\\\n", " ").split("\n") if line.strip()]


@pytest.mark.parametrize(("name", "schema"), SCHEMAS.items())
def test_valid_by_the_vendors_schema(name: str, schema: str) -> None:
    program = Path(sys.executable).parent / "check-jsonschema"
    done = subprocess.run([program, "--builtin-schema", schema, FOLDER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("job", ["rehearse", "build"])
def test_both_examples_run_the_same(job: str) -> None:
    gitlab = "\n".join(read("gitlab-ci.yml")[job]["script"])
    assert commands("\n".join(github_steps(job))) == commands(gitlab)
    assert read("gitlab-ci.yml")["variables"] == read("github-actions.yml")["env"]


def test_the_gpu_part_says_what_the_command_line_takes() -> None:
    """No GPU here: the options are parsed by the real command line, and docker's flags are the documented ones."""
    group = typer.main.get_command(app)
    seen = []
    for line in commands("\n".join(github_steps("build"))):
        words = shlex.split(line.replace('"$TP"', "2"))
        if words[:2] != ["docker", "run"]:
            assert words[:4] == ["docker", "build", "-f", "Dockerfile.trtllm"]
            continue
        assert {"--shm-size=2g", "memlock=-1", "stack=67108864", "--gpus"} <= set(words)
        name, *arguments = words[words.index("trtbuild") + 1 :]
        command = group.commands[name]  # type: ignore[attr-defined]
        with command.make_context(name, arguments) as context:
            assert context.params["target" if name != "repo" else "tokenizer"] in ("tensorrt", Path("model"))
        seen.append(name)
    assert seen == ["doctor", "engine", "repo"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model under the name `tiny`, with a real tokenizer."""
    folder = tmp_path_factory.mktemp("ci")
    length = {"max_position_embeddings": LONGEST}
    model = make_llama(folder / "tiny", hidden_size=128, intermediate_size=256, vocab_size=VOCAB, **length)
    for pattern in TOKENIZER_FILES:
        for file in demo_tokenizer().glob(pattern):
            shutil.copy(file, model)
    return folder


def three_free_ports() -> int:
    """The first of three ports in a row that nobody listens on."""
    for first in free_ports(20):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + 3):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no three free ports in a row")


def test_the_cpu_part_runs_as_written(work: Path) -> None:
    """Every step in a shell of its own, as the runner starts it; variables say that the model is small."""
    grpc = three_free_ports()
    variables = {**read("github-actions.yml")["env"], "MODEL": "tiny", "PORT": str(grpc), "VERIFY_TOKENS": "64"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, **variables, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for step in github_steps("rehearse"):
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step]
        done = subprocess.run(shell, cwd=work, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
    out = work / "build"
    plan, verified = (json.loads((out / name).read_text()) for name in ("plan.json", "verify.json"))
    assert (plan["tp"], plan["quant"], plan["problems"]) == (1, "int8", [])
    assert verified["ok"]
    assert (out / "generated.txt").read_text().strip()
    assert "ready: grpc" in (out / "ready.txt").read_text()
    assert not with_command(str(out / "cpu-repo"))  # the server is gone
    # The checkpoint that is handed to the GPU runner is one for tensorrt.
    assert json.loads((out / "checkpoint" / "trtbuild.json").read_text())["options"]["target"] == "tensorrt"
