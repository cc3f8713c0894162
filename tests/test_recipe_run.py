"""`trtbuild run`: the real program, from a recipe to a repository, and what it does with what stands already."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_llama, trtbuild
from tests.trt import fake_environment
from trtbuild import __version__
from trtbuild.cli.stage_commands import serve_command, stage_command
from trtbuild.manifest import read_manifest, sha256_file
from trtbuild.recipe.contents import Recipe, parse
from trtbuild.recipe.shelf import load, shipped_paths
from trtbuild.running import plan_run

SMOL = "smollm2-135m-instruct.int8.cpu"
TINY = """\
model: {model}
convert: {{tp_size: 2, quant: int8}}
build: {{max_batch_size: 4, max_seq_len: 64, max_num_tokens: 32}}
repo: {{preprocessing_instances: 2}}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """A tiny model with the demo model's tokenizer, and its recipe beside it."""
    folder = tmp_path_factory.mktemp("run")
    model = make_llama(folder / "model", vocab_size=49152, num_hidden_layers=2, dtype="float16")
    for pattern in ("tokenizer*", "chat_template*"):
        for path in demo_model.glob(pattern):
            shutil.copyfile(path, model / path.name)
    (folder / "recipe.yaml").write_text(TINY.format(model=model))
    return folder


@pytest.fixture(scope="module")
def made(tiny: Path) -> Path:
    """Its work directory after a first run."""
    done = run(tiny / "recipe.yaml", tiny / "work")
    assert [stage["made"] for stage in done] == [True] * 4
    return tiny / "work"


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; the repository names the place of its engine, so it is made anew in a copy."""
    return Path(shutil.copytree(made, tmp_path / "work"))


def run(recipe: object, work: Path, *options: object, code: int = 0) -> list[dict[str, Any]]:
    """Run a recipe with --json; the stages of its answer."""
    done = trtbuild("run", recipe, "-o", work, "--json", *options)
    assert done.returncode == code, done.stderr
    stages: list[dict[str, Any]] = json.loads(done.stdout)["stages"] if done.stdout else []
    return stages


def made_by(stages: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Stage -> why it was made, of those that were."""
    return {stage["stage"]: stage["because"] for stage in stages if stage["made"] and stage["stage"] != "plan"}


def test_the_demo_recipe_runs_from_model_to_repository(demo_model: Path, tmp_path: Path) -> None:
    """Without verify, which takes a minute for this model; the tiny one is verified below."""
    sets = ("--set", f"model={demo_model}", "--set", "verify=null")
    stages = run(SMOL, tmp_path / "w", *sets)
    assert [stage["stage"] for stage in stages] == ["plan", "checkpoint", "engine", "repo"]
    kinds = ["checkpoint", "engine", "repository"]
    assert [read_manifest(tmp_path / "w" / stage["stage"])["kind"] for stage in stages[1:]] == kinds
    config = json.loads((tmp_path / "w" / "engine" / "config.json").read_text())
    assert config["build_config"]["max_seq_len"] == load(SMOL).build.max_seq_len
    assert config["pretrained_config"]["quantization"]["quant_algo"] == "W8A16"
    again = run(SMOL, tmp_path / "w", *sets)
    assert not made_by(again)
    assert sum(stage["seconds"] for stage in again) < 1


def test_the_recipe_that_ran_is_kept_and_runs_again(made: Path, tiny: Path) -> None:
    kept = parse((made / "recipe.yaml").read_text())
    assert kept == load(str(tiny / "recipe.yaml"))
    assert not made_by(run(made / "recipe.yaml", made))


def test_only_what_an_option_changes_is_made_anew(work: Path, tiny: Path) -> None:
    before = sha256_file(work / "checkpoint" / "trtbuild.json")
    because = made_by(run(tiny / "recipe.yaml", work, "--set", "build.max_batch_size=3", "--until", "engine"))
    assert because == {"engine": "build.max_batch_size 4 -> 3"}
    assert sha256_file(work / "checkpoint" / "trtbuild.json") == before
    assert json.loads((work / "engine" / "config.json").read_text())["build_config"]["max_batch_size"] == 3
    because = made_by(run(tiny / "recipe.yaml", work, "--set", "build.max_batch_size=3"))
    assert set(because) == {"repo"}


def why(recipe: Path, work: Path, *sets: str) -> dict[str, str]:
    """Stage -> why a run would make it, of those that do not stand."""
    steps = plan_run(load(str(recipe), sets), work).steps[1:]
    return {step.stage: step.because for step in steps if not step.stands}


def test_what_was_changed_or_lost_is_made_anew(work: Path, tiny: Path) -> None:
    recipe = tiny / "recipe.yaml"
    shutil.rmtree(work / "repo")
    assert why(recipe, work) == {"repo": "it is not there"}
    (work / "engine" / "rank1.engine").unlink()
    assert why(recipe, work)["engine"] == "rank1.engine is gone"
    with (work / "engine" / "trtbuild.json").open("a") as handle:
        handle.write("\n")
    assert why(recipe, work)["engine"] == "its trtbuild.json was changed"
    later = {"engine": "checkpoint is made anew", "repo": "checkpoint is made anew"}
    seed = why(recipe, work, "calibration.seed=5")
    assert seed == {"checkpoint": "calibration.seed 1234 -> 5", **later}
    state = json.loads((work / "run.json").read_text())
    state["stages"]["checkpoint"]["request"]["versions"]["trtbuild"] = "0.0.1"
    (work / "run.json").write_text(json.dumps(state))
    assert why(recipe, work)["checkpoint"] == f"versions.trtbuild 0.0.1 -> {__version__}"
    (work / "run.json").write_text("{")
    assert why(recipe, work) == {"checkpoint": "it was not finished", **later}
    assert made_by(run(recipe, work, "--until", "checkpoint")) == {"checkpoint": "it was not finished"}
    assert "checkpoint" not in why(recipe, work)


def test_a_model_that_changed_is_converted_anew(tiny: Path, made: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny / "model", tmp_path / "model"))
    run(tiny / "recipe.yaml", tmp_path / "w", "--set", f"model={model}", "--until", "checkpoint")
    assert "checkpoint" not in why(tiny / "recipe.yaml", tmp_path / "w", f"model={model}")
    os.utime(model / "model.safetensors", (1, 1))
    because = why(tiny / "recipe.yaml", tmp_path / "w", f"model={model}")["checkpoint"]
    assert because.startswith("source.files.model.safetensors")


def test_a_dry_run_says_everything_and_writes_nothing(tiny: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "w"
    dry = json.loads(trtbuild("run", tiny / "recipe.yaml", "-o", out, "--dry-run", "--json").stdout)
    assert not out.exists()
    assert [stage["stage"] for stage in dry["stages"]] == ["plan", "checkpoint", "engine", "repo"]
    for stage in dry["stages"][1:]:
        assert not stage["stands"]
        for name, size in stage["files"].items():
            file = made / stage["stage"] / name
            assert file.is_file(), file
            # Bytes of the tensors; a safetensors file has its header too.
            assert size is None or size < file.stat().st_size < size + 10_000
    standing = json.loads(trtbuild("run", tiny / "recipe.yaml", "-o", made, "--dry-run", "--json").stdout)
    assert all(stage["stands"] for stage in standing["stages"][1:])
    text = trtbuild("run", tiny / "recipe.yaml", "-o", made, "--dry-run", "--set", "build.max_batch_size=2").stdout
    assert "checkpoint: stands already" in text
    assert "engine: to do: build.max_batch_size 4 -> 2" in text
    assert "repo: to do: engine is made anew" in text
    assert f"{made}/checkpoint/rank1.safetensors" in text


def test_the_commands_of_a_dry_run_do_the_same(tiny: Path, made: Path, work: Path) -> None:
    shutil.rmtree(work / "checkpoint")
    shutil.rmtree(work / "repo")
    dry = json.loads(trtbuild("run", tiny / "recipe.yaml", "-o", work, "--dry-run", "--json").stdout)
    for stage in dry["stages"]:
        if stage["stage"] != "engine":  # that one is there; its flags are read back below
            done = trtbuild(*stage["command"][1:])
            assert done.returncode == 0, done.stderr
    ours, theirs = (read_manifest(place / "checkpoint")["files"] for place in (made, work))
    assert ours == theirs
    assert read_manifest(made / "repo")["options"] == read_manifest(work / "repo")["options"]


def parsed(argv: list[str]) -> dict[str, Any]:
    """A command's parameters as the real command line reads them."""
    import typer.main

    from trtbuild.cli.app import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands[argv[1]].make_context(argv[1], argv[2:]).params)


@pytest.mark.parametrize("name", sorted(shipped_paths()))
def test_commands_of_shipped_recipes_are_read_back_by_the_command_line(name: str) -> None:
    from trtbuild.cli.options import convert_options

    recipe = load(name)
    for stage in ("plan", "checkpoint"):
        command = stage_command(stage, recipe, Path("work"))
        assert command is not None
        given = parsed(command)
        names = ("tp", "pp", "dtype", "quant", "target", "parallel_embedding", "embedding_dim", "embedding_sharing")
        names += ("moe_tp", "moe_ep", "group_size", "kv_cache", "sm", "quant_layer")
        assert convert_options(*(given[key] for key in names)) == recipe.options
        assert given["model"] == recipe.model
    engine = stage_command("engine", recipe, Path("work")) if recipe.target != "llmapi" else None
    if engine is not None:
        given = parsed(engine)
        assert given["model"] == "work/checkpoint"
        assert given["target"] == recipe.target
        assert (given["max_batch_size"], given["max_seq_len"]) == (
            recipe.build.max_batch_size,
            recipe.build.max_seq_len,
        )
    ports = parsed(serve_command(recipe, Path("work")))
    assert ports["http_port"] == recipe.serve.http_port


def test_what_no_flag_says_is_left_to_the_run() -> None:
    recipe = parse("model: x\nrepo: {max_queue_size: 3}\nserve: {http_port: 9000}\nverify: {one_rank: false}\n")
    assert stage_command("repo", recipe, Path("w")) is None
    assert serve_command(recipe, Path("w")) == ["trtbuild", "serve", "w/repo", "--http-port", "9000"]
    assert stage_command("verify", recipe, Path("w")) == shlex.split(
        "trtbuild verify w/checkpoint --against x --no-tp1"
    )
    recipe = parse("model: a/b\nverify: {gates: {min_top1: 0.9, max_kl: null}}\nrevision: v1\n")
    words = stage_command("verify", recipe, Path("w"))
    assert words == shlex.split("trtbuild verify w/checkpoint --against a/b --revision v1 --min-top1 0.9")


def test_flags_of_calibration_and_mixed_precision() -> None:
    text = "model: a/b\ncalibration: {text: /t.txt, samples: 2, length: 16, seed: 7, chat: true, search: modelopt}\n"
    layers = (
        'convert.quant_layers=[{pattern: "*.fc", method: fp8}, {pattern: "*.gate", method: int4_awq, group_size: 64}]'
    )
    command = stage_command("checkpoint", parse(text, [layers]), Path("w"))
    assert command is not None
    given = parsed(command)
    assert given["quant_layer"] == ["*.fc=fp8", "*.gate=int4_awq:64"]
    calibration = [given[f"calib{name}"] for name in ("", "_samples", "_length", "_seed", "_chat", "_search")]
    assert calibration == [Path("/t.txt"), 2, 16, 7, True, "modelopt"]


def test_options_of_the_engine_build_are_settings_of_its_command() -> None:
    from trtbuild.engine.options import BuildOptions
    from trtbuild.engine.tensorrt.settings import with_settings

    text = """\
model: a/b
target: tensorrt
build:
  max_batch_size: 8
  force_num_profiles: 2
  logits_dtype: float16
  lora_config: {lora_dir: [/a, /b], lora_target_modules: [attn_q, attn_v]}
  plugin_config: {reduce_fusion: true, tokens_per_block: 64, use_fp8_context_fmha: false}
launch: {mode: command, processes: 2, hang_s: 60}
"""
    recipe = parse(text)
    command = stage_command("engine", recipe, Path("w"))
    assert command is not None
    given = parsed(command)
    limits = BuildOptions(given["max_batch_size"], given["max_seq_len"], given["max_num_tokens"])
    assert with_settings(limits, given["settings"]) == recipe.build
    assert (given["mode"], given["processes"], given["hang"]) == ("command", 2, 60)


TENSORRT = ("--set", "target=tensorrt", "--set", "gpu={type: H100, count: 2}", "--set", "convert.quant=none")


def test_a_tensorrt_recipe_runs_to_its_repository(tiny: Path, tmp_path: Path) -> None:
    """Under the stand-in of TensorRT-LLM, on a host that says it has two GPUs of SM 90."""
    env = fake_environment(tmp_path / "cache")
    done = trtbuild("run", tiny / "recipe.yaml", "-o", tmp_path / "w", "--json", *TENSORRT, env=env)
    assert done.returncode == 0, done.stderr
    assert set(made_by(json.loads(done.stdout)["stages"])) == {"checkpoint", "engine", "repo"}
    engine = read_manifest(tmp_path / "w" / "engine")
    assert engine["options"]["max_batch_size"] == 4
    config = (tmp_path / "w" / "repo" / "tensorrt_llm" / "config.pbtxt").read_text()
    assert str(tmp_path / "w" / "engine") in config
    launch = ("--set", "launch.timeout_s=100")  # changes nothing of an engine
    done = trtbuild("run", tiny / "recipe.yaml", "-o", tmp_path / "w", "--json", *TENSORRT, *launch, env=env)
    assert not made_by(json.loads(done.stdout)["stages"])


def test_a_host_without_gpus_is_refused_before_the_conversion(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "w"
    done = trtbuild("run", tiny / "recipe.yaml", "-o", out, *TENSORRT)
    assert done.returncode == 3
    assert "this host cannot build the engine" in done.stderr
    assert not out.exists()
    wrong = ("--set", "build.plugin_config={gemm_swiglu_plugin: fp8, use_fused_mlp: false}")
    done = trtbuild("run", tiny / "recipe.yaml", "-o", out, *TENSORRT, *wrong, "--dry-run", "--json")
    assert done.returncode == 3
    assert any("use_fused_mlp" in problem for problem in json.loads(done.stdout)["problems"])
    assert json.loads(trtbuild("run", tiny / "recipe.yaml", "-o", out, *TENSORRT, "--dry-run", "--json").stdout)["gpu"]
    assert run(tiny / "recipe.yaml", out, *TENSORRT, "--until", "checkpoint")[1]["made"]


def test_a_hugging_face_checkpoint(tiny: Path, tmp_path: Path) -> None:
    sets = ("--set", "target=llmapi", "--set", "convert={quant: fp8}", "--set", "build={}")
    sets += ("--set", "calibration={samples: 2, length: 16}")
    dry = trtbuild("run", tiny / "recipe.yaml", "-o", tmp_path / "w", *sets, "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    stages = json.loads(dry.stdout)["stages"]
    assert [stage["stage"] for stage in stages] == ["plan", "checkpoint"]
    assert run(tiny / "recipe.yaml", tmp_path / "w", *sets)[1]["made"]
    for name in stages[1]["files"]:
        assert (tmp_path / "w" / "checkpoint" / name).is_file()


def test_other_directories_are_left_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = trtbuild("run", tiny / "recipe.yaml", "-o", tmp_path)
    assert done.returncode == 4
    assert "no work directory" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_one_run_at_a_time(tiny: Path, work: Path) -> None:
    handle = os.open(work, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    done = trtbuild("run", tiny / "recipe.yaml", "-o", work)
    os.close(handle)
    assert done.returncode == 4
    assert "another run" in done.stderr


def test_problems_come_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "w"
    done = trtbuild("run", tiny / "recipe.yaml", "-o", out, "--set", "convert.tp_size=3")
    assert done.returncode == 3
    assert "tp 3" in done.stderr
    done = trtbuild("run", tiny / "recipe.yaml", "-o", out, "--until", "verify")
    assert done.returncode == 3
    assert "this recipe has plan, checkpoint, engine, repo" in done.stderr
    done = trtbuild("run", tiny / "recipe.yaml", "-o", out, "--until", "bild")
    assert done.returncode == 2
    done = trtbuild("run", tiny / "recipe.yaml", "-o", out, "--set", "build.max_batch=3", "--set", "x=1")
    assert done.returncode == 3
    assert "did you mean max_batch_size?" in done.stderr
    assert "x is not known" in done.stderr
    assert not out.exists()


def test_a_gate_that_is_missed_ends_the_run(work: Path, tiny: Path) -> None:
    shutil.rmtree(work / "engine")
    options = ("--set", "verify={tokens: 16, length: 16, one_rank: false, gates: {max_kl: 0}}")
    done = trtbuild("run", tiny / "recipe.yaml", "-o", work, *options)
    assert done.returncode == 8
    assert "max_kl" in done.stderr
    assert json.loads((work / "verify" / "report.json").read_text())["ok"] is False
    assert not (work / "engine").exists()


def test_a_recipe_without_a_model_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("target: cpu\n")
    done = trtbuild("run", path, "-o", tmp_path / "w")
    assert done.returncode == 3
    assert "the recipe lacks model" in done.stderr
    assert str(path) in done.stderr
    path.write_bytes(b"\xff\xfe")
    assert "it is no UTF-8 text" in trtbuild("run", path, "-o", tmp_path / "w").stderr


def test_defaults_of_a_recipe_are_those_of_the_command_line() -> None:
    from trtbuild.cli.options import convert_options

    given = parsed(["trtbuild", "checkpoint", "x", "-o", "y"])
    recipe: Recipe = parse("model: x\n")
    assert recipe.options == convert_options(1, 1, given["dtype"], given["quant"], given["target"], sm=given["sm"])
