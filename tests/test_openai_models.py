"""The endpoint in front of repositories of several models, and of a server with guided decoding."""

from __future__ import annotations

import ast
import json
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests import triton_stand_in
from tests.serve_fixture import LONGEST, Running, demo_tokenizer, running
from tests.test_openai import ENDLESS, MESSAGES, started
from tests.tiny import trtbuild
from trtbuild.client import Client, Generation
from trtbuild.errors import EngineError
from trtbuild.repo.add import add_models
from trtbuild.repo.options import RepositoryOptions
from trtbuild.repo.text_models import choose, read_text_models
from trtbuild.repo.write import write_repository
from trtbuild.text.chat import load_chat_template


@pytest.fixture(scope="module")
def repository(tiny_server: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chains of one engine: with the demo's template, with one of its own, and without any."""
    folder = tmp_path_factory.mktemp("chains")
    engine = tiny_server.repository.parent / "engine"
    for name, template in (("own", "{% for m in messages %}<{{ m.content }}>{% endfor %}"), ("none", None)):
        shutil.copytree(demo_tokenizer(), folder / name)
        (folder / name / "chat_template.jinja").unlink(missing_ok=True)
        path = folder / name / "tokenizer_config.json"
        config = {key: value for key, value in json.loads(path.read_text()).items() if key != "chat_template"}
        path.write_text(json.dumps(config | ({"chat_template": template} if template else {})))
    made = folder / "repo"
    options = {"max_tokens_in_paged_kv_cache": 4 * LONGEST}
    write_repository(engine, made, demo_tokenizer(), RepositoryOptions(name="llama", **options))
    add_models(engine, made, folder / "own", RepositoryOptions(name="own", **options))
    add_models(engine, made, folder / "none", RepositoryOptions(name="none", **options))
    return made


@contextmanager
def client_of(triton: Running, *options: str) -> Iterator[openai.OpenAI]:
    process, port = started(triton, *options)
    try:
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
    finally:
        process.terminate()
        process.wait(30)


def test_models_that_take_text(repository: Path, tmp_path: Path) -> None:
    models = read_text_models(repository)
    assert {model.name: model.tokenizer for model in models} == {
        f"{chain}_{role}": repository / f"{chain}_preprocessing" / "tokenizer"
        for chain in ("llama", "own", "none")
        for role in ("ensemble", "tensorrt_llm_bls")
    }
    assert [model.name for model in choose(models, None)] == ["llama_ensemble", "none_ensemble", "own_ensemble"]
    assert [model.name for model in choose(models, "own_tensorrt_llm_bls")] == ["own_tensorrt_llm_bls"]
    with pytest.raises(EngineError, match="no model ensemble that takes text; it has llama_ensemble, "):
        choose(models, "ensemble")
    with pytest.raises(EngineError, match="no ensemble and no tensorrt_llm_bls"):
        read_text_models(tmp_path)


def test_every_chain_is_served_with_its_own_template(repository: Path, tmp_path: Path) -> None:
    with running(repository, tmp_path / "logs") as server, Client(server.url) as straight:
        with client_of(server, "--repo", str(repository), "--served-model-name", "own_ensemble=mine") as client:
            assert [model.id for model in client.models.list()] == ["llama_ensemble", "none_ensemble", "mine"]
            demo = load_chat_template(demo_tokenizer()).render(MESSAGES)
            for name, model, prompt in (
                ("llama_ensemble", "llama_ensemble", demo),
                ("mine", "own_ensemble", f"<{MESSAGES[0]['content']}>"),
            ):
                generation = Generation(prompt, max_tokens=8, end_id=-1, add_special_tokens=False)
                ask: Any = {"model": name, "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
                answer = client.chat.completions.create(**ask, extra_body=ENDLESS)
                assert answer.model == name
                assert answer.choices[0].message.content == straight.infer(generation, model=model).text
            with pytest.raises(openai.BadRequestError, match="none_ensemble has no chat template"):
                client.chat.completions.create(model="none_ensemble", messages=MESSAGES)
            assert client.completions.create(model="none_ensemble", prompt="x", max_tokens=1).usage
            with pytest.raises(openai.NotFoundError, match="there is llama_ensemble, none_ensemble, mine"):
                client.completions.create(model="own_ensemble", prompt="x")
            health = urllib.request.urlopen(str(client.base_url).replace("/v1/", "/health"), timeout=20)
            assert json.load(health) == {"status": "ok", "tokens": 3}
        turn = trtbuild(
            "chat", "--repo", repository, "--url", server.url, "--model", "own_ensemble", "-n", 4, input="Hi\n"
        )
        assert turn.returncode == 0, turn.stderr
        generation = Generation("<Hi>", max_tokens=4, add_special_tokens=False)
        assert turn.stdout.removesuffix("\n") == straight.infer(generation, model="own_ensemble").text
        several = trtbuild("chat", "--repo", repository, "--url", server.url, input="")
        assert several.returncode == 2
        assert "llama_ensemble, none_ensemble, own_ensemble" in several.stderr


def test_options_that_do_not_fit_several_models(repository: Path) -> None:
    for options in (
        ("--served-model-name", "x"),
        ("--tokenizer", demo_tokenizer()),
        ("--served-model-name", "own_ensemble="),
    ):
        done = trtbuild("openai", "--repo", repository, *options)
        assert done.returncode == 2, done.stderr
    done = trtbuild("openai", "--repo", repository, "--model", "ensemble")
    assert done.returncode == 3
    assert "it has llama_ensemble" in done.stderr


def test_guided_decoding_reaches_the_server(tmp_path: Path) -> None:
    """What a response_format asks for comes to the backend as TensorRT-LLM 1.2's tensors."""
    (tmp_path / "info.json").write_text("{}")
    guided = {"guided_decoding_backend": "xgrammar", "xgrammar_tokenizer_info_path": str(tmp_path / "info.json")}
    folder = triton_stand_in.repository(tmp_path / "model", tp=1, **guided)
    environment = triton_stand_in.container(tmp_path / "host")
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    with (
        running(folder, tmp_path / "logs", env=environment) as server,
        client_of(server, "--repo", str(folder), "--guided") as client,
    ):
        ask: Any = {"model": "ensemble", "messages": MESSAGES, "max_tokens": 2}
        for each in (form, {"type": "json_object"}, {"type": "text"}):
            answer = client.chat.completions.create(**ask, response_format=each)
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 2
        text = "".join(path.read_text() for path in (tmp_path / "logs").rglob("*.log*"))
    asked = [ast.literal_eval(line.partition("asked for ")[2]) for line in text.splitlines() if "asked for " in line]
    name = "guided_decoding_guide"
    assert asked == [
        {f"{name}_type": [[b"json_schema"]], name: [[json.dumps(schema).encode()]]},
        {f"{name}_type": [[b"json"]]},
    ]
