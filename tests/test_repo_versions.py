"""Which versions of a model are served, and that check and serve look at the engines of those, and of no others."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.test_repo_render import engine, tokenizer
from trtbuild.finding import Report
from trtbuild.repo.add import add_version
from trtbuild.repo.check.run import check_repository
from trtbuild.repo.options import RepositoryOptions
from trtbuild.repo.write import write_repository
from trtbuild.serve.look import read_repository
from trtbuild.versions import served_versions


def write(folder: Path) -> Path:
    """A repository of the cpu engine `first`."""
    write_repository(engine(folder / "first"), folder / "r", tokenizer(folder / "tok"), RepositoryOptions())
    return folder / "r"


def rules(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings}


def test_engines_of_versions_that_are_not_served_may_be_gone(tmp_path: Path) -> None:
    """What the policy serves is looked at, by check and by serve alike; the rest is not."""
    repository = write(tmp_path)
    engine(tmp_path / "second")
    add_version(tmp_path / "second", repository, 2, RepositoryOptions())
    shutil.rmtree(tmp_path / "first")
    assert not check_repository(repository, read_tokenizers=False).findings
    (served,) = read_repository(repository).engines
    assert (served.kind, served.engine, served.problem) == ("cpu", tmp_path / "second", "")
    (tmp_path / "second" / "rank0.engine").unlink()
    assert rules(check_repository(repository, read_tokenizers=False)) == {"engine-missing"}
    assert "lacks rank0.engine" in read_repository(repository).engines[0].problem
    (repository / "tensorrt_llm" / "2" / "engine.json").write_text("{}")
    assert "names no gpt_model_path" in read_repository(repository).engines[0].problem
    assert rules(check_repository(repository, read_tokenizers=False)) == {"engine-missing"}
    path = repository / "tensorrt_llm" / "config.pbtxt"
    specific = "version_policy: { specific { versions: [ 1, 2 ] } }"
    path.write_text(re.sub(r"version_policy: .*", specific, path.read_text()))
    assert f"{tmp_path / 'first'}" in read_repository(repository).engines[0].problem


def test_an_engine_without_gpt_model_type_is_looked_at(tmp_path: Path) -> None:
    """The key may be the very fault; check and serve know the model by other things."""
    repository = write(tmp_path)
    path = repository / "tensorrt_llm" / "config.pbtxt"
    path.write_text(path.read_text().replace('"gpt_model_type"', '"gpt_model_typ"'))
    (tmp_path / "first" / "rank0.engine").unlink()
    assert "engine-missing" in rules(check_repository(repository, read_tokenizers=False))
    assert "lacks rank0.engine" in read_repository(repository).engines[0].problem


def test_the_manifests_ranks_are_not_those_of_a_version(tmp_path: Path) -> None:
    repository = write(tmp_path)
    assert read_repository(repository).recorded_world == 1
    add_version(tmp_path / "first", repository, 2, RepositoryOptions())
    assert read_repository(repository).recorded_world is None


@pytest.mark.parametrize(
    ("policy", "there", "served"),
    [
        ("", (1, 2, 10), (10,)),
        ("latest { num_versions: 2 }", (1, 2, 10), (2, 10)),
        ("latest { }", (3, 1), (3,)),
        ("all { }", (10, 2, 1), (1, 2, 10)),
        ("specific { versions: [ 2, 7 ] }", (1, 2, 3), (2,)),
        ("all { }", (), ()),
    ],
)
def test_versions_that_triton_serves(policy: str, there: tuple[int, ...], served: tuple[int, ...]) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    parsed = text_format.Parse(policy, model_config_pb2.ModelVersionPolicy())
    assert served_versions(parsed, there) == served
