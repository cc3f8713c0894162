"""Starts a server once, watches it and the ranks behind it, and ends the whole tree."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType

from trtbuild.errors import OutputError, ToolError, TrtbuildError
from trtbuild.handover import DRAIN_FILE, FAILURE_FILE
from trtbuild.mpi import die_with_parent, rank_log, who_failed
from trtbuild.serve.command import LAUNCHER_LOG, SERVER_ENV, SERVER_LOG
from trtbuild.serve.first_token import FirstToken
from trtbuild.serve.health import Pulse, answer_of, read_progress, wait_until
from trtbuild.serve.logs import engine_folders, last_lines, space_problem
from trtbuild.serve.prepare import Prepared
from trtbuild.serve.processes import end_marked, marked_processes, remove_shared_memory
from trtbuild.serve.signs import Beats, Crew, StateFiles
from trtbuild.serve.watch import Quiet, Stalls, Verdict, Vital, judge

_LOOK_EVERY_S = 0.1
_SPACE_EVERY_S = 1.0
_LATE_S = 1.0
"""Longer between two looks: this process itself was stopped or starved, and what it has not seen counts for nothing."""
_REASON_S = 2.0
"""How long a dead rank's own launcher may take to say how it died."""
_QUIET_S = 0.5
"""The engine's counters follow its requests within 0.1 s."""
_END_S = 2.0


class Server:
    """One attempt at a supervised server. As a context manager it leaves no process behind."""

    def __init__(self, prepared: Prepared) -> None:
        self._p, self.options = prepared, prepared.options
        self.log_dir = prepared.log_dir
        for name in (FAILURE_FILE, DRAIN_FILE):
            (prepared.run_dir / name).unlink(missing_ok=True)
        self._may_go = self.options.model_control == "explicit"  # models, with their processes
        self._crew = Crew((SERVER_ENV, prepared.mark))
        self._beats = Beats(prepared.mark, may_go=self._may_go)
        self._states = StateFiles(prepared.log_dir, prepared.launch.servers if prepared.launch.launched else 0)
        self._stalls = Stalls(self.options.stall_s)
        self._pulse: Pulse | None = None
        self._looked = self._space_looked = time.monotonic()
        self._stopped = False
        self._process = self._start()
        self.first_token_s: float | None = None

    def wait_ready(self) -> None:
        """Block until every model is ready and one real token was generated.

        Raises:
            ToolError: the server or a rank died, or it took too long. OutputError: the logs cannot be written.
        """
        started = time.monotonic()
        deadline = started + self.options.ready_timeout_s
        if not wait_until(lambda: self._answers("/v2/health/ready"), self.failure, deadline):
            raise self._not_ready("its models are not ready", self.last_lines())
        o = self.options
        pid = None if self._p.launch.launched else self._process.pid
        self._pulse = Pulse(self._p.connect, o.http_port, o.metrics_port, pid, timeout_s=o.watch_s)
        token = FirstToken(self._p.connect, self.options.grpc_port, max(1.0, deadline - time.monotonic()))
        if not wait_until(lambda: token.done, self.failure, deadline + 1.0):
            raise self._not_ready("no token came", self.last_lines())
        if token.error is not None:
            raise self.failure() or self._not_ready(f"a token was asked for: {token.error.message}", self.last_lines())
        self._crew.complete = not self._may_go
        if token.models:
            self.first_token_s = time.monotonic() - started

    def supervise(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Block until `stop` says so.

        Raises:
            ToolError: the server or a rank died or hangs. OutputError: the logs cannot be written.
        """
        while not stop():
            failure = self.failure()
            if failure is not None:
                raise failure
            time.sleep(_LOOK_EVERY_S)

    def drain(self) -> int | None:
        """Let no request in, wait for those that are open, and return how many are left after `drain_s`.

        None: the server did not say how many.

        Raises:
            ToolError: the server or a rank died meanwhile.
        """
        (self._p.run_dir / DRAIN_FILE).touch()
        deadline = time.monotonic() + self.options.drain_s
        quiet = Quiet(_QUIET_S)
        while True:
            failure = self.failure()
            if failure is not None:
                raise failure
            status, page = answer_of(
                self._p.connect, self.options.metrics_port, "/metrics", timeout_s=self.options.watch_s
            )
            left = sum(progress.open_requests for progress in read_progress(page).values())
            if quiet.seen(time.monotonic(), left if status == 200 else None):
                return 0
            if time.monotonic() >= deadline:
                return quiet.left
            time.sleep(_LOOK_EVERY_S)

    def failure(self) -> TrtbuildError | None:
        """Why the server cannot go on, or None."""
        now = time.monotonic()
        late = now - self._looked
        self._looked = now
        if late > _LATE_S:
            self._shift(late)
        if now - self._space_looked >= _SPACE_EVERY_S:
            self._space_looked = now
            if full := space_problem(self.log_dir):
                return full
        ended = self._ended()
        if ended is not None:
            return ended
        verdict = judge(self._vitals(now), self.options.watch_s) or self._stalled(now)
        return self._failed(verdict) if verdict is not None else None

    def last_lines(self, rank: int | None = None, engine: str = "") -> list[str]:
        """The end of the log that says most."""
        own = [rank_log(self.log_dir / engine, rank or 0)] if rank is not None or engine else []
        ranks = [rank_log(folder, 0) for folder in engine_folders(self.log_dir)]
        return last_lines([*own, *(self.log_dir / name for name in (SERVER_LOG, "rank0.log", LAUNCHER_LOG)), *ranks])

    def processes(self) -> list[int]:
        """Everything that runs for this server here: itself, the models' processes, mpirun and the ranks."""
        return marked_processes(SERVER_ENV, self._p.mark)

    def stop(self, *, grace_s: float | None = None) -> None:
        """End everything: what was started gets `grace_s` to end its own, then whatever is left is killed.

        By default only a launcher gets time: it has processes on other hosts.
        """
        if grace_s is None:
            grace_s = _END_S if self._p.launch.launched else 0.0
        if self._stopped:
            return
        self._stopped = True
        if self._process.poll() is None and grace_s:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        end_marked(SERVER_ENV, self._p.mark, grace_s=0.5)
        self._process.wait()
        remove_shared_memory(self._p.mark)
        if self._pulse is not None:
            self._pulse.close()
        self._beats.close()
        with suppress(BrokenPipeError):
            self._guard.communicate(b"ended\n")

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = self._p.environment
        marks = (SERVER_ENV, self._p.mark, self._p.mark, str(self._p.rubbish))
        guard = [sys.executable, "-m", "trtbuild.serve.processes", *marks]
        own = {**os.environ, "PYTHONPATH": environment["PYTHONPATH"]}
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True, env=own)
        try:
            with (self.log_dir / self._p.launch.logs[0]).open("wb") as log:
                return subprocess.Popen(
                    self._p.launch.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=partial(die_with_parent, signal.SIGKILL),
                )
        except OSError as error:
            raise OutputError(f"cannot start the server: {error}", hint=f"Logs: {self.log_dir}") from error

    def _answers(self, path: str) -> bool:
        return answer_of(self._p.connect, self.options.http_port, path)[0] == 200

    def _vitals(self, now: float) -> Sequence[Vital]:
        server = [] if self._pulse is None else [self._pulse.vital(now)]
        ranks = [*self._beats.vitals(now), *self._states.vitals(now)]
        known = {vital.pid for vital in ranks}  # by their number, which says more than the name of the program
        return [*ranks, *(vital for vital in self._crew.vitals(now) if vital.pid not in known), *server]

    def _stalled(self, now: float) -> Verdict | None:
        if self._pulse is None:
            return None
        return self._stalls.seen(now, {**self._pulse.progress, **self._beats.progress()})

    def _shift(self, seconds: float) -> None:
        for watched in (self._beats, self._states, self._crew, self._stalls, self._pulse):
            if watched is not None:
                watched.shift(seconds)

    def _ended(self) -> ToolError | None:
        """The engine said why it failed, or the process that was started is gone."""
        hint = f"Logs: {self.log_dir}"
        try:
            document = json.loads((self._p.run_dir / FAILURE_FILE).read_text())
            reason = str(document.get("message", "no reason given"))
            return ToolError(f"the engine behind tritonserver failed: {reason}", hint=hint)
        except (OSError, ValueError):
            pass
        code = self._process.poll()
        if code is None:
            return None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if not self._p.launch.launched:
            return ToolError(f"tritonserver {how}", log_tail=self.last_lines(), hint=hint)
        try:
            said = (self.log_dir / LAUNCHER_LOG).read_text(errors="replace")
        except OSError:
            said = ""
        rank, why = who_failed(said, code, max(2, self._p.launch.servers))
        who = f"rank {rank} died ({why})" if rank is not None else f"the launcher of the ranks {how}"
        return ToolError(who, log_tail=self.last_lines(rank), hint=hint)

    def _failed(self, verdict: Verdict) -> TrtbuildError:
        """The error of a verdict; whoever knows better how a process died is given a moment to say so."""
        may_tell = verdict.dead and (verdict.rank is not None or self._pulse is None)
        deadline = time.monotonic() + (_REASON_S if may_tell else 0.0)
        while time.monotonic() < deadline:
            if (ended := self._ended()) is not None:
                return ended
            time.sleep(_LOOK_EVERY_S)
        return ToolError(
            verdict.text, log_tail=self.last_lines(verdict.rank, verdict.engine), hint=f"Logs: {self.log_dir}"
        )

    def _not_ready(self, why: str, lines: list[str]) -> ToolError:
        seconds = self.options.ready_timeout_s
        return ToolError(
            f"tritonserver was not ready within {seconds:g} s: {why}",
            log_tail=lines,
            hint=f"Give it more with --ready-timeout. Logs: {self.log_dir}",
        )
