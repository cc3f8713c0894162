"""Dockerfile.trtllm without docker: linted, its tag against the matrix, and its scripts and wheel run for real."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer

from tests.tiny import ROOT
from trtbuild.cli.app import app
from trtbuild.doctor import matrix

DOCKERFILE = ROOT / "Dockerfile.trtllm"
SCRIPTS = ROOT / "scripts" / "container"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of each line, continuations joined, comments left out."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in DOCKERFILE.read_text().split("\n") if line[:1] != "#"))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.split("\n") if line.strip()]


def of(kind: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == kind]


def defaults() -> dict[str, str]:
    """ARG names with a default; later lines only bring a name into their stage."""
    return {name: value for name, equals, value in (line.partition("=") for line in of("ARG")) if equals}


def test_hadolint_has_nothing_to_say() -> None:
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_is_one_of_the_matrix_with_our_tensorrt_llm() -> None:
    arguments = defaults()
    tag = arguments["TRITON_TAG"]
    assert tag.endswith("-trtllm-python-py3")
    release = matrix.RELEASES[tag.removesuffix("-trtllm-python-py3")]
    assert release == matrix.OURS
    assert f'trtbuild.tensorrt_llm="{release.tensorrt_llm}"' in of("LABEL")[0]
    # Both stages start from the same image, by tag and, where one is given, digest.
    froms = {line.partition(" AS ")[0] for line in of("FROM")}
    assert froms == {"nvcr.io/nvidia/tritonserver:${TRITON_TAG}${TRITON_DIGEST:+@${TRITON_DIGEST}}"}
    assert arguments["TRITON_DIGEST"] == '""'


def test_it_runs_as_a_user_that_is_not_root() -> None:
    names = [name for name, _ in instructions()]
    user = of("USER")[-1]
    assert user == "${USER_ID}:0"
    assert int(defaults()["USER_ID"]) > 1000
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert {"HEALTHCHECK", "LABEL", "ENTRYPOINT", "CMD", "EXPOSE"} <= set(names)
    assert names.count("RUN") == 2  # the wheel, and one layer on the image


def test_every_source_exists_and_is_sent(context: Path) -> None:
    for line in of("COPY"):
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        if "--from" not in line:
            assert all((context / source).exists() for source in sources), line
    for line in of("RUN"):
        for mount in re.findall(r"--mount=(\S+)", line):
            options = dict(part.partition("=")[::2] for part in mount.split(","))
            assert options["type"] == "bind"
            assert "from" in options or (context / options["source"]).exists(), mount


def sent(path: str, rules: list[str]) -> bool:
    """Whether docker sends a file: the last rule that matches it or a folder above it decides."""
    parts = path.split("/")
    folders = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    kept = True
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        names = folders if "**/" not in rule else [name.rpartition("/")[2] for name in folders]
        if any(fnmatch(name, pattern) and (pattern != "*" or "/" not in name) for name in names):
            kept = rule.startswith("!")
    return kept


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What .dockerignore lets through of the files that git knows; links stay links."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and line[0] != "#"]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("context")
    for name in filter(None, listed.stdout.split("\n")):
        source, target = ROOT / name, folder / name
        if sent(name, rules) and (source.exists() or source.is_symlink()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)
    return folder


def test_little_is_sent(context: Path) -> None:
    top = {path.name for path in context.iterdir()}
    assert {"pyproject.toml", "README.md", "trtbuild", "model_repo_templates", "scripts"} <= top
    assert not top & {"tests", ".git", ".venv", "build", "Makefile"}
    assert [path.name for path in (context / "scripts").iterdir()] == ["container"]
    assert sum(path.stat().st_size for path in context.rglob("*") if path.is_file()) < 10_000_000


@pytest.fixture(scope="module")
def wheel(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from what docker would have, as the first stage makes it."""
    dist = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", dist, "."], cwd=context, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(dist.glob("trtbuild-*.whl"))


def test_the_wheel_has_all_files_of_the_package(wheel: Path, context: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(context).as_posix() for path in (context / "trtbuild").rglob("*.py")}
    assert code <= packed
    templates = {
        f"trtbuild/{path.relative_to(context).as_posix()}" for path in (context / "model_repo_templates").rglob("*.j2")
    }
    assert templates
    assert templates <= packed
    assert "trtbuild/runtime/native/kernels.c" in packed
    recipes = {f"trtbuild/recipes/{path.name}" for path in (context / "recipes").glob("*.yaml")}
    assert recipes
    assert recipes | {"trtbuild/recipes/recipe.schema.json"} <= packed


@pytest.fixture(scope="module")
def image_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of its own with a package that stands for those of the image."""
    folder = tmp_path_factory.mktemp("image")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    fake_package(Path(place.stdout.strip()), "torch", "2.10.0a0+b4e4ee81d3.nv25.12")
    return python


def fake_package(site: Path, name: str, version: str) -> None:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/RECORD,,\n{info.name}/INSTALLER,,\n")
    (info / "INSTALLER").write_text("pip\n")


def install(python: Path, dist: Path, *packages: str, links: Path | None = None) -> subprocess.CompletedProcess[str]:
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_COMPILE": "1", "PIP_FIND_LINKS": str(links or dist)}
    env = {**os.environ, **offline, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env.pop("PYTHONPATH", None)
    # `python -m pip ...` is this Python's pip, which looks after the other Python.
    wrapped = python.parent / "python-with-pip"
    wrapped.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -m pip --python {python} "$@"\n')
    wrapped.chmod(0o755)
    env["PYTHON"] = str(wrapped)
    command = ["sh", str(SCRIPTS / "install.sh"), str(dist), *packages]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def make_wheel(folder: Path, name: str, version: str) -> None:
    """The smallest wheel that pip installs."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


def test_the_wheel_is_installed_beside_the_image_not_over_it(wheel: Path, image_python: Path, tmp_path: Path) -> None:
    done = install(image_python, wheel.parent)
    assert done.returncode == 0, done.stderr
    program = [image_python, "-c", "import trtbuild; print(trtbuild.__file__)"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(program, capture_output=True, text=True, check=True, env=env, cwd=tmp_path)
    assert "site-packages" in said.stdout
    # A package that wants another torch is refused by the constraints, and nothing has changed.
    dist = Path(shutil.copytree(wheel.parent, tmp_path / "dist"))
    make_wheel(dist, "torch", "2.13.0")
    refused = install(image_python, dist)
    assert refused.returncode != 0
    assert re.search(r"\(constraint\) torch.*==2\.10\.0a0", refused.stdout), refused.stdout
    code = "from importlib.metadata import version; print(version('torch'))"
    still = subprocess.run([image_python, "-c", code], capture_output=True, text=True, check=True)
    assert still.stdout.strip() == "2.10.0a0+b4e4ee81d3.nv25.12"


def test_several_packages_may_be_added(wheel: Path, image_python: Path, tmp_path: Path) -> None:
    """EXTRA_PACKAGES is one word, however many packages are in it; brackets and comparisons are no shell's business."""
    dist = Path(shutil.copytree(wheel.parent, tmp_path / "dist"))
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("first", "second"):
        make_wheel(packages, name, "1.5")
    (call,) = re.findall(r"sh /scripts/install\.sh /dist (.*?) &&", " ".join(of("RUN")))
    words = subprocess.run(
        ["sh", "-c", f'printf "%s\\n" {call.strip()}'],
        capture_output=True,
        text=True,
        env={"EXTRA_PACKAGES": "first[grpc]>=1.2,<2 second==1.5"},
        cwd=tmp_path,
    ).stdout.splitlines()
    done = install(image_python, dist, *words, links=packages)
    assert done.returncode == 0, done.stderr
    assert {"first-1.5", "second-1.5"} <= set(re.findall(r"(?:first|second)-1\.5", done.stdout))
    assert install(image_python, dist, "").returncode == 0


def entry(tmp_path: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The entry point with a trtbuild that says what it was asked, and knows `doctor` alone."""
    program = tmp_path / "trtbuild"
    program.write_text('#!/bin/sh\n[ "$2" = --help ] && { [ "$1" = doctor ]; exit; }\necho "trtbuild $*"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin"
    full = {"PATH": path, "NVIDIA_ENTRYPOINT": "/nowhere", **env}
    return subprocess.run(["sh", SCRIPTS / "entrypoint.sh", *words], capture_output=True, text=True, env=full)


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (("build", "r.yaml", "--set", "convert.tp_size=2"), "trtbuild run r.yaml --set convert.tp_size=2 -o build"),
        (("build", "r.yaml", "-o", "here"), "trtbuild run r.yaml -o here"),
        (("serve", "/data/my repo"), "trtbuild serve --host 0.0.0.0 /data/my repo"),
        (("doctor", "--json"), "trtbuild doctor --json"),
        ((), "trtbuild doctor"),
        (("echo", "a", "b c"), "a b c"),
    ],
)
def test_words_of_the_entry_point(tmp_path: Path, words: tuple[str, ...], runs: str) -> None:
    done = entry(tmp_path, *words)
    assert (done.returncode, done.stdout.strip()) == (0, runs), done.stderr


def test_the_words_are_commands_of_the_real_program() -> None:
    group = typer.main.get_command(app)
    for name, arguments in (("run", ["r.yaml", "-o", "build"]), ("serve", ["--host", "0.0.0.0", "repo"])):
        with group.commands[name].make_context(name, arguments):  # type: ignore[attr-defined]
            pass


def test_nvidias_entry_point_comes_first(tmp_path: Path) -> None:
    nvidia = tmp_path / "nvidia_entrypoint.sh"
    nvidia.write_text('#!/bin/sh\necho banner\nexec "$@"\n')
    nvidia.chmod(0o755)
    done = entry(tmp_path, "build", "r.yaml", NVIDIA_ENTRYPOINT=str(nvidia))
    assert done.stdout == "banner\ntrtbuild run r.yaml -o build\n"


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = getattr(self.server, "ready", False) and self.path == "/v2/health/ready"
        self.send_response(200 if ready else 400)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def health(tmp_path: Path, init: str, **env: str) -> int:
    """Exit code of the health check where process 1 has that command line."""
    cmdline = tmp_path / "cmdline"
    cmdline.write_bytes(init.replace(" ", "\0").encode() + b"\0")
    return entry(tmp_path, "healthcheck", TRTBUILD_INIT_CMDLINE=str(cmdline), **env).returncode


BUILDS = (
    "python3 /usr/local/bin/trtbuild run r.yaml",
    "/sbin/docker-init -- trtbuild-entrypoint build serve.yaml",
    "/sbin/docker-init -- trtbuild-entrypoint doctor",
)
SERVES = (
    "python3 /usr/local/bin/trtbuild serve --host 0.0.0.0 repo",
    "/bin/bash /opt/nvidia/nvidia_entrypoint.sh trtbuild serve --host 0.0.0.0 repo",
    "/sbin/docker-init -- trtbuild-entrypoint serve repo",  # docker run --init
    "/sbin/docker-init -- trtbuild-entrypoint trtbuild serve repo",
    "python3 /usr/local/bin/trtbuild --debug serve repo",
)


def test_health(tmp_path: Path, server: http.server.HTTPServer) -> None:
    told = {"TRTBUILD_HTTP_PORT": str(server.server_port)}
    for init in BUILDS:
        assert health(tmp_path, init, **told) == 0, init
    for init in SERVES:
        assert health(tmp_path, init, **told) != 0, init
    server.ready = True  # type: ignore[attr-defined]
    for init in SERVES:
        assert health(tmp_path, init, **told) == 0, init


def test_health_at_the_port_that_was_chosen(tmp_path: Path, server: http.server.HTTPServer) -> None:
    server.ready = True  # type: ignore[attr-defined]
    for option in (f"--http-port {server.server_port}", f"--http-port={server.server_port}"):
        assert health(tmp_path, f"{SERVES[2]} {option}", TRTBUILD_HTTP_PORT="1") == 0
    assert health(tmp_path, f"{SERVES[2]} --http-port 1", TRTBUILD_HTTP_PORT=str(server.server_port)) != 0
