"""Recipes as text: strict YAML, every problem with its line, overrides, and the JSON schema of the same dataclasses."""

from __future__ import annotations

import json
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.tiny import ROOT, trtbuild
from trtbuild.errors import RecipeError
from trtbuild.recipe.binding import default_of, members
from trtbuild.recipe.contents import WORDS, Recipe, document, parse, write
from trtbuild.recipe.schema import recipe_schema
from trtbuild.spec import LayerMethod

WRONG = """\
model: org/name
target: cqu
convert:
  tp_sise: 2
  quant: int44_awq
  kv_cache: no
  target: cpu
  max_batch_size: 4
  pp_size: 2
  pp_size: 3
  quant_layers:
  - {method: fp8}
  - pattern: "*"
build: {max_batch_size: many}
bulid: 3
verify: {gates: {min_top: 3}, length: true}
calibration: {text: a.txt, samples: 1.5}
repo: [1]
"""


def problems(text: str, *sets: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        parse(text, sets)
    return caught.value.problems


def test_all_problems_come_together_with_their_lines() -> None:
    assert problems(WRONG, "build.max_num=3", "convert.tp_size=x", "foo", "gpu.tipe=H100") == (
        "line 2: target: unknown 'cqu'; did you mean cpu?",
        "line 4: convert.tp_sise is not known; did you mean tp_size?",
        "line 5: convert.quant: unknown 'int44_awq'; did you mean int4_awq?",
        "line 6: convert.kv_cache: unknown 'no'; did you mean none?",
        "line 7: convert.target: the target stands at the top of a recipe, as target",
        "line 8: convert.max_batch_size is not known here; did you mean build.max_batch_size?",
        "line 10: pp_size is given twice, first on line 9",
        "line 12: convert.quant_layers[0] lacks pattern",
        "line 13: convert.quant_layers[1] lacks method",
        "line 14: build.max_batch_size: must be an integer, not 'many'",
        "line 15: bulid is not known; did you mean build?",
        "line 16: verify.gates.min_top is not known; did you mean min_top1?",
        "line 16: verify.length: must be an integer, not True",
        "line 17: calibration.samples: must be an integer, not 1.5",
        "line 18: repo: must be a mapping, not a list",
        "--set foo: write it as section.key=value",
        "--set convert.tp_size=x: convert.tp_size: must be an integer, not 'x'",
        "--set build.max_num=3: build.max_num is not known; did you mean max_num_tokens?",
        "--set gpu.tipe=H100: gpu.tipe is not known; did you mean type?",
        "--set gpu.tipe=H100: gpu lacks type",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: &a x\nrevision: *a\n", "line 1: anchors and aliases have no place in a recipe"),
        (
            "model: !!python/object/apply:os.system [ls]\n",
            "line 1: the tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("model: x\n<<: {target: cpu}\n", "line 2: << is not known"),
        ("model: x\n---\nmodel: y\n", "line 2: expected a single document"),
        ("model: x\n1: y\n", "line 2: a key must be text"),
        ("model: [x\n", "line 2: while parsing a flow sequence"),
        ("model: \x00\n", "the file: "),
        ("- model\n", "line 1: must be a mapping, not a list"),
        ("", "the file: the recipe lacks model"),
        ("model: 2024-01-01\nrevision: 012\n", "line 2: revision: must be text, not 12"),
        ("[" * 2000, "the file: it is nested too deeply"),
    ],
)
def test_what_strict_yaml_refuses(text: str, said: str) -> None:
    found = problems(text)
    assert found[0].startswith(said), found


def test_plain_values_are_those_of_yaml_1_2() -> None:
    """Where YAML 1.1, which PyYAML speaks, takes words and times for something else."""
    words = ("no", "on", "yes", "off", "1:30", "2024-01-01", "0o19", "1_000", ".inf", "=")
    for word in words:
        assert parse(f"model: {word}\n").model == word
    assert parse("model: x\nserve: {http_port: 0x1F90, ready_timeout_s: 1e2}\n").serve.http_port == 8080


def test_sections_that_do_not_go_together() -> None:
    text = "model: x\ntarget: tensorrt\ngpu: {type: H100, count: 2}\nbuild: {max_batch_size: 0}\n"
    assert problems(text) == (
        "gpu.count: 2 GPUs, but tp_size 1 x pp_size 1 are 1 ranks, and each rank has a GPU",
        "build: max_batch_size 0 must be at least 1",
    )
    nothing, gpu = problems("model: ' '\ngpu: {type: H100}\n")
    assert nothing == "model: a hub id or a folder is needed"
    assert gpu == "gpu: target cpu runs on no GPU; leave gpu out, or take target tensorrt or llmapi"
    text = "model: x\ntarget: llmapi\nbuild: {max_batch_size: 4}\nverify: {}\nlaunch: {processes: 2}\n"
    assert problems(text) == (
        "build: target llmapi has no engine to build; leave build out",
        "verify: the checkpoint of target llmapi cannot be run here; leave verify out",
        "launch: it is for target tensorrt, not llmapi; leave it out",
    )
    text = "model: x\nbuild: {plugin_config: {reduce_fusion: true, gemm_plugin: fp9}}\n"
    assert problems(text) == ("line 2: build.plugin_config.gemm_plugin: unknown 'fp9'; did you mean fp8?",)


def test_overrides_are_typed() -> None:
    layers = 'convert.quant_layers=[{pattern: "*.mlp.fc", method: fp8}]'
    sets = (
        "build.max_batch_size=32",
        "revision=123",
        "serve.ready_timeout_s=5",
        "repo.parameters.sink_token_length=3",
        layers,
    )
    recipe = parse(
        "model: x\nbuild: {max_batch_size: 4, max_seq_len: 64}\n", (*sets, "verify={}", "build.max_seq_len=null")
    )
    assert (recipe.build.max_batch_size, recipe.build.max_seq_len) == (32, None)
    assert (recipe.revision, recipe.serve.ready_timeout_s) == ("123", 5.0)
    assert recipe.repo.parameters == {"sink_token_length": "3"}
    assert recipe.convert.quant_layers == (LayerMethod("*.mlp.fc", "fp8"),)
    assert recipe.verify is not None


def test_relative_paths_begin_at_the_recipe(tmp_path: Path) -> None:
    text = "model: x\ncalibration: {text: mine.txt}\nverify: {text: /a/b.txt}\n"
    recipe = parse(text, ["calibration.text=other.txt"], folder=tmp_path)
    assert recipe.calibration.text == Path("other.txt")
    assert recipe.verify is not None
    assert recipe.verify.text == Path("/a/b.txt")
    assert parse(text, folder=tmp_path).calibration.text == tmp_path / "mine.txt"


def other_value(cls: type, name: str, hint: Any, default: Any) -> Any:
    """A value of a field that is not its default, as plain data."""
    kinds = [kind for kind in members(hint) if kind is not type(None)]
    kind = kinds[0]
    choices = WORDS.choices_of(cls, name, kind) or (get_args(kind) if get_origin(kind) is Literal else ())
    if choices:
        return next(choice for choice in choices if choice != default)
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return every_other_value(kind)
    if get_origin(kind) in (tuple, list):
        return [other_value(cls, name, get_args(kind)[0], None)]
    if get_origin(kind) is not None:
        key = next(iter(WORDS.keys.get((cls, name), ("any",))))
        return {key: other_value(cls, name, get_args(kind)[1], None)}
    made: dict[Any, Any] = {bool: default is not True, int: 7, float: 0.25, str: "x", Path: "/some/where"}
    return made[kind]


def every_other_value(cls: type) -> dict[str, Any]:
    found = {}
    for name, (item, hint) in WORDS.fields_of(cls).items():
        default = default_of(item)
        found[name] = other_value(cls, name, hint, None if default is MISSING else default)
    return found


def test_every_field_of_every_options_class_is_a_key() -> None:
    """By introspection, so that a new field that recipes cannot hold fails here and not at its user."""
    whole = every_other_value(Recipe)
    Draft202012Validator(recipe_schema()).validate(whole)
    whole["gpu"] = None  # the target that is not the default one may have GPUs, but not 7 for 49 ranks
    whole["build"] = {}  # some limits contradict each other on purpose
    recipe = parse(yaml.safe_dump(whole))
    assert {key: value for key, value in document(recipe).items() if key != "build"} == {
        key: value for key, value in whole.items() if key != "build"
    }
    for name, value in every_other_value(type(recipe.build)).items():
        try:
            found = document(parse(yaml.safe_dump({"model": "x", "build": {name: value}})))["build"][name]
        except RecipeError as error:
            refused = error.problems
        else:
            refused = ()
            assert found == value
        # By what it means, never as a key or a type.
        assert all(problem.startswith("build: ") for problem in refused), refused


@settings(deadline=None)  # other tests run beside it
@given(
    st.fixed_dictionaries(
        {"model": st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)},
        optional={
            "description": st.text(st.characters(exclude_categories=["Cs", "Cc"])),
            "revision": st.sampled_from(["no", "1e3", "0x10", "null", "1.5", "true", "~", "", "012", None]),
            "calibration": st.fixed_dictionaries({"seed": st.integers(), "chat": st.booleans()}),
            "repo": st.fixed_dictionaries({"kv_cache_free_gpu_mem_fraction": st.floats(0, 1) | st.none()}),
        },
    )
)
def test_what_is_written_reads_back(values: dict[str, Any]) -> None:
    recipe = parse(json.dumps(values))
    assert parse(write(recipe)) == recipe
    Draft202012Validator(recipe_schema()).validate(document(recipe))


def test_the_published_schema_is_that_of_the_code() -> None:
    published = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert published == recipe_schema(), "trtbuild show schema > recipes/recipe.schema.json"
    assert json.loads(trtbuild("show", "schema").stdout) == published
    Draft202012Validator.check_schema(published)


@pytest.mark.parametrize(
    "line",
    [
        "convert: {tp_sise: 2}",
        "convert: {quant: int44}",
        "convert: {quant_layers: [{}]}",
        "build: {max_batch_size: many}",
        "verify: {gates: {min_top: 1}}",
        "repo: {parameters: {max_beam: '1'}}",
        "gpu: {count: 1}",
        "calibration: {samples: 1.5}",
    ],
)
def test_editors_see_what_parse_refuses(line: str) -> None:
    values = {"model": "x", **yaml.safe_load(line)}
    assert not Draft202012Validator(recipe_schema()).is_valid(values)
    assert problems(yaml.safe_dump(values))
