"""EDGE: one real token out of every model that takes text, the proof that a server is ready."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from trtbuild.errors import ServerError, TrtbuildError

_PROMPT = "1"
_TEXT = {"text_input", "max_tokens"}
_LLMAPI = {"text_input", "sampling_param_max_tokens"}
"""Of upstream's model for the LLM class (TensorRT-LLM 1.2: all_models/llmapi), whose answer counts no tokens."""


class FirstToken:
    """Generates one token with each model that takes text, on its own thread.

    `done`: it came. `error`: why it did not. `models`: those that were asked; none where no model takes text.
    """

    def __init__(self, host: str, grpc_port: int, deadline_s: float) -> None:
        self._url = f"[{host}]:{grpc_port}" if ":" in host else f"{host}:{grpc_port}"
        self._deadline_s = deadline_s
        self.models: tuple[str, ...] = ()
        self.error: TrtbuildError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="first-token")
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        with ExitStack() as stack:
            stack.push(self._failed)
            self._ask()

    def _failed(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        """Whatever it was, no token came: a thread that just ended would look like success."""
        if isinstance(error, TrtbuildError):
            self.error = error
        elif error is not None:
            self.error = ServerError(f"asking for it failed: {type(error).__name__}: {error}")
        return True

    def _ask(self) -> None:
        from trtbuild.client import Client, Generation, Reach

        with Client(self._url, reach=Reach(timeout_s=self._deadline_s, stall_s=self._deadline_s)) as client:
            names = dict.fromkeys(str(entry["name"]) for entry in client.index() if entry.get("state") == "READY")
            inputs = {name: _shapes(client.metadata(name)) for name in names}
            self.models = tuple(
                name for name in names if inputs[name].keys() >= _TEXT or inputs[name].keys() >= _LLMAPI
            )
            for name in self.models:
                if inputs[name].keys() >= _LLMAPI:
                    self._ask_llmapi(name, inputs[name])
                    continue
                answer = client.infer(Generation(_PROMPT, max_tokens=1, end_id=-1, stream=False), model=name)
                if answer.token_count != 1:
                    raise ServerError(f"model {name} answered with {answer.token_count} tokens where one was asked for")

    def _ask_llmapi(self, model: str, inputs: Mapping[str, int]) -> None:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        answered = False
        with grpc.insecure_channel(self._url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                for response in stub.ModelStreamInfer(
                    iter((_llmapi_request(model, inputs),)), timeout=self._deadline_s
                ):
                    if response.error_message:
                        raise ServerError(f"model {model}: {response.error_message}")
                    answer = response.infer_response
                    answered = answered or any(output.name == "text_output" for output in answer.outputs)
                    if answer.parameters["triton_final_response"].bool_param:
                        break
            except grpc.RpcError as error:
                raise ServerError(f"model {model}: {error.code().name}: {error.details()}") from error
        if not answered:
            raise ServerError(f"model {model} answered without text")


def _shapes(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Inputs of a model -> number of dimensions, that of batches included."""
    return {str(entry["name"]): len(entry["shape"]) for entry in metadata["inputs"]}


def _llmapi_request(model: str, inputs: Mapping[str, int]) -> Any:
    """One token after the prompt, in one piece."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model, id="first-token")
    prompt = len(_PROMPT).to_bytes(4, "little") + _PROMPT.encode()  # Triton's form of a string
    tensors = {"text_input": ("BYTES", prompt), "sampling_param_max_tokens": ("INT32", (1).to_bytes(4, "little"))}
    for name, (kind, content) in tensors.items():
        request.inputs.add(name=name, datatype=kind, shape=[1] * inputs[name])
        request.raw_input_contents.append(content)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request
