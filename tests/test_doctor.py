"""`trtbuild doctor` as a program, on this machine and on records of others."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines import Engines
from tests.machines import H100_IMAGE, OLD_DRIVER
from tests.test_architecture import loaded_by
from tests.tiny import trtbuild
from trtbuild.doctor.facts import Facts, dump

NO_GPU = not Path("/dev/nvidiactl").exists()


def record(path: Path, facts: Facts) -> Path:
    path.write_text(json.dumps({"schema": 1, "facts": dump(facts)}))
    return path


def failing(document: dict[str, Any]) -> dict[str, str]:
    return {row["check"]: row["remedy"] for row in document["findings"] if row["level"] == "fail"}


def test_this_machine_is_ready_for_the_cpu_target() -> None:
    done = trtbuild("doctor", "--gpus", 2, env={"HF_TOKEN": "hf_not_to_be_seen"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ready for cpu with 2 ranks: 0 to mend" in done.stderr
    assert re.search(r"ok +2 processes, mpi4py [\d.]+ with Open MPI", done.stdout)
    assert "hf_not" not in done.stdout + done.stderr


@pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")
def test_this_machine_is_not_ready_for_tensorrt_and_says_why() -> None:
    done = trtbuild("doctor", "--target", "tensorrt", "--json", env={"HF_TOKEN": "hf_not_to_be_seen"})
    assert done.returncode == 9
    document = json.loads(done.stdout)
    assert not document["ready"]
    assert set(failing(document)) == {"gpu.count", "tensorrt.llm", "tensorrt.tensorrt"}
    assert all("26.04-trtllm-python-py3" in remedy or "--gpus" in remedy for remedy in failing(document).values())
    assert document["counts"]["fail"] == 3
    assert "hf_not" not in done.stdout


def test_a_record_of_another_machine(tmp_path: Path) -> None:
    good = record(tmp_path / "good.json", H100_IMAGE)
    assert trtbuild("doctor", "--facts", good, "--target", "tensorrt", "--gpus", 8).returncode == 0
    bad = record(tmp_path / "bad.json", OLD_DRIVER)
    done = trtbuild("doctor", "--facts", bad, "--target", "tensorrt", "--gpus", 2)
    assert done.returncode == 9
    assert "fail driver 550.54.15, which serves CUDA 12.4" in done.stdout
    assert "→ Install driver 590.44.01 or newer" in done.stdout
    (tmp_path / "broken.json").write_text("{}")
    broken = trtbuild("doctor", "--facts", tmp_path / "broken.json")
    assert broken.returncode == 3
    assert "not a record of the doctor" in broken.stderr


def test_what_json_writes_facts_reads(tmp_path: Path) -> None:
    first = trtbuild("doctor", "--json")
    (tmp_path / "here.json").write_text(first.stdout)
    again = trtbuild("doctor", "--json", "--facts", tmp_path / "here.json")
    assert again.stdout == first.stdout


def test_a_cpu_engine_here(engines: Engines, tmp_path: Path) -> None:
    engine = engines.engine(engines.tiny())
    done = trtbuild("doctor", engine, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert (document["target"], document["gpus"]) == ("cpu", 1)
    artefact = document["facts"]["artefact"]
    assert artefact["kind"] == "engine"
    assert artefact["rank_bytes"] == [(engine / "rank0.engine").stat().st_size]
    copy = Path(shutil.copytree(engine, tmp_path / "copy"))
    (copy / "rank0.engine").unlink()
    here = tmp_path / "here.json"  # the same machine, without looking again
    here.write_text(done.stdout)
    assert "artefact.files" in failing(json.loads(trtbuild("doctor", copy, "--facts", here, "--json").stdout))
    other = trtbuild("doctor", engine, "--facts", here, "--target", "tensorrt", "--json")
    assert "artefact.target" in failing(json.loads(other.stdout))


def test_a_tensorrt_engine_on_a_recorded_machine(tmp_path: Path) -> None:
    """config.json as section 6.1 of the reference has it; TensorRT and SM stand in our manifest."""
    engine = tmp_path / "engine"
    engine.mkdir()
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    pretrained = {"architecture": "LlamaForCausalLM", "mapping": {"world_size": 2, "tp_size": 2}}
    config = {"version": "1.2.1", "pretrained_config": {**pretrained, "quantization": quantization}, "build_config": {}}
    (engine / "config.json").write_text(json.dumps(config))
    built = {"sm": 90, "effective": {}}  # what the ranks saw counts, not what was asked for
    manifest = {"options": {"target": "tensorrt", "sm": 80, "built": built}, "versions": {"tensorrt": "10.14.1.48"}}
    (engine / "trtbuild.json").write_text(json.dumps(manifest))
    for rank in range(2):
        (engine / f"rank{rank}.engine").write_bytes(bytes(1000))
    (engine / "rank0_managed_weights.safetensors").write_bytes(bytes(234))
    right = record(tmp_path / "h100.json", H100_IMAGE)
    done = trtbuild("doctor", engine, "--facts", right, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert (document["target"], document["gpus"]) == ("tensorrt", 2)
    assert document["facts"]["artefact"]["rank_bytes"] == [1234, 1000]
    wrong = record(tmp_path / "a100.json", replace(H100_IMAGE, driver=OLD_DRIVER.driver))
    bad = failing(json.loads(trtbuild("doctor", engine, "--facts", wrong, "--json").stdout))
    assert {"artefact.sm", "artefact.quantization"} <= set(bad)
    assert "--sm 80" in bad["artefact.sm"]
    repository = tmp_path / "repo" / "tensorrt_llm"
    repository.mkdir(parents=True)
    text = (
        f'parameters {{ key: "gpt_model_path" value {{ string_value: "{engine}" }} }}\nbackend: "${{triton_backend}}"'
    )
    (repository / "config.pbtxt").write_text(text)
    found = json.loads(trtbuild("doctor", repository.parent, "--facts", right, "--json").stdout)
    assert found["facts"]["artefact"]["world_size"] == 2
    assert "artefact.files" in failing(found)  # ${triton_backend} was left


def test_usage() -> None:
    assert trtbuild("doctor", "--target", "tpu").returncode == 2
    assert trtbuild("doctor", "--gpus", 0).returncode == 2


def test_the_doctor_loads_nothing_heavy() -> None:
    run = """
import io
from contextlib import redirect_stdout
from typer.testing import CliRunner
from trtbuild.cli.app import app
assert CliRunner().invoke(app, ["doctor", "--json"]).exit_code == 0
"""
    assert not loaded_by(run) & {"torch", "transformers", "numpy", "tritonclient", "safetensors", "mpi4py", "tensorrt"}


def test_a_wrong_path_is_a_usage_fault_and_no_machine_s(tmp_path: Path) -> None:
    """As `trtbuild inspect` does: 9 says that the machine is not ready."""
    for path in (tmp_path / "nothing", record(tmp_path / "file", H100_IMAGE)):
        done = trtbuild("doctor", path)
        assert done.returncode == 3
        assert "there is no such folder" in done.stderr
