"""A generation -> the request message that both clients send, and the channels that they send it on."""

from __future__ import annotations

import json
from typing import Any

from trtbuild.client.options import Reach
from trtbuild.client.payload import Generation, output_names, request_parameters, request_tensors
from trtbuild.errors import ServerError

_CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.primary_user_agent", "trtbuild"),
)


def need_tritonclient() -> None:
    """Raises:
    ServerError: tritonclient is not installed.
    """
    try:
        import tritonclient.grpc  # noqa: F401
    except ImportError as error:
        raise ServerError("tritonclient is not installed", hint="pip install 'trtbuild[client]'") from error


def infer_request(generation: Generation, model: str, request_id: str) -> Any:
    """The ModelInferRequest of a generation; the end is told by an empty response where no other tells it.

    tritonclient's own asyncio client has no way to ask for that response, so the message is made here for both.

    Raises:
        RequestError: values that no server could take. ServerError: tritonclient is not installed.
    """
    tensors = request_tensors(generation)
    need_tritonclient()
    import numpy as np
    from tritonclient.grpc import service_pb2
    from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, kind, rows in tensors:
        values = np.array(rows, dtype=triton_to_np_dtype(kind))
        request.inputs.add(name=name, datatype=kind, shape=values.shape)
        raw = serialize_byte_tensor(values).item() if kind == "BYTES" else values.tobytes()
        request.raw_input_contents.append(raw)
    for name in output_names(generation):
        request.outputs.add(name=name)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for key, value in request_parameters(generation).items():
        request.parameters[key].bool_param = value
    return request


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
    """A configuration as the repository API takes it."""
    return None if config is None else json.dumps(config)
