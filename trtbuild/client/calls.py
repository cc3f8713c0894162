"""The small questions to a server, as data: sync.py and aio.py ask them in their own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """A method of Triton's gRPC service, its request, how its answer is read, and whether asking twice does no harm."""

    method: str
    request: Any
    read: Callable[[Any], Any]
    repeatable: bool = True


def as_dict(message: Any) -> dict[str, Any]:
    """A protobuf message with every field by its own name; numbers stay numbers, enums are names.

    protobuf's own JSON writes 64-bit numbers as strings and leaves zeros out.
    """
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Any, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {key: _value(item, inner) for key, item in sorted(value.items())}
    if isinstance(value, str | bytes | int | float):
        return _value(value, field)
    if hasattr(value, "DESCRIPTOR"):
        return as_dict(value) if message.HasField(field.name) else None
    return [_value(item, field) for item in value]


def _value(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return as_dict(value)
    return field.enum_type.values_by_number[value].name if field.enum_type is not None else value


def live() -> Call:
    return Call("ServerLive", _messages().ServerLiveRequest(), lambda answer: bool(answer.live))


def ready() -> Call:
    return Call("ServerReady", _messages().ServerReadyRequest(), lambda answer: bool(answer.ready))


def model_ready(name: str) -> Call:
    return Call("ModelReady", _messages().ModelReadyRequest(name=name), lambda answer: bool(answer.ready))


def metadata(name: str) -> Call:
    if name:
        return Call("ModelMetadata", _messages().ModelMetadataRequest(name=name), as_dict)
    return Call("ServerMetadata", _messages().ServerMetadataRequest(), as_dict)


def config(name: str) -> Call:
    return Call("ModelConfig", _messages().ModelConfigRequest(name=name), lambda answer: as_dict(answer.config))


def statistics(name: str) -> Call:
    request = _messages().ModelStatisticsRequest(name=name)
    return Call("ModelStatistics", request, lambda answer: [as_dict(model) for model in answer.model_stats])


def index() -> Call:
    request = _messages().RepositoryIndexRequest()
    return Call("RepositoryIndex", request, lambda answer: [as_dict(model) for model in answer.models])


def load(name: str, config_json: str | None) -> Call:
    request = _messages().RepositoryModelLoadRequest(model_name=name)
    if config_json is not None:
        request.parameters["config"].string_param = config_json
    return Call("RepositoryModelLoad", request, lambda _: None, repeatable=False)


def unload(name: str) -> Call:
    request = _messages().RepositoryModelUnloadRequest(model_name=name)
    return Call("RepositoryModelUnload", request, lambda _: None, repeatable=False)


def _messages() -> Any:
    from trtbuild.client.build import need_tritonclient

    need_tritonclient()
    from tritonclient.grpc import service_pb2

    return service_pb2
