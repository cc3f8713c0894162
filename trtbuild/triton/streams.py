"""One request to the cpu engine: outputs of the runtime -> responses of `tensorrt_llm`, one if it is not decoupled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from trtbuild.runtime.request import Output, Request
from trtbuild.triton.call import Call
from trtbuild.triton.request import Parsed, Row


class Stream:
    """The answers of one request; N prompts with M sequences each are N x M requests of the runtime."""

    def __init__(
        self,
        pb: Any,
        parsed: Parsed,
        sender: Any,
        on_end: Callable[[Stream], None],
        next_id: Callable[[], int],
        *,
        decoupled: bool = True,
    ) -> None:
        self._pb = pb
        self._parsed = parsed
        self._call = Call(pb, sender, decoupled=decoupled)
        self._on_end = on_end
        self._lock = threading.Lock()
        self.rows = [_RowState(row, next_id()) for row in parsed.rows]
        self._left = len(self.rows)

    def requests(self) -> list[Request]:
        """What to submit; the ids are unique, unlike Triton's."""
        return [
            Request(
                state.runtime_id, state.row.prompt_ids, state.row.max_new_tokens, state.row.end_id, state.row.sampling
            )
            for state in self.rows
        ]

    def on_output(self, state: _RowState, output: Output) -> None:
        """Callback of the runtime."""
        with self._lock:
            state.take(output)
            if output.finish_reason:
                self._left -= 1
            if output.finish_reason == "error":
                self._call.fail(output.error)
            elif self._call.abandoned:
                if not self._left:
                    self._call.finish()
            elif output.finish_reason or self._parsed.streaming:
                self._answer(state, final=output.finish_reason is not None)
            ended = not self._left
        if ended:
            self._on_end(self)

    def fail(self, message: str) -> None:
        """End with an error before or instead of the runtime's outputs."""
        self._call.fail(message)

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits any more: the client left, or the answer ended in an error."""
        return self._call.abandoned

    def client_left(self) -> bool:
        """True once, when the client has cancelled or is gone."""
        return not self._call.abandoned and self._call.client_left()

    def _answer(self, state: _RowState, *, final: bool) -> None:
        tensors = self._tensors(state, final)
        state.sent()
        self._call.send(tensors, final=final and not self._left)

    def _tensors(self, state: _RowState, final: bool) -> list[Any]:
        import numpy as np

        parsed = self._parsed
        echo = not parsed.streaming and not parsed.exclude_input
        ids = [*state.row.prompt_ids, *state.token_ids] if echo else state.token_ids
        values: dict[str, Any] = {
            "output_ids": np.array([[ids]], dtype=np.int32).reshape(1, 1, len(ids)),
            "sequence_length": np.array([[len(ids)]], dtype=np.int32),
            "STREAM_ID": np.array([[state.stream_id]], dtype=np.uint64),
            "IS_FINAL": np.array([[final]], dtype=np.bool_),
        }
        if parsed.return_log_probs:
            values["cum_log_probs"] = np.array([[state.cum_log_prob]], dtype=np.float32)
            values["output_log_probs"] = np.array(state.log_probs, dtype=np.float32).reshape(1, 1, -1)
        if parsed.name_batch:
            values["batch_index"] = np.array([[state.row.batch]], dtype=np.int32)
        if parsed.name_sequence:
            values["sequence_index"] = np.array([[state.row.number]], dtype=np.int32)
        if parsed.return_num_input_tokens:
            values["num_input_tokens"] = np.array([[len(state.row.prompt_ids)]], dtype=np.int32)
        if parsed.return_num_output_tokens:
            values["num_output_tokens"] = np.array([[len(state.token_ids)]], dtype=np.int32)
        return [self._pb.Tensor(name, value) for name, value in values.items()]


class _RowState:
    """Tokens of one sequence that were generated and not sent yet."""

    def __init__(self, row: Row, stream_id: int) -> None:
        self.row = row
        self.stream_id = stream_id
        self.runtime_id = f"{self.stream_id:016x}"
        self.token_ids: list[int] = []
        self.log_probs: list[float] = []
        self.cum_log_prob = 0.0

    def take(self, output: Output) -> None:
        self.token_ids.extend(output.token_ids)
        self.log_probs.extend(output.log_probs)
        self.cum_log_prob += sum(output.log_probs)

    def sent(self) -> None:
        self.token_ids, self.log_probs = [], []
