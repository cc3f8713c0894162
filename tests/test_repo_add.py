"""`trtbuild repo --add`: what goes into a repository that exists, what is refused, and that errors leave no trace.

Files are read back with Triton's protobuf and compared by hashlib; the commands run in this process.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.repositories import config, files, hf_folder, manifest, run
from tests.test_repo_render import engine, tokenizer
from trtbuild.errors import EngineError, OutputError, PlanError
from trtbuild.repo.add import add_models, add_version
from trtbuild.repo.options import ROLES, RepositoryOptions
from trtbuild.repo.write import write_repository
from trtbuild.serve.look import read_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Models without a name of the cpu engine `one`; their tokenizer is `tok`."""
    write_repository(engine(tmp_path / "one"), tmp_path / "r", tokenizer(tmp_path / "tok"), RepositoryOptions())
    return tmp_path / "r"


def test_models_of_another_name(repository: Path, tmp_path: Path) -> None:
    before = files(repository)
    second = engine(tmp_path / "two")
    done = run(second, "-o", repository, "--tokenizer", tmp_path / "tok", "--add", "--name", "b", "--no-bls")
    assert done.exit_code == 0, done.output
    after = files(repository)
    assert {name: after[name] for name in before} == before, "nothing that is there is touched"
    assert {name.split("/")[0] for name in after} == {*ROLES, *(f"b_{role}" for role in ROLES[:4])}
    assert manifest(repository)["files"] == after
    chains = manifest(repository)["source"]["chains"]
    assert {name: chain["engine"] for name, chain in chains.items()} == {
        "": str(tmp_path / "one"),
        "b": str(second),
    }
    assert config(repository, "b_tensorrt_llm").parameters["gpt_model_path"].string_value == str(second)
    assert list(tmp_path.glob(".r.*")) == []


def test_a_version_has_its_own_engine_and_nothing_else_changes(repository: Path, tmp_path: Path) -> None:
    before = files(repository)
    done = run(engine(tmp_path / "two"), "-o", repository, "--add", "--model-version", 2)
    assert done.exit_code == 0, done.output
    assert "served versions: 2" in done.output
    after = files(repository)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"tensorrt_llm/2/engine.json", "tensorrt_llm/2/model.py"}
    assert json.loads((repository / "tensorrt_llm/2/engine.json").read_text()) == {
        "gpt_model_path": str(tmp_path / "two")
    }
    assert manifest(repository)["files"] == after
    chain = manifest(repository)["source"]["chains"][""]
    digest = hashlib.sha256((tmp_path / "two" / "config.json").read_bytes()).hexdigest()
    assert chain["versions"]["2"]["engine_config_sha256"] == digest


def test_the_version_policy_stays_unless_one_is_given(tmp_path: Path) -> None:
    one, tok, repository = engine(tmp_path / "one"), tokenizer(tmp_path / "tok"), tmp_path / "r"
    write_repository(one, repository, tok, RepositoryOptions(version_policy="1"))
    done = run(one, "-o", repository, "--add", "--model-version", 2)
    assert done.exit_code == 0, done.output
    assert list(config(repository, "tensorrt_llm").version_policy.specific.versions) == [1]
    assert "served versions: 1\n" in done.output
    assert "version 2 is not served" in done.output
    added = add_version(one, repository, 3, RepositoryOptions(version_policy="latest:2"))
    assert added.served == (2, 3)
    assert config(repository, "tensorrt_llm").version_policy.latest.num_versions == 2
    assert add_version(one, repository, 5, RepositoryOptions()).served == (3, 5)
    assert add_version(one, repository, 4, RepositoryOptions()).served == (4, 5)


def test_an_engine_that_is_not_served_may_be_gone(repository: Path, tmp_path: Path) -> None:
    add_version(engine(tmp_path / "two"), repository, 2, RepositoryOptions())
    (tmp_path / "one" / "config.json").unlink()
    added = add_version(engine(tmp_path / "three"), repository, 3, RepositoryOptions())
    assert added.served == (3,)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-tokens-in-kv", 4096),
        ("--max-batch-size", 2),
        ("--kv-mem-fraction", 0.5),
        ("--exclude-input-in-output", None),
        ("--no-decoupled", None),
        ("--no-bls", None),
        ("--tokenizer", "tok"),
        ("--parameter", "lora_prefetch_dir=/l"),
        ("--preprocessing-instances", 2),
        ("--instances", 2),
        ("--prompt-table-type", "BF16"),
        ("--accumulate-tokens", None),
    ],
)
def test_a_version_takes_no_options_of_the_other_models(
    repository: Path, tmp_path: Path, flag: str, value: Any
) -> None:
    second = engine(tmp_path / "two")
    before = files(repository)
    arguments = [flag] if value is None else [flag, value]
    done = run(second, "-o", repository, "--add", "--model-version", 2, *arguments)
    assert done.exit_code == 2, done.output
    assert flag.replace("--no-", "--") in done.output
    assert files(repository) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--add", "--force", "--tokenizer", "tok"), "never writes over anything"),
        (("--model-version", 2), "goes with --add"),
        (("--add", "--model-version", 1), "'--model-version'"),
        (("--add",), "--tokenizer"),
        (("--tokenizer", "tok", "--tp", 2), "--target llmapi"),
    ],
)
def test_wrong_usage(repository: Path, tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    done = run(tmp_path / "one", "-o", repository, *arguments)
    assert done.exit_code == 2, done.output
    assert words in done.output


BUILT: list[tuple[str, dict[str, Any]]] = [
    ("logits-type", {"logits_dtype": "float16"}),
    ("beam-width", {"max_beam_width": 0}),
    ("batch-above-engine", {"max_batch_size": 4}),
    ("kv-tokens", {"max_seq_len": 4096}),
    ("tokenizer has 300 tokens", {"vocab_size": 299}),
]


@pytest.mark.parametrize(("words", "changes"), BUILT, ids=[words.split()[0] for words, _ in BUILT])
def test_engines_that_one_configuration_cannot_hold(tmp_path: Path, words: str, changes: dict[str, Any]) -> None:
    first = engine(tmp_path / "one", max_beam_width=1 if words != "beam-width" else 2)
    options = RepositoryOptions(max_tokens_in_paged_kv_cache=256)
    write_repository(first, tmp_path / "r", tokenizer(tmp_path / "tok"), options)
    second = engine(tmp_path / "two")
    document = json.loads((second / "config.json").read_text())
    for key, value in changes.items():
        document["pretrained_config" if key in document["pretrained_config"] else "build_config"][key] = value
    (second / "config.json").write_text(json.dumps(document))
    before = files(tmp_path / "r")
    with pytest.raises(PlanError, match=words):
        add_version(second, tmp_path / "r", 2, RepositoryOptions())
    assert files(tmp_path / "r") == before


def test_preprocessing_leaves_the_length_to_engines_that_differ_in_it(repository: Path, tmp_path: Path) -> None:
    def longest() -> list[str]:
        parameters = config(repository, "preprocessing").parameters
        return [str(parameters[key].string_value) for key in ("max_input_len", "max_seq_len")]

    add_version(engine(tmp_path / "same"), repository, 2, RepositoryOptions())
    assert longest() == ["127", "128"]
    add_version(engine(tmp_path / "longer", max_seq_len=256, max_input_len=127), repository, 3, RepositoryOptions())
    assert longest() == ["127", "0"]
    add_version(engine(tmp_path / "both", max_seq_len=512, max_input_len=255), repository, 4, RepositoryOptions())
    assert longest() == ["0", "0"]
    assert manifest(repository)["files"] == files(repository)


def test_versions_of_tensorrt_and_of_another_target(repository: Path, tmp_path: Path) -> None:
    gpu, tok = engine(tmp_path / "gpu", target="tensorrt"), tmp_path / "tok"
    with pytest.raises(PlanError, match="are of target cpu, the engine is of tensorrt"):
        add_version(gpu, repository, 2, RepositoryOptions())
    with pytest.raises(PlanError, match="is of the cpu target, the new models are of tensorrt"):
        add_models(gpu, repository, tok, RepositoryOptions(name="b"))
    write_repository(gpu, tmp_path / "g", tok, RepositoryOptions())
    with pytest.raises(PlanError, match="one gpt_model_path for all versions"):
        add_version(gpu, tmp_path / "g", 2, RepositoryOptions())


def test_what_is_no_place_to_add_to(repository: Path, tmp_path: Path) -> None:
    one, tok = tmp_path / "one", tmp_path / "tok"
    (tmp_path / "other").mkdir()
    with pytest.raises(EngineError, match="is not a repository of `trtbuild repo`"):
        add_models(one, tmp_path / "other", tok, RepositoryOptions(name="b"))
    with pytest.raises(EngineError, match=r"no models of the name 'b'; there are \(no name\)"):
        add_version(one, repository, 2, RepositoryOptions(name="b"))
    with pytest.raises(OutputError, match=r"tensorrt_llm.* already"):
        add_models(one, repository, tok, RepositoryOptions())
    add_version(one, repository, 2, RepositoryOptions())
    with pytest.raises(OutputError, match="2 exists"):
        add_version(one, repository, 2, RepositoryOptions())
    done = run(one, "-o", repository, "--tokenizer", tok, "--add")
    assert done.exit_code == 4, done.output
    done = run(one, "-o", tmp_path / "other", "--tokenizer", tok, "--add", "--name", "b")
    assert done.exit_code == 3, done.output


def test_a_model_of_the_llm_class_beside_cpu_engines(repository: Path, tmp_path: Path) -> None:
    checkpoint = hf_folder(tmp_path / "hf")
    before = files(repository)
    taken = run(checkpoint, "-o", repository, "--target", "llmapi", "--add")
    assert taken.exit_code == 4, taken.output
    done = run(checkpoint, "-o", repository, "--target", "llmapi", "--add", "--name", "hf", "--tp", 2)
    assert done.exit_code == 0, done.output
    after = files(repository)
    assert {name: after[name] for name in before} == before
    added = {f"hf_tensorrt_llm/{name}" for name in ("config.pbtxt", "1/model.py", "1/model.yaml")}
    assert set(after) - set(before) == added
    assert manifest(repository)["files"] == after
    assert manifest(repository)["source"]["chains"]["hf"]["target"] == "llmapi"
    assert yaml.safe_load((repository / "hf_tensorrt_llm/1/model.yaml").read_text())["tensor_parallel_size"] == 2
    assert {model.kind for model in read_repository(repository).engines} == {"cpu", "llmapi"}
    version = run(tmp_path / "one", "-o", repository, "--add", "--model-version", 2, "--name", "hf")
    assert version.exit_code == 3, version.output
    assert "are of target llmapi" in version.output
    # and an engine into a repository of the LLM class
    assert run(checkpoint, "-o", tmp_path / "l", "--target", "llmapi", "--name", "hf").exit_code == 0
    done = run(tmp_path / "one", "-o", tmp_path / "l", "--tokenizer", tmp_path / "tok", "--add")
    assert done.exit_code == 0, done.output
    assert {model.kind for model in read_repository(tmp_path / "l").engines} == {"cpu", "llmapi"}


def test_a_model_of_the_llm_class_beside_tensorrt(tmp_path: Path) -> None:
    checkpoint = hf_folder(tmp_path / "hf")
    gpu = engine(tmp_path / "gpu", target="tensorrt")
    write_repository(gpu, tmp_path / "g", tokenizer(tmp_path / "tok"), RepositoryOptions())
    done = run(checkpoint, "-o", tmp_path / "g", "--target", "llmapi", "--add", "--name", "hf")
    assert done.exit_code == 3, done.output
    assert "is of the tensorrt target, the new models are of llmapi" in done.output


def _full(*_arguments: object, **_named: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["version", "models"])
def test_a_full_disk_leaves_the_repository_as_it_was(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Nothing can be written when the manifest is renamed, nor while everything is taken back."""
    second = engine(tmp_path / "two", max_seq_len=256, max_input_len=255)
    before, listed = files(repository), (repository / "trtbuild.json").read_bytes()
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target) == repository / "trtbuild.json" and not self.name.startswith("kept"):
            for writes in ((Path, "write_text"), (Path, "write_bytes"), (shutil, "copy2"), (shutil, "copyfile")):
                monkeypatch.setattr(*writes, _full)
            _full()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    add = {
        "version": lambda: add_version(second, repository, 2, RepositoryOptions(version_policy="all")),
        "models": lambda: add_models(second, repository, tmp_path / "tok", RepositoryOptions(name="b")),
    }[what]
    with pytest.raises(OutputError, match="disk is full"):
        add()
    monkeypatch.undo()
    assert files(repository) == before
    assert (repository / "trtbuild.json").read_bytes() == listed
    assert {path.name for path in repository.iterdir()} == {*ROLES, "trtbuild.json"}
    assert list(tmp_path.glob(".r.*")) == []


def test_a_rename_that_fails_takes_the_ones_before_it_back(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, before = Path.replace, files(repository)

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == "b_postprocessing":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        add_models(tmp_path / "one", repository, tmp_path / "tok", RepositoryOptions(name="b"))
    assert files(repository) == before
    assert {path.name for path in repository.iterdir()} == {*ROLES, "trtbuild.json"}


def _add(one: Path, repository: Path, version: int) -> None:
    add_version(one, repository, version, RepositoryOptions())


def test_two_that_add_at_once_wait_for_each_other(repository: Path, tmp_path: Path) -> None:
    handle = os.open(repository, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    waiting = threading.Thread(target=_add, args=(tmp_path / "one", repository, 2))
    waiting.start()
    time.sleep(0.5)
    assert waiting.is_alive()
    assert not (repository / "tensorrt_llm" / "2").exists()
    os.close(handle)
    waiting.join(30)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add, args=(tmp_path / "one", repository, version)) for version in (3, 4, 5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(manifest(repository)["source"]["chains"][""]["versions"]) == ["2", "3", "4", "5"]
    assert manifest(repository)["files"] == files(repository)
