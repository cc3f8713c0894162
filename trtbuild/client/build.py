"""A generation -> the request message that both clients send, and the channels that they send it on."""

from __future__ import annotations

import json
from typing import Any

from trtbuild.client.forms import Form, check_takes_text
from trtbuild.client.llmapi import llmapi_tensors
from trtbuild.client.options import Reach
from trtbuild.client.payload import Generation, output_names, request_parameters, request_tensors
from trtbuild.errors import RequestError, ServerError

_CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.primary_user_agent", "trtbuild"),
)

_ALWAYS_SENT = ("stream", "streaming", "exclude_input_in_output", "return_num_output_tokens", "return_num_input_tokens",
                "return_finish_reason", "sampling_param_exclude_input_from_output")  # fmt: skip
"""Not chosen by the user: left out where a model does not know them."""


def need_tritonclient() -> None:
    """Raises:
    ServerError: tritonclient is not installed.
    """
    try:
        import tritonclient.grpc  # noqa: F401
    except ImportError as error:
        raise ServerError("tritonclient is not installed", hint="pip install 'trtbuild[client]'") from error


def infer_request(generation: Generation, model: str, request_id: str, form: Form) -> Any:
    """The ModelInferRequest of a generation; the end is told by an empty response where no other tells it.

    tritonclient's own asyncio client has no way to ask for that response, so the message is made here for both.

    Raises:
        RequestError: values that no server could take, and what this model has no input for. ServerError: tritonclient
        is not installed.
    """
    check_takes_text(form, model)
    tensors = llmapi_tensors(generation) if form.llmapi else request_tensors(generation)
    unknown = [name for name, _, _ in tensors if name not in form.inputs and name not in _ALWAYS_SENT]
    unknown += [name for name in generation.tensors if name not in form.inputs]
    if unknown and form.known:
        raise RequestError(f"the model {model} has no input for {', '.join(unknown)}")
    request = _request(model, request_id)
    for name, kind, rows in tensors:
        if (name in form.inputs or not form.known) and name not in generation.tensors:
            _add(request, name, kind, rows if form.batched else rows[0])
    for name, values in generation.tensors.items():
        _add(request, name, form.inputs.get(name, ""), values)
    for name in output_names(generation, form):
        request.outputs.add(name=name)
    for key, value in ({} if form.llmapi else request_parameters(generation)).items():
        request.parameters[key].bool_param = value
    return request


def stop_request(model: str, request_id: str, form: Form) -> Any:
    """Upstream's way to cancel a request of anyone: another one with its id and `stop`.

    Raises:
        RequestError: the model has no such input.
    """
    if form.known and "stop" not in form.inputs:
        hint = "Ask the model of the engine (tensorrt_llm), or that of a llmapi repository."
        raise RequestError(f"the model {model} has no input to stop a request by", hint=hint)
    request = _request(model, request_id)
    tensors: list[tuple[str, str, Any]] = [("stop", "BOOL", True), ("text_input", "BYTES", b"-")]
    tensors += [(name, "INT32", 1) for name in ("input_ids", "input_lengths", "request_output_len")]
    for name, kind, value in tensors:
        if name in form.inputs or (not form.known and name != "text_input"):
            _add(request, name, kind, [[value]] if form.batched else [value])
    return request


def _request(model: str, request_id: str) -> Any:
    need_tritonclient()
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def _add(request: Any, name: str, kind: str, cells: Any) -> None:
    """One input tensor; without `kind` it is that of the values.

    Raises:
        RequestError: the values are not of that kind.
    """
    import numpy as np
    from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

    kind = kind or np_to_triton_dtype(np.asarray(cells).dtype)
    try:
        values = np.array(cells, dtype=triton_to_np_dtype(kind))
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"{name} is not made of {kind}: {error}") from error
    request.inputs.add(name=name, datatype=kind, shape=values.shape)
    raw = (serialize_byte_tensor(values).item() if values.size else b"") if kind == "BYTES" else values.tobytes()
    request.raw_input_contents.append(raw)


def channel(grpc: Any, url: str, reach: Reach) -> Any:
    """A channel of `grpc` or `grpc.aio` to a server."""
    if reach.tls is None:
        return grpc.insecure_channel(url, options=_CHANNEL)
    import grpc as plain

    names = ("root_certificates", "private_key", "certificate_chain")
    try:
        files = [None if path is None else path.read_bytes() for path in (getattr(reach.tls, name) for name in names)]
    except OSError as error:
        raise ServerError(f"cannot read a certificate: {error}") from error
    return grpc.secure_channel(url, plain.ssl_channel_credentials(*files), options=_CHANNEL)


def metadata(reach: Reach) -> tuple[tuple[str, str], ...]:
    """Headers as gRPC takes them: names in lower case."""
    return tuple((name.lower(), value) for name, value in reach.headers.items())


def config_text(config: dict[str, Any] | None) -> str | None:
    """A configuration as the repository API takes it.

    What is None is not set, as `config()` gives it; a server that is older than tritonclient may not know the field.
    """

    def given(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: given(each) for key, each in value.items() if each is not None}
        return [given(each) for each in value] if isinstance(value, list) else value

    return None if config is None else json.dumps(given(config))
