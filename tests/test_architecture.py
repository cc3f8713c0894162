"""The import rules: stages do not know each other, pure modules touch nothing, the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ROOT
from trtbuild.cache.facts import NO_BYTES
from trtbuild.families import FAMILIES
from trtbuild.quantize.methods import METHODS

PACKAGE = ROOT / "trtbuild"
BASE = {
    "errors",
    "mapping",
    "layout",
    "spec",
    "progress",
    "manifest",
    "staging",
    "mpi",
    "mpi_guard",
    "handover",
    "quantization",
    "float8",
    "finding",
    "versions",
    "__init__",
}
# folder or module -> what of trtbuild it may import besides its own folder
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(BASE, BASE),
    "families": BASE,
    "quantize": BASE,
    "hub": BASE,
    "calibrate": BASE | {"quantize", "runtime", "text"},
    "checkpoint": BASE | {"families", "reshard", "fields", "quantize", "importers", "mixed"},
    "importers": BASE | {"families", "shard", "fields", "coverage", "quantize", "mixed"},
    "coverage": BASE | {"families", "shard"},
    "fields": BASE | {"families", "shard"},
    "shard": BASE | {"families"},
    "mixed": BASE | {"families", "quantize", "shard", "fields"},
    "fit": BASE | {"families", "quantize", "shard", "fields", "mixed"},
    "plan": BASE | {"families", "quantize", "shard", "fields", "fit", "coverage", "importers", "mixed"},
    # It works on what the plan decided, and asks the plan about what else could be decided.
    "sizing": BASE | {"plan", "families", "quantize", "shard", "mixed", "importers"},
    "reshard": BASE | {"families", "shard", "fields"},
    # The linter reads by the same header reader and knows shapes by the same arithmetic as the converter.
    "lint": BASE | {"families", "shard", "fields", "fit", "checkpoint", "quantize", "mixed"},
    "runtime": BASE,
    "engine": BASE | {"runtime", "quantize"},
    "text": BASE,
    "triton": BASE | {"runtime", "text"},
    "repo": BASE | {"text"},
    "serve": BASE | {"client"},
    "client": BASE | {"text"},  # stop strings; no tokenizer
    "openai": BASE | {"client", "text"},
    "bench": BASE | {"client", "text"},
    # It looks for the same programs as the stages that use them.
    "doctor": BASE | {"serve", "runtime"},
    "quantizing": BASE | {"plan", "fields", "quantize", "calibrate", "hub", "checkpoint"},
    # Its plan is that of the quantizers with other names; its form is called by calibrate/, which does not know it.
    "llmapi": BASE
    | {"plan", "families", "shard", "fields", "coverage", "mixed", "importers", "quantize", "checkpoint", "runtime"},
    "exporting": BASE | {"plan", "quantizing", "calibrate", "checkpoint", "llmapi"},
    # It compares what stages made, so it reads as they do, and runs an engine as the runtime does.
    "verify": BASE | {"plan", "families", "lint", "checkpoint", "engine", "runtime", "text", "fields", "quantize"},
    "planning": BASE | {"plan", "hub", "checkpoint", "importers", "families", "sizing", "llmapi"},
    "cache": BASE | {"hub"},
    "caching": BASE | {"cache", "checkpoint", "llmapi", "quantize"},
    "converting": BASE
    | {"cache", "caching"}
    | {"planning", "plan", "quantizing", "exporting", "calibrate", "hub", "checkpoint", "importers", "lint", "reshard"},
    "building": BASE
    | {"cache", "caching", "planning", "converting", "engine", "importers", "families", "lint"}
    | {"building_tensorrt", "building_source"},
    "building_source": BASE | {"planning", "engine", "importers", "checkpoint", "lint", "families", "sizing"},
    "building_tensorrt": BASE
    | {"cache", "caching", "planning", "converting", "engine", "checkpoint", "hub", "lint", "families"}
    | {"building_source"},
    "verifying": BASE | {"planning", "converting", "building", "engine", "verify"},
    "checking": BASE | {"lint", "repo"},
    "pipeline": {"planning", "converting", "building", "building_tensorrt", "verifying", "checking", "running"},
    "cli": BASE
    | {
        "pipeline",
        "plan",
        "lint",
        "families",
        "quantize",
        "engine",
        "repo",
        "serve",
        "client",
        "text",
        "verify",
        "openai",
        "bench",
        "sizing",
        "doctor",
        "recipe",
        "running",
        "run_plan",
        "cache",
    },
    # The sections of a recipe are the options of the stages.
    "recipe": BASE | {"quantize", "engine", "repo", "serve", "verify", "sizing", "plan"},
    "workdir": BASE,
    "run_plan": BASE,
    "running": BASE
    | {"planning", "plan", "converting", "building", "verifying", "verify", "checkpoint", "hub", "repo", "recipe"}
    | {"cache", "workdir", "run_plan", "sizing", "building_tensorrt", "engine", "llmapi"},
}
# third-party packages that only some folders may import
ONLY_IN = {
    "huggingface_hub": {"hub"},
    "transformers": {"text"},
    "mpi4py": {"runtime", "engine", "checkpoint", "verify"},
    "tritonclient": {"client", "repo", "serve"},
    "jinja2": {"repo", "text", "verify"},
    "matplotlib": {"verify", "bench"},
    "httpx": {"bench"},
    "fastapi": {"openai"},
    "uvicorn": {"openai"},
    "pydantic": {"openai"},
    "boto3": {"cache"},
    "botocore": {"cache"},
    "cyclonedx": {"cache"},
    "typer": {"cli"},
    "yaml": {"recipe", "repo", "triton"},
    "rich": {"cli"},
}
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "tritonclient",
    "mpi4py",
    "huggingface_hub",
    "safetensors",
    "jinja2",
    "grpc",
    "fastapi",
    "uvicorn",
    "pydantic",
    "httpx",
    "matplotlib",
    "boto3",
    "botocore",
    "cyclonedx",
}
# These modules are the heavy code itself, loaded only by processes that compute.
HEAVY_MODULES = {
    "runtime",
    "openai",
    "calibrate/run.py",
    "llmapi/form.py",
    "engine/cpu_rank.py",
    "engine/kernels.py",
    "engine/quantized.py",
    "quantize/packing.py",
    *(
        f"verify/{n}.py"
        for n in ("measure", "dequantize", "diagnose", "folded", "reference", "run", "trace_rank", "weights")
    ),
}
PURE = [
    "mapping",
    "layout",
    "spec",
    "quantization",
    "shard",
    "fit",
    "plan",
    "sizing",
    "reshard",
    "fields",
    "coverage",
    "importers",
    "mixed",
    "finding",
    "llmapi/loaders",
    "llmapi/layout",
    "llmapi/documents",
    "llmapi/plan",
    "lint/finding",
    "repo/parameters",
    "repo/options",
    *(f"serve/{name}" for name in ("options", "facts", "checks", "command", "watch")),
    "repo/check/rules",
    "repo/check/engine",
    "repo/check/chain",
    "repo/check/flow",
    "repo/check/texts",
    "lint/tables",
    "lint/config",
    "lint/quantization",
    "lint/mixture",
    "lint/forms",
    "lint/expected",
    "lint/tensors",
    "progress",
    "errors",
    "families",
    "runtime/scheduler",
    "runtime/moe",
    "runtime/ops",
    "runtime/program",
    "runtime/architectures",
    "runtime/features",
    "runtime/forms",
    "runtime/linears",
    "recipe/document",
    "recipe/binding",
    "recipe/contents",
    "recipe/on_gpu",
    "run_plan",
    "recipe/schema",
    "cache/key",
    "cache/prune",
    "cache/sbom",
    "cache/provenance",
    "verify/gates",
    *(f"bench/{name}" for name in ("asking", "compare", "endpoint", "metrics", "record", "sse", "table", "workload")),
    *(f"client/{name}" for name in ("answers", "failures", "forms", "llmapi", "options", "payload", "reading")),
    "doctor/finding",
    "doctor/facts",
    "doctor/matrix",
    "doctor/nvidia_smi",
    "doctor/judge",
    "doctor/topics",
    "verify/report",
    "engine/options",
    *(f"engine/tensorrt/{name}" for name in ("options_table", "settings", "build_config", "effects", "command")),
    *(f"engine/tensorrt/{name}" for name in ("failures", "failure_table", "failure_hardware")),
]
EFFECTS = {"os", "subprocess", "socket", "shutil", "tempfile", "time", "urllib", "threading", "random"}
SOURCES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "model_repo_templates").rglob("*.py"))


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Dotted names that a file imports; those under TYPE_CHECKING are left out."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.dump(guard.test)
        for node in ast.walk(guard)
    }
    nodes = tree.body if top_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def place(path: Path) -> str:
    """The folder (or module) of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def package_files() -> list[Path]:
    return [path for path in SOURCES if PACKAGE in path.parents]


def test_a_file_imports_only_what_its_place_allows() -> None:
    known = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    wrong = []
    for path in package_files():
        here, found = place(path), imports(path)
        own = {name.split(".")[1] for name in found if name.startswith("trtbuild.")} & known
        wrong += [f"{path}: {name}" for name in sorted(own - {here} - MAY_IMPORT[here])]
        third_party = {name.split(".")[0] for name in found}
        wrong += [
            f"{path}: {package} belongs in {sorted(places)}"
            for package, places in ONLY_IN.items()
            if package in third_party and here not in places
        ]
    assert not wrong


def test_heavy_imports_are_inside_functions() -> None:
    light = [
        path
        for path in package_files()
        if path.relative_to(PACKAGE).as_posix() not in HEAVY_MODULES and place(path) not in HEAVY_MODULES
    ]
    assert len(light) > 200
    found = {path: {n.split(".")[0] for n in imports(path, top_only=True)} & HEAVY for path in light}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_have_no_effects(name: str) -> None:
    target = PACKAGE / name
    for path in sorted(target.glob("*.py")) if target.is_dir() else [target.with_suffix(".py")]:
        assert not {n.split(".")[0] for n in imports(path)} & EFFECTS, path
        assert "open" not in {
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }


def test_files_and_functions_stay_small() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name} is too long"
        assert path.stem not in {"utils", "common", "helpers"}, path


@pytest.mark.parametrize(
    "word",
    ["except Exception", "except BaseException", "except:", "trust_remote_code=True", "pickle.load", "TODO", "FIXME"],
)
def test_words_that_do_not_belong(word: str) -> None:
    found = [str(path.relative_to(ROOT)) for path in SOURCES if word in path.read_text()]
    assert not found


def test_every_family_and_method_is_in_its_table() -> None:
    def files(folder: str, *others: str) -> set[str]:
        return {p.stem for p in (PACKAGE / folder).glob("*.py")} - {"__init__", *others}

    assert files("families", "rules") == {family.name for family in FAMILIES}
    assert files("quantize/methods") == set(METHODS)


def test_code_that_writes_artefacts_is_part_of_their_keys() -> None:
    """All that the stages import, wherever in a file, and what they start as processes of their own."""
    known = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package_files()
    }
    stages = {"trtbuild.converting", "trtbuild.building", "trtbuild.building_tensorrt", "trtbuild.caching"}
    processes = {"trtbuild.engine.cpu_rank", "trtbuild.engine.tensorrt.rank"}
    reached, todo = set[str](), stages | processes
    while todo:
        reached |= todo
        todo = {name for module in todo for name in imports(known[module]) if name in known} - reached
    assert "trtbuild.lint.plain" in reached
    assert not {place(known[name]) for name in reached} & NO_BYTES


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after running `code` in a fresh Python."""
    program = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_command_line_starts_light() -> None:
    assert not loaded_by("import trtbuild.cli.app") & HEAVY


def test_the_client_needs_no_torch() -> None:
    assert not loaded_by("import trtbuild.client, trtbuild.client.stream") & {"torch", "transformers"}
