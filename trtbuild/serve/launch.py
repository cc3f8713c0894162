"""Starts a server, watches it and the ranks behind it, and ends the whole tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from trtbuild.errors import EngineError, ToolError
from trtbuild.handover import FAILURE_FILE
from trtbuild.manifest import read_manifest
from trtbuild.mpi import find_mpirun
from trtbuild.serve.command import (
    SERVER_ENV,
    ServeOptions,
    mpirun_argv,
    server_argv,
    server_environment,
    telling_lines,
)
from trtbuild.serve.install import find_triton
from trtbuild.serve.processes import die_with_parent, end_marked, marked_processes, remove_shared_memory
from trtbuild.serve.ready import check_ports_free, is_ready, read_failure, wait_ready
from trtbuild.staging import write_error

SERVER_LOG = "tritonserver.log"


class Server:
    """A supervised tritonserver. As a context manager it leaves no process behind.

    Its own run directory holds the log of the server and of each rank; `log_dir` keeps them after the end.
    """

    def __init__(self, repository: Path, options: ServeOptions, *, log_dir: Path | None = None) -> None:
        source = _check_repository(repository)
        check_ports_free(options.host, options.ports)
        self.options = options
        self._run_dir = Path(tempfile.mkdtemp(prefix="trtbuild-serve-"))
        self.log_dir = (log_dir or self._run_dir).resolve()
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            raise write_error(self.log_dir, error) from error
        self._mark = str(self._run_dir)
        self._shm_prefix = f"{self._run_dir.name}_"
        (self.log_dir / FAILURE_FILE).unlink(missing_ok=True)
        with ExitStack() as unfinished:
            unfinished.callback(shutil.rmtree, self._run_dir, ignore_errors=True)
            self._process = self._start(repository.resolve(), source["target"], int(source["world_size"]))
            unfinished.pop_all()

    def wait_ready(self) -> None:
        """Block until every model is ready.

        Raises:
            ToolError: the server or a rank died, or it took too long.
        """
        host = "127.0.0.1" if self.options.host in ("0.0.0.0", "::") else self.options.host
        wait_ready(lambda: is_ready(host, self.options.http_port), self.failure, self.options.timeout_s)

    def supervise(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Block until `stop` says so; a signal ends it by an exception.

        Raises:
            ToolError: the server or a rank died.
        """
        while not stop():
            failure = self.failure()
            if failure is not None:
                raise failure
            time.sleep(0.1)

    def failure(self) -> ToolError | None:
        """Why the server cannot go on, or None."""
        reason = read_failure(self.log_dir)
        if reason is not None:
            return ToolError(f"the engine behind tritonserver failed: {reason}", hint=f"Logs: {self.log_dir}")
        code = self._process.poll()
        if code is None:
            return None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ToolError(f"tritonserver {how}", log_tail=self.last_lines(), hint=f"Logs: {self.log_dir}")

    def last_lines(self) -> list[str]:
        """The end of the server's log, without its tables."""
        try:
            return telling_lines((self.log_dir / SERVER_LOG).read_text(errors="replace"))
        except OSError:
            return []

    def processes(self) -> list[int]:
        """Everything that runs for this server: itself, the models' processes, mpirun and the ranks."""
        return marked_processes(SERVER_ENV, self._mark)

    def stop(self) -> None:
        """Let open requests end (up to the exit timeout), then end whatever is left."""
        if self._process.poll() is None and read_failure(self.log_dir) is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(self.options.exit_timeout_s + 5)
        end_marked(SERVER_ENV, self._mark, grace_s=1.0)
        self._process.wait()
        remove_shared_memory(self._shm_prefix)
        if self._guard.stdin:
            self._guard.stdin.close()
        self._guard.wait()
        if self.log_dir != self._run_dir:
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def discard_logs(self) -> None:
        """After an end without failure nobody asks for the logs of a temporary directory."""
        if self.log_dir == self._run_dir:
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if not isinstance(error, ToolError):
            self.discard_logs()

    def _start(self, repository: Path, target: str, world_size: int) -> subprocess.Popen[bytes]:
        install = find_triton(self._run_dir)
        if target == "cpu":
            argv = server_argv(install, repository, self.options, self._shm_prefix)
        else:
            find_mpirun()  # a clear error before anything starts
            argv = mpirun_argv(str(install.binary), repository, world_size, self.options, as_root=os.geteuid() == 0)
        package_parent = Path(__file__).resolve().parents[2]
        python_bin = Path(sys.prefix) / "bin"
        environment = server_environment(os.environ, install, self._mark, self.log_dir, python_bin, (package_parent,))
        guard = [sys.executable, "-m", "trtbuild.serve.processes", SERVER_ENV, self._mark, self._shm_prefix]
        self._guard = subprocess.Popen(
            guard,
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": environment["PYTHONPATH"]},
        )
        with (self.log_dir / SERVER_LOG).open("wb") as log:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )


def _check_repository(repository: Path) -> dict[str, str]:
    """The source of a repository's manifest.

    Raises:
        EngineError: the folder was not made by `trtbuild repo`, or its engine is gone.
    """
    manifest = read_manifest(repository)
    source = manifest.get("source", {})
    if manifest.get("kind") != "repository" or not {"engine", "target", "world_size"} <= source.keys():
        raise EngineError(
            f"{repository} is not a repository of `trtbuild repo`",
            hint="Make one: trtbuild repo ENGINE -o DIR --tokenizer DIR",
        )
    if not (Path(source["engine"]) / "config.json").is_file():
        raise EngineError(
            f"the engine of {repository} is gone: {source['engine']}",
            hint="Build it again, or make the repository anew.",
        )
    return {key: str(value) for key, value in source.items()}
