"""A running engine seen from outside: all its ranks, started, watched and driven by one object."""

from __future__ import annotations

import json
import select
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild import mpi
from trtbuild.errors import RequestError, ToolError
from trtbuild.runtime.info import RuntimeOptions, read_engine
from trtbuild.runtime.request import Output, Request
from trtbuild.runtime.scheduler import check_request

if TYPE_CHECKING:
    from numpy.typing import NDArray

_START_TIMEOUT_S = 600.0
_ANSWER_TIMEOUT_S = 120.0
LAUNCHER_LOG = "mpirun.log"


class RankGroup:
    """The engine's ranks under mpirun, one process a rank, driven over a Unix socket. Thread-safe.

    Blocks until all ranks are ready. When a rank dies, every open request gets an output with finish_reason "error",
    then `on_failure` is called once, with an error that names the rank and shows its last lines. `name`: the engine's,
    where there are several; it is part of errors and of the ranks' signs of life. Logs go to `run_dir`, temporary files
    (mpirun's, too) to a folder in `scratch_dir`.

    Raises:
        EngineError: the directory holds no cpu engine.
        ToolError: mpirun is missing, or a rank died while loading.
    """

    def __init__(
        self,
        engine_dir: Path,
        *,
        max_batch_size: int | None = None,
        max_tokens_in_paged_kv_cache: int | None = None,
        executor: str = "",
        run_dir: Path | None = None,
        scratch_dir: Path | None = None,
        name: str = "",
        on_failure: Callable[[ToolError], None] | None = None,
    ) -> None:
        self._info, self._name = read_engine(engine_dir), name
        self._scratch = Path(tempfile.mkdtemp(prefix="trtbuild-", dir=scratch_dir))  # a socket's path must be short
        self._run_dir = run_dir or self._scratch
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._callbacks: dict[str, Callable[[Output], None]] = {}
        self._asking = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self._answer: dict[str, int] | None = None
        self._refusal = ""
        self._closing = False
        self.failure: ToolError | None = None
        options = RuntimeOptions(max_batch_size, max_tokens_in_paged_kv_cache, executor)
        with ExitStack() as unfinished:
            unfinished.callback(self._end)
            self._connection = self._start(options)
            self._lines = self._read_lines()
            self.ready = self._first_line()
            unfinished.pop_all()
        self._reader = threading.Thread(target=self._dispatch, daemon=True, name="rank-group")
        self._reader.start()

    @property
    def session(self) -> int:
        """The process session that holds all ranks, and mpirun where there is one."""
        return self._process.pid

    def submit(self, request: Request, on_output: Callable[[Output], None]) -> None:
        """Queue a request; `on_output` is called on the reader's thread with every output, the last one final.

        Raises:
            RequestError: the engine cannot serve it, or the id is in use. ToolError: the ranks are gone.
        """
        check_request(request, self.ready["vocab_size"], self.ready["max_seq_len"])
        with self._lock:
            if self.failure:
                raise self.failure
            if request.request_id in self._callbacks:
                raise RequestError(f"request id {request.request_id!r} is in use")
            self._callbacks[request.request_id] = on_output
            self._send({"submit": request.to_json()})

    def cancel(self, request_id: str) -> None:
        """Stop a request; its last output says "cancelled". Unknown ids are no error: it may just have ended."""
        with self._lock:
            if request_id in self._callbacks:
                self._send({"cancel": request_id})

    def stats(self) -> dict[str, int]:
        """Counters of the runtime at this moment (see `Generator.stats`)."""
        return self._ask({"stats": True})

    def score(self, tokens: Sequence[int]) -> NDArray[Any]:
        """Logits after every one of `tokens`, float32 [len(tokens), vocab_size]."""
        import numpy as np

        path = self._scratch / "score.npy"
        self._ask({"score": list(tokens), "path": str(path)})
        logits: NDArray[Any] = np.load(path)
        path.unlink()
        return logits

    def _ask(self, question: dict[str, Any]) -> dict[str, int]:
        with self._asking, self._answered:
            self._answer = None
            self._send(question)
            self._answered.wait_for(lambda: self._answer is not None or self.failure is not None, _ANSWER_TIMEOUT_S)
            if self._answer is None:
                raise self.failure or ToolError(f"the ranks did not answer within {_ANSWER_TIMEOUT_S:.0f} s")
            if self._refusal:
                raise RequestError(self._refusal)
            return self._answer

    def close(self) -> None:
        """End all ranks; open requests get no further output."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._send({"stop": True})
        self._reader.join(5.0)
        self._end()

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _start(self, options: RuntimeOptions) -> socket.socket:
        """Start the ranks and wait for rank 0 to call back."""
        job = self._scratch / "job.json"
        address = str(self._scratch / "leader.sock")
        engine_dir = str(self._info.directory.resolve())
        document = {"engine_dir": engine_dir, "run_dir": str(self._run_dir), "socket": address, "name": self._name}
        job.write_text(json.dumps({**document, "options": asdict(options)}))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(1)
            argv = [sys.executable, "-m", "trtbuild.runtime.rank", str(job)]
            world, log = self._info.mapping().world_size, self._run_dir / LAUNCHER_LOG
            self._process = mpi.start_ranks(argv, world, log=log, temporary=self._scratch)
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not select.select([listener], [], [], 0.05)[0]:
                if self._process.poll() is not None:
                    raise self._job_failure("starting the engine")
                if time.monotonic() > deadline:
                    raise ToolError(
                        f"the ranks were not ready within {_START_TIMEOUT_S:.0f} s", hint=f"Logs: {self._run_dir}"
                    )
            return listener.accept()[0]

    def _read_lines(self) -> Iterator[dict[str, Any]]:
        try:
            for line in self._connection.makefile("rb"):
                yield json.loads(line)
        except (OSError, ValueError):  # a line that a killed rank did not finish is the end as well
            return

    def _first_line(self) -> dict[str, int]:
        """What rank 0 says when all ranks are loaded."""
        for document in self._lines:
            return dict(document["ready"])
        raise self._job_failure("starting the engine")

    def _dispatch(self) -> None:
        for document in self._lines:
            if "output" in document:
                self._deliver(Output.from_json(document["output"]))
            else:
                with self._answered:
                    self._answer, self._refusal = document["answer"], document.get("refused", "")
                    self._answered.notify_all()
        with self._lock:
            if self._closing:
                return
        self._fail()

    def _deliver(self, output: Output) -> None:
        with self._lock:
            callback = self._callbacks.get(output.request_id)
            if output.finish_reason:
                self._callbacks.pop(output.request_id, None)
        if callback:
            try:
                callback(output)
            except (RuntimeError, ValueError, OSError) as error:  # its receiver is broken; the others go on
                print(f"output of request {output.request_id} could not be delivered: {error}", flush=True)
                self.cancel(output.request_id)

    def _fail(self) -> None:
        failure = self._job_failure("serving")
        with self._answered:
            self.failure = failure
            orphans, self._callbacks = self._callbacks, {}
            self._answered.notify_all()
        for request_id, callback in orphans.items():
            callback(Output(request_id, finish_reason="error", error=failure.message))
        if self._on_failure:
            self._on_failure(failure)

    def _job_failure(self, what: str) -> ToolError:
        what = f"{what} {self._name}" if self._name else what
        return mpi.job_failure(
            self._process, self._run_dir, self._run_dir / LAUNCHER_LOG, what, self._info.mapping().world_size
        )

    def _send(self, document: dict[str, Any]) -> None:
        try:
            self._connection.sendall(json.dumps(document).encode() + b"\n")
        except OSError:
            return  # the reader sees the end of the connection and reports why

    def _end(self) -> None:
        if hasattr(self, "_process"):
            mpi.stop_ranks(self._process)
        if hasattr(self, "_connection"):
            self._connection.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
