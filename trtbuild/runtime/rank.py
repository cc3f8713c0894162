"""One rank of a running engine: `python -m trtbuild.runtime.rank JOB.json`, alone or under mpirun.

Rank 0 talks to the process that started the job over a Unix socket, one JSON document a line (`group.py` is the other
end); the other ranks follow rank 0 over MPI. When the socket closes, for whatever reason, the job ends.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from trtbuild import mpi
from trtbuild.errors import RequestError
from trtbuild.mapping import Mapping
from trtbuild.runtime.generator import Generator, follow, load_rank
from trtbuild.runtime.heartbeat import Heartbeat
from trtbuild.runtime.info import RuntimeOptions, default_threads, read_engine
from trtbuild.runtime.request import Output, Request

_DELIVERY_S = 0.002
"""What a token needs from here through Triton's models to a client, when these find a free core."""


class Leader:
    """Rank 0: requests in from the socket, outputs out, steps in between.

    With `crowded` the ranks' threads occupy every core. The next step then starts `_DELIVERY_S` after one that made the
    first token of a request: otherwise the processes that deliver it wait for a core at each hop (0.4 to 4 ms in
    paired runs, 7 in a traced one).
    """

    def __init__(self, generator: Generator, connection: socket.socket, *, crowded: bool = False) -> None:
        self._generator = generator
        self._connection = connection
        self._crowded = crowded
        self._unanswered: set[str] = set()  # requests without a token so far
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def run(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        generator = self._generator
        generator.generate([Request("warm-up", (0,), 1)])  # the first request of a user shall not wait for page faults
        ready = {"vocab_size": generator.vocab_size, "max_seq_len": generator.scheduler.max_seq_len}
        self._send([{"ready": {**ready, **generator.stats()}}])
        while True:
            # With nothing to compute, sleep until something is asked.
            while generator.open_requests == 0 or not self._inbox.empty():
                command = self._inbox.get()
                if "stop" in command:
                    generator.close()
                    return
                self._send(self._answer(command))
            outputs = generator.step()
            self._send([{"output": output.to_json()} for output in outputs])
            answered = self._unanswered.intersection(output.request_id for output in outputs)
            self._unanswered -= answered
            if answered and self._crowded and generator.open_requests:
                time.sleep(_DELIVERY_S)

    def _answer(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        if "submit" in command:
            request = Request.from_json(command["submit"])
            try:
                self._generator.add(request)
            except RequestError as error:
                refusal = Output(request.request_id, finish_reason="error", error=error.message)
                return [{"output": refusal.to_json()}]
            self._unanswered.add(request.request_id)
            return []
        if "cancel" in command:
            self._unanswered.discard(command["cancel"])
            output = self._generator.cancel(command["cancel"])
            return [{"output": output.to_json()}] if output else []
        if "score" in command:
            try:
                np.save(command["path"], self._generator.score(command["score"]))
            except RequestError as error:
                return [{"answer": {}, "refused": error.message}]
        return [{"answer": self._generator.stats()}]

    def _read(self) -> None:
        try:
            for line in self._connection.makefile("rb"):
                self._inbox.put(json.loads(line))
        finally:
            self._inbox.put({"stop": True})

    def _send(self, documents: list[dict[str, Any]]) -> None:
        if documents:
            try:
                self._connection.sendall(b"".join(json.dumps(document).encode() + b"\n" for document in documents))
            except OSError:
                self._inbox.put({"stop": True})


def _crowded(mapping: Mapping) -> bool:
    """Whether the ranks that compute at once have a thread for every core."""
    return mapping.tp_size * default_threads(mapping.tp_size) >= len(os.sched_getaffinity(0))


def main(job_path: Path) -> None:
    job = json.loads(job_path.read_text())
    info = read_engine(Path(job["engine_dir"]))
    options = RuntimeOptions(**job["options"])
    rank, world = 0, None
    if info.mapping().world_size > 1:
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        rank = world.Get_rank()
    mpi.redirect_output(mpi.rank_log(Path(job["run_dir"]), rank))
    print(f"rank {rank} of {info.mapping().world_size}, pid {os.getpid()}: engine {info.directory}", flush=True)
    heartbeat = Heartbeat(rank, job["name"])

    def run() -> None:
        if rank:
            model, _limits = load_rank(info, rank, options, world)
            heartbeat.work = lambda: model.work
            assert world is not None
            world.Barrier()
            follow(model)
        else:
            generator = Generator(info.directory, options, world)
            heartbeat.work, heartbeat.requests = lambda: generator.model.work, lambda: generator.open_requests
            if world is not None:
                world.Barrier()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(job["socket"])
                Leader(generator, connection, crowded=_crowded(info.mapping())).run()
        print("done", flush=True)

    mpi.abort_on_error(run, lambda: world.Abort(1) if world is not None else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
