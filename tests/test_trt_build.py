"""`trtbuild engine --target tensorrt` against the stand-in, under real mpirun: builds, failures, hangs, resume."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.encoders import CASES, make_model
from tests.test_engine_errors import wait_for
from tests.tiny import load_rank, make_llama, trtbuild
from tests.trt import FAKES, LIMITS, build, rank_files
from tests.worded import add_tokenizer, text_of
from trtbuild.cache.stage import DOCUMENTS
from trtbuild.engine.options import BuildOptions, LaunchOptions, LoraOptions, PluginOptions
from trtbuild.engine.tensorrt.outputs import check_outputs
from trtbuild.errors import CheckpointError, EngineError, PlanError, ToolError
from trtbuild.mpi import find_mpirun
from trtbuild.pipeline import make_checkpoint, make_engine, plan_engine
from trtbuild.repo.info import read_engine_facts
from trtbuild.spec import CalibrationOptions, ConvertOptions, LayerMethod

Patch = pytest.MonkeyPatch


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def manifest(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((folder / "trtbuild.json").read_text())
    return made


@pytest.mark.parametrize("mode", ["in-process", "command"])
def test_two_ranks_under_mpirun(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch, mode: Any) -> None:
    """Rank files of the right weights, the effective values recorded, hashes, nothing else left."""
    out = tmp_path / "out"
    build(trt_checkpoint, out, LaunchOptions(mode=mode, log_dir=tmp_path / "logs"))
    whole = sorted(["config.json", "rank0.engine", "rank1.engine", *DOCUMENTS])
    assert sorted(path.name for path in out.iterdir()) == whole
    for rank in range(2):
        made = json.loads((out / f"rank{rank}.engine").read_text())
        weights = (trt_checkpoint / f"rank{rank}.safetensors").read_bytes()
        assert made["weights"] == hashlib.sha256(weights).hexdigest()
        assert f"loaded rank {rank} " in (tmp_path / "logs" / f"rank{rank}.log").read_text()
    config, record = json.loads((out / "config.json").read_text()), manifest(out)
    assert config["build_config"]["max_seq_len"] == 128
    assert config["build_config"]["plugin_config"]["paged_state"] is False
    built = record["options"]["built"]
    assert built["effective"]["plugin_config"] == config["build_config"]["plugin_config"]
    assert (built["sm"], built["gpu"], record["options"]["target"]) == (90, "Stand-in GPU", "tensorrt")
    assert (record["versions"]["tensorrt_llm"], record["versions"]["tensorrt"]) == ("1.2.1", "10.14.1.48")
    for name, digest in record["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    facts = read_engine_facts(out)  # what the repository is made from
    assert (facts.target, facts.world_size, facts.max_batch_size) == ("tensorrt", 2, 8)
    wait_for(lambda: not processes_of(tmp_path))


def test_one_process_builds_both_ranks_on_the_only_gpu(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    stand_in.setenv("TRTBUILD_FAKE_GPUS", "1")
    out = build(trt_checkpoint, tmp_path / "out", LaunchOptions(log_dir=tmp_path / "logs"))
    assert rank_files(out) == ["rank0.engine", "rank1.engine"]
    assert [p.name for p in sorted((tmp_path / "logs").iterdir())] == [
        *("launcher.log", "process0.log", "rank0.log", "rank1.log"),
    ]


def test_a_model_is_converted_first(llama_folder: Path, tmp_path: Path, stand_in: Patch) -> None:
    """The whole command line: warnings before the build, and a checkpoint that is not left behind."""
    words = ["engine", llama_folder, "-o", tmp_path / "out", "--target", "tensorrt", "--pp", "2", "--kv-cache", "none"]
    done = trtbuild(*words, "--set", "gemm_plugin=auto", "--set", "reduce_fusion=true", "--max-batch-size", "8")
    assert done.returncode == 0, done.stderr
    assert "warning: reduce_fusion true will become false: there is no all-reduce with tp 1" in done.stderr
    assert done.stderr.strip().endswith(f"engine of 2 rank(s) in {tmp_path / 'out'}")
    made = json.loads((tmp_path / "out" / "config.json").read_text())["build_config"]
    assert made["plugin_config"]["gemm_plugin"] == "auto"
    assert made["max_seq_len"] == 512
    assert [path.name for path in tmp_path.glob(".*")] == []
    source = manifest(tmp_path / "out")
    assert source["options"]["pp_size"] == 2
    assert source["source"]


def test_slurm_and_a_hostfile(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    """srun is taken inside an allocation; a hostfile's slots are kept to, and too few of them are explained."""
    stand_in.setenv("PATH", os.pathsep.join([str(FAKES / "slurm"), os.environ["PATH"]]))
    stand_in.setenv("SLURM_JOB_ID", "1")
    stand_in.setenv("TRTBUILD_FAKE_MPIRUN", find_mpirun())
    assert rank_files(build(trt_checkpoint, tmp_path / "slurm")) == ["rank0.engine", "rank1.engine"]
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    build(trt_checkpoint, tmp_path / "hosts.out", LaunchOptions(hostfile=hosts))
    hosts.write_text("localhost slots=1\n")
    with pytest.raises(ToolError, match="fewer slots than the 2 processes") as caught:
        build(trt_checkpoint, tmp_path / "more", LaunchOptions(hostfile=hosts))
    assert "slots=GPUS" in caught.value.hint


@pytest.mark.parametrize(
    ("fault", "mode", "said", "advice"),
    [
        (
            "gpu-memory:1",
            "in-process",
            r"rank 1: the GPU's memory is used up \(a request of 1207959552",
            "max_num_tokens",
        ),
        ("gpu-memory-tactics:0", "command", r"rank 0: no kernel .* \(asked 157500MB, free 40339MB\)", "max_num_tokens"),
        ("host-memory:1", "in-process", r"rank 1: .*killed.*\(signal 9", "--processes"),
        ("segv:1", "in-process", r"rank 1: it crashed \(SIGSEGV\)", "one container"),
        ("unsupported-layer:1", "command", r"rank 1: TensorRT has no kernel for node \{ForeignNode", "gemm_plugin"),
        ("architecture", "command", r"does not know the architecture LlamaForCausalLM", "show families"),
        ("disk-full:0", "in-process", r"rank 0: the disk is full", "Make room"),
        ("missing-file:1", "in-process", r"rank 1: .*wrote no rank1.engine", "log"),
        ("missing-file:1", "command", r"output is not whole:\n  - rank1.engine is missing", "Nothing was published"),
        ("no-config", "command", r"output is not whole:\n  - config.json is missing", "Nothing was published"),
    ],
)
def test_failures(
    trt_checkpoint: Path, tmp_path: Path, stand_in: Patch, fault: str, mode: Any, said: str, advice: str
) -> None:
    """Each known way to fail: the rank, one sentence, a remedy, no engine, no process."""
    stand_in.setenv("TRTBUILD_FAKE_FAULT", fault)
    launcher: Any = "none" if advice in ("Make room", "Nothing was published", "show families") else "auto"
    with pytest.raises(ToolError) as caught:
        build(trt_checkpoint, tmp_path / "out", LaunchOptions(mode=mode, launcher=launcher))
    assert re.search(said, caught.value.message), caught.value.message
    assert advice in caught.value.hint
    assert not (tmp_path / "out").exists()
    wait_for(lambda: not processes_of(tmp_path))


def test_the_first_rank_that_fails_ends_all(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    """trtllm-build would wait for the other rank, which takes a minute here, and then leave with exit code 0."""
    stand_in.setenv("TRTBUILD_FAKE_SECONDS", "60")
    stand_in.setenv("TRTBUILD_FAKE_FAULT", "traceback-early:1")
    start = time.monotonic()
    with pytest.raises(ToolError, match=r"rank 1: .*rank1\.safetensors"):
        build(trt_checkpoint, tmp_path / "out", LaunchOptions(mode="command"))
    assert time.monotonic() - start < 30
    wait_for(lambda: not processes_of(tmp_path))


def test_a_rank_that_hangs(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    """No line and no CPU time: found, though the other rank spins in MPI and so is busy."""
    stand_in.setenv("TRTBUILD_FAKE_FAULT", "hang:1")
    start = time.monotonic()
    with pytest.raises(ToolError, match=r"rank 1 hangs: no line in the log and no CPU time for 2 s") as caught:
        build(trt_checkpoint, tmp_path / "out", LaunchOptions(hang_s=2))
    assert time.monotonic() - start < 30
    assert any("GraphReduction" in line for line in caught.value.log_tail)
    wait_for(lambda: not processes_of(tmp_path))


def test_a_rank_that_works_in_silence_is_no_hang_but_time_is_limited(
    trt_checkpoint: Path, tmp_path: Path, stand_in: Patch
) -> None:
    stand_in.setenv("TRTBUILD_FAKE_FAULT", "spin:0")
    with pytest.raises(ToolError, match=r"not done after 5 s; rank 0 is built by TensorRT"):
        build(trt_checkpoint, tmp_path / "out", LaunchOptions(hang_s=1.5, timeout_s=5, launcher="none"))
    wait_for(lambda: not processes_of(tmp_path))


def test_finished_ranks_are_not_built_again(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    """Rank 1 fails once; the next run builds it alone. A damaged rank 0, or other options, are noticed."""
    out, partial, logs = tmp_path / "out", tmp_path / ".out.partial", tmp_path / "logs"
    launch = LaunchOptions(log_dir=logs, processes=1)  # rank 0 is done before rank 1 begins
    stand_in.setenv("TRTBUILD_FAKE_FAULT", "host-memory:1")
    with pytest.raises(ToolError) as caught:
        build(trt_checkpoint, out, launch)
    assert "Of 2 ranks, 0 are finished" in caught.value.hint
    before = (partial / "rank0.engine").stat().st_mtime_ns
    (partial / "rank0.engine").write_bytes(b"bits rot")
    with pytest.raises(ToolError):
        build(trt_checkpoint, out, launch)
    assert (partial / "rank0.engine").stat().st_mtime_ns != before
    again = (partial / "rank0.engine").stat().st_mtime_ns
    with pytest.raises(ToolError):  # other options: another engine
        build(trt_checkpoint, out, launch, BuildOptions(4, 128, 512))
    with pytest.raises(ToolError):
        build(trt_checkpoint, out, launch)
    assert (partial / "rank0.engine").stat().st_mtime_ns != again
    again = (partial / "rank0.engine").stat().st_mtime_ns
    stand_in.delenv("TRTBUILD_FAKE_FAULT")
    build(trt_checkpoint, out, launch)
    assert (out / "rank0.engine").stat().st_mtime_ns == again
    assert not (logs / "rank0.log").exists()
    assert not partial.exists()
    assert json.loads((out / "config.json").read_text())["build_config"]["max_batch_size"] == 8


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_interrupted_and_run_again(
    llama_folder: Path, tmp_path: Path, stand_in: Patch, end: signal.Signals, code: int
) -> None:
    """However trtbuild ends, its ranks do; nothing looks finished, and the same command goes on from the checkpoint."""
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    words = ["engine", str(llama_folder), "-o", str(out), "--target", "tensorrt", "--tp", "2"]
    program = "import signal; signal.signal(2, signal.default_int_handler)\nfrom trtbuild.cli.app import main; main()"
    environment = {**os.environ, "TRTBUILD_FAKE_FAULT": "hang:1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log = partial / ".build" / "logs" / "rank1.log"
    wait_for(lambda: log.exists() and "GraphReduction" in log.read_text())
    wait_for(lambda: (partial / ".build" / "done" / "rank0.json").exists())
    process.send_signal(end)
    assert process.wait(30) == code
    wait_for(lambda: not processes_of(tmp_path))
    assert not out.exists()
    checkpoint = partial / ".build" / "checkpoint" / "rank0.safetensors"
    inode, engine = checkpoint.stat().st_ino, (partial / "rank0.engine").stat().st_ino
    if end != signal.SIGTERM:
        return  # what they leave is the same
    stand_in.setenv("TRTBUILD_FAKE_FAULT", "exit:1")
    assert trtbuild(*words).returncode == 5
    assert checkpoint.stat().st_ino == inode
    stand_in.delenv("TRTBUILD_FAKE_FAULT")
    assert trtbuild(*words).returncode == 0
    assert (out / "rank0.engine").stat().st_ino == engine


def test_the_dry_run_says_all_and_does_nothing(llama_folder: Path, tmp_path: Path, stand_in: Patch) -> None:
    words = ["engine", llama_folder, "-o", tmp_path / "out", "--target", "tensorrt", "--tp", "2", "--dry-run"]
    plan = json.loads(trtbuild(*words, "--json", "--set", "use_fp8_context_fmha=true").stdout)
    (made,) = plan["builds"]
    assert made["argv"][:2] == [find_mpirun(), "--allow-run-as-root"] or os.geteuid()
    assert made["build_config"]["max_batch_size"] == 2048
    assert made["effective"]["max_seq_len"] == 512
    assert made["effective"]["plugin_config"]["use_fp8_context_fmha"] is False
    assert made["processes"][1]["ranks"] == [1]
    assert plan["files"] == ["config.json", "rank0.engine", "rank1.engine", *DOCUMENTS]
    assert plan["host"]["sm"] == 90
    assert plan["obstacles"] == []
    assert plan["converts"] == str(llama_folder)
    words += ["--mode", "command", "--set", "fast_build=true"]
    shown = trtbuild(*words)
    assert "trtllm-build --checkpoint_dir" in shown.stdout
    assert "--fast_build" in shown.stdout
    assert "rank1_managed_weights.safetensors" in shown.stdout
    assert "max_seq_len unset -> 512" in shown.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_dry_run_needs_no_gpu_and_no_tensorrt_llm(llama_folder: Path, tmp_path: Path) -> None:
    """What is missing here is said; the build itself refuses for it before it converts anything."""
    env = {"PATH": "/usr/bin:/bin"}
    words = ["engine", llama_folder, "-o", tmp_path / "out", "--target", "tensorrt"]
    shown = trtbuild(*words, "--dry-run", env=env)
    assert shown.returncode == 0, shown.stderr
    assert "not on this host: no GPU (nvidia-smi is not there)" in shown.stderr
    assert "not on this host: tensorrt_llm is not installed" in shown.stderr
    refused = trtbuild(*words, env=env)
    assert refused.returncode == 3
    assert "this host cannot build the engine:\n  - no GPU" in refused.stderr
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_made_elsewhere_is_checked_first(checkpoint_copy: Path, tmp_path: Path, stand_in: Patch) -> None:
    (checkpoint_copy / "trtbuild.json").unlink()
    build(checkpoint_copy, tmp_path / "fine", LaunchOptions(launcher="none"))
    from safetensors.torch import save_file

    path = checkpoint_copy / "rank1.safetensors"
    tensors = load_rank(path)
    name = next(name for name in tensors if name.endswith("attention.qkv.weight"))
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="tensor-shape"):
        build(checkpoint_copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_gpu_generation_and_mixed_gpus(
    checkpoint_copy: Path, tmp_path: Path, stand_in: Patch
) -> None:
    config = json.loads((checkpoint_copy / "config.json").read_text())
    (checkpoint_copy / "config.json").write_text(json.dumps({**config, "trtbuild_sm": 80}))
    source = (str(checkpoint_copy), ConvertOptions(target="tensorrt"))
    with pytest.raises(PlanError, match="laid out for SM 80; convert it again with --sm 90"):
        plan_engine(*source, LIMITS, LaunchOptions())
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, GPU-a, A, 8.0'\necho '1, GPU-b, B, 9.0'\n")
    program.chmod(0o755)
    stand_in.setenv("PATH", os.pathsep.join([str(program.parent), os.environ["PATH"]]))
    with pytest.raises(EngineError, match="SM 80 and 90: an engine is for one kind"):
        plan_engine(*source, LIMITS, LaunchOptions())
    stand_in.setenv("CUDA_VISIBLE_DEVICES", "0")
    plan = plan_engine(*source, LIMITS, LaunchOptions())
    assert plan.host.sm == 80


def test_a_mixture_keeps_its_table(tmp_path: Path, stand_in: Patch) -> None:
    folder = add_tokenizer(make_llama(tmp_path / "m", hidden_size=128, intermediate_size=256, num_hidden_layers=1))
    options = ConvertOptions(1, 1, "float16", "fp8", "tensorrt", quant_layers=(LayerMethod("*.mlp.*", "none"),))
    text = tmp_path / "words.txt"
    text.write_text(text_of(range(3, 103)))
    calibration = CalibrationOptions(text, 2, 16)
    checkpoint = make_checkpoint(str(folder), tmp_path / "checkpoint", options, calibration=calibration)
    out = build(checkpoint, tmp_path / "out", LaunchOptions(launcher="none"))
    table = json.loads((out / "quant_cfg.json").read_text())["quantized_layers"]
    assert {entry["quant_algo"] for entry in table.values()} == {"FP8", None}
    assert "quantized_layers" not in json.loads((out / "config.json").read_text())["pretrained_config"]["quantization"]


def test_an_unlike_engine_is_noticed(tmp_path: Path) -> None:
    """What TensorRT-LLM saved is what holds; where it is not what was predicted, it is said."""
    for rank in range(2):
        (tmp_path / f"rank{rank}.engine").write_bytes(b"x")
    saved = {
        "max_batch_size": 4,
        "kv_cache_type": "PAGED",
        "plugin_config": {"gemm_plugin": "float16", "dtype": "float16"},
    }
    document = {"version": "1.1.0", "pretrained_config": {"mapping": {"world_size": 2}}, "build_config": saved}
    (tmp_path / "config.json").write_text(json.dumps(document))
    expected = {"max_batch_size": 8, "kv_cache_type": "paged", "plugin_config": {"gemm_plugin": "auto"}}
    built = check_outputs(tmp_path, 2, expected, {}, {})
    assert [warning.split(",")[0] for warning in built.warnings] == [
        "the engine is of TensorRT-LLM 1.1.0",
        "TensorRT-LLM saved max_batch_size 4",
    ]
    (tmp_path / "rank1.engine").write_bytes(b"")
    with pytest.raises(ToolError, match=r"rank1\.engine is empty"):
        check_outputs(tmp_path, 2, expected, {"quantization": {"quant_algo": None}}, {})


def test_options_of_the_gpu_build_are_refused_for_cpu(llama_folder: Path, tmp_path: Path) -> None:
    words = ["engine", llama_folder, "-o", tmp_path / "out"]
    assert trtbuild(*words, "--set", "gemm_plugin=auto").returncode == 3
    assert trtbuild(*words, "--mode", "command").returncode == 2
    assert trtbuild(*words, "--dry-run").returncode == 2
    done = trtbuild(*words, "--set", "multi_block_mode=true")
    assert done.returncode == 3
    assert "multi_block_mode: a setting of the runtime since 0.13" in done.stderr


def test_a_recipe_builds_it(llama_folder: Path, tmp_path: Path, stand_in: Patch) -> None:
    """Its build section has all options by their names; without a GPU it ends before anything is made."""
    recipe = tmp_path / "r.yaml"
    build_section = "  max_batch_size: 4\n  plugin_config:\n    gemm_plugin: auto\n    reduce_fusion: true\n"
    recipe.write_text(f"model: {llama_folder}\ntarget: tensorrt\nconvert:\n  tp_size: 2\nbuild:\n{build_section}")
    words = ["run", recipe, "-o", tmp_path / "w", "--until", "engine"]
    refused = trtbuild(*words, env={"PATH": "/usr/bin:/bin"})
    assert refused.returncode == 3
    assert "no GPU" in refused.stderr
    assert not (tmp_path / "w").exists()
    done = trtbuild(*words)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "w" / "engine" / "config.json").read_text())["build_config"]
    assert made["max_batch_size"] == 4
    assert made["plugin_config"]["gemm_plugin"] == "auto"
    assert made["plugin_config"]["reduce_fusion"] is True
    unknown = trtbuild(*words, "--set", "build.plugin_config.gemm_plugins=auto")
    assert "did you mean" in unknown.stderr


def test_an_encoder_and_its_decoder(tmp_path: Path, stand_in: Patch) -> None:
    """Two engines in two folders, with the lengths that each of them needs (engine-build 4.1)."""
    source = make_model(CASES["t5"], tmp_path / "t5")
    limits = BuildOptions(4, 64, 512, max_encoder_input_len=32)
    launch = LaunchOptions(launcher="none", log_dir=tmp_path / "logs")
    out = make_engine(
        str(source), tmp_path / "out", ConvertOptions(dtype="float16", target="tensorrt"), limits, launch=launch
    )
    encoder, decoder = (json.loads((out / half / "config.json").read_text()) for half in ("encoder", "decoder"))
    assert encoder["pretrained_config"]["architecture"] == "EncoderModel"
    assert [encoder["build_config"][name] for name in ("max_input_len", "max_seq_len")] == [32, 32]
    assert [decoder["build_config"][name] for name in ("max_input_len", "max_seq_len")] == [1, 64]
    assert set(manifest(out)["options"]["built"]) == {"encoder", "decoder"}
    assert "decoder/rank0.engine" in manifest(out)["files"]
    assert (tmp_path / "logs" / "encoder" / "rank0.log").exists()
    assert not list(out.glob("*/.build"))


def test_adapters_go_with_the_engine(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    limits = BuildOptions(
        8, 128, 512, lora_config=LoraOptions((adapter,)), plugin_config=PluginOptions(lora_plugin="auto")
    )
    for mode in ("in-process", "command"):
        out = make_engine(
            str(trt_checkpoint),
            tmp_path / mode,
            ConvertOptions(target="tensorrt"),
            limits,
            launch=LaunchOptions(mode=mode, processes=1),
        )
        assert (out / "lora/0/adapter_model.safetensors").read_bytes() == b"x"
        assert json.loads((out / "config.json").read_text())["build_config"]["lora_config"]["lora_dir"] == ["lora/0"]
