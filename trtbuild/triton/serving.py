"""The cpu side of `tensorrt_llm`: Triton requests in, the runtime's ranks behind, metrics and cancellation beside."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trtbuild.errors import ToolError, TrtbuildError
from trtbuild.handover import DRAINING, FAILURE_FILE, LOG_DIR_ENV, Gate, engine_label, run_directory, scratch_directory
from trtbuild.runtime.group import RankGroup
from trtbuild.runtime.request import Output
from trtbuild.triton.hangup import HangupListener
from trtbuild.triton.request import Limits, Parsed, parse_tensors
from trtbuild.triton.streams import Stream


def engine_of_version(parameters: Mapping[str, str], version_folder: Path) -> Path:
    """The engine directory of a version: what its engine.json says, else the model's gpt_model_path."""
    path = version_folder / "engine.json"
    document = json.loads(path.read_text()) if path.is_file() else parameters
    return Path(document["gpt_model_path"])


class Serving:
    """One engine under Triton. `execute` is called by the Python backend, everything else by own threads."""

    def __init__(self, pb: Any, config: Mapping[str, Any], version_folder: Path) -> None:
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        self._pb = pb
        self._streams: dict[str, list[Stream]] = {}  # Triton's request id -> its streams
        self._by_id: dict[int, tuple[Stream, str]] = {}  # STREAM_ID -> stream and runtime id
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        engine = engine_of_version(parameters, version_folder)
        self._limits = _limits(engine, decoupled, parameters.get("out_of_vocabulary_ids") == "wrap")
        self._exclude_input = parameters.get("exclude_input_in_output", "").lower() in ("true", "1")
        self._period = float(parameters.get("cancellation_check_period_ms") or 100) / 1000
        self._run_dir, logs = run_directory(), os.environ.get(LOG_DIR_ENV)
        self._gate = Gate()
        tokens = parameters.get("max_tokens_in_paged_kv_cache")
        label = engine_label(config["name"], version_folder.name)
        try:
            self._group = RankGroup(
                engine,
                max_tokens_in_paged_kv_cache=int(tokens) if tokens else None,
                run_dir=Path(logs) / label if logs else None,  # other engines have ranks of the same numbers
                scratch_dir=scratch_directory(),
                name=label,
                on_failure=self._on_failure,
            )
        except ToolError as error:
            self._on_failure(error)
            raise
        try:
            self._hangups = HangupListener(self._on_hangup)
        except OSError:
            self._group.close()
            raise
        threading.Thread(target=self._poll_clients, daemon=True, name="clients").start()

    def execute(self, request_id: str, tensors: Mapping[str, Any], sender: Any) -> None:
        """Take one request; its answers go to `sender`, now or later."""
        try:
            parsed = parse_tensors(tensors, self._limits, exclude_input_default=self._exclude_input)
        except TrtbuildError as error:
            self._refuse(sender, error.message)
            return
        if parsed.stop:
            self._stop(request_id, sender)
        elif self._gate.closed:
            self._refuse(sender, DRAINING, self._pb.TritonError.UNAVAILABLE)
        else:
            self._start(request_id, parsed, sender)

    def stats(self) -> dict[str, int]:
        return self._group.stats()

    def close(self) -> None:
        self._stopping.set()
        self._hangups.close()
        self._group.close()

    def _start(self, request_id: str, parsed: Parsed, sender: Any) -> None:
        stream = Stream(
            self._pb,
            parsed,
            sender,
            lambda ended: self._forget(request_id, ended),
            self._hangups.next_id,
            decoupled=self._limits.decoupled,
        )
        with self._lock:
            self._streams.setdefault(request_id, []).append(stream)
            for state in stream.rows:
                self._by_id[state.stream_id] = (stream, state.runtime_id)
        for state, request in zip(stream.rows, stream.requests(), strict=True):
            try:
                self._group.submit(request, _callback(stream, state))
            except TrtbuildError as error:
                stream.fail(error.message)
                self._cancel(stream)
                self._forget(request_id, stream)
                return
        if stream.abandoned:  # the client left before there was anything to cancel
            self._cancel(stream)

    def _stop(self, request_id: str, sender: Any) -> None:
        """Upstream's way to cancel: a second request with the same id and `stop`; an unknown id is no error."""
        if not request_id:
            self._refuse(sender, "Trying to stop a request but request ID is not provided")
            return
        with self._lock:
            streams = list(self._streams.get(request_id, ()))
        for stream in streams:
            self._cancel(stream)
        final = self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if self._limits.decoupled:
            sender.send(flags=final)
        else:
            sender.send(self._pb.InferenceResponse(output_tensors=[]), flags=final)

    def _refuse(self, sender: Any, message: str, code: Any = None) -> None:
        error = self._pb.TritonError(message, self._pb.TritonError.INVALID_ARG if code is None else code)
        response = self._pb.InferenceResponse(output_tensors=[], error=error)
        sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _cancel(self, stream: Stream) -> None:
        for state in stream.rows:
            self._group.cancel(state.runtime_id)

    def _forget(self, request_id: str, stream: Stream) -> None:
        with self._lock:
            streams = [s for s in self._streams.pop(request_id, ()) if s is not stream]
            if streams:
                self._streams[request_id] = streams
            for state in stream.rows:
                self._by_id.pop(state.stream_id, None)

    def _on_hangup(self, stream_id: int) -> None:
        with self._lock:
            _stream, runtime_id = self._by_id.get(stream_id, (None, ""))
        if runtime_id:
            self._group.cancel(runtime_id)

    def _poll_clients(self) -> None:
        """Direct clients that cancelled or disconnected; Triton only answers when asked."""
        while not self._stopping.wait(self._period):
            with self._lock:
                streams = [stream for group in self._streams.values() for stream in group]
            for stream in streams:
                if stream.client_left():
                    self._cancel(stream)

    def _on_failure(self, error: ToolError) -> None:
        """Leave the reason where `trtbuild serve` looks; it ends the server then. The first engine to fail tells."""
        if self._run_dir is None or (self._run_dir / FAILURE_FILE).exists():
            return
        document = {"message": str(error.args[0]) if error.args else error.message, "hint": error.hint}
        whole = self._run_dir / f"{FAILURE_FILE}.{os.getpid()}"
        whole.write_text(json.dumps(document))
        whole.rename(self._run_dir / FAILURE_FILE)


def _limits(engine: Path, decoupled: bool, wrap: bool) -> Limits:
    config = json.loads((engine / "config.json").read_text())
    build = config["build_config"]
    return Limits(
        int(build["max_input_len"]),
        int(build["max_seq_len"]),
        int(build["max_batch_size"]),
        decoupled,
        int(config["pretrained_config"]["vocab_size"]) if wrap else 0,
    )


def _callback(stream: Stream, state: Any) -> Callable[[Output], None]:
    return lambda output: stream.on_output(state, output)
