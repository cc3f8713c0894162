"""The form that an importer fills in: what a ready-made quantized model consists of, and what it becomes. PURE.

An importer is a file beside this one. It reads `quantization_config` and gives one `Import`: a declaration that the
plan works with (no weight is read), and `read`, the arithmetic from one linear's tensors to logical fields.
Legend: g = group size; a linear is spoken of as [out, in].
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trtbuild.quantize.method import Fields

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
FLOATS = ("F32", "F16", "BF16")
SCALAR: tuple[Shape, ...] = ((), (1,))


@dataclass(frozen=True)
class Part:
    """One tensor that a linear is made of: `suffix` after the linear's name, and what it must look like.

    `shapes`: (out, in) -> shapes that are right. `optional`: may be absent.
    """

    suffix: str
    dtypes: tuple[str, ...]
    shapes: Callable[[int, int], tuple[Shape, ...]]
    optional: bool = False


@dataclass(frozen=True)
class Import:
    """How one quantized model is read.

    `methods`: names of the methods whose fields hold the model's numbers as they are; the first is the default. Empty
    where TensorRT-LLM has no such form, and `why` says so. `parts[0]` tells a quantized linear; `size` gives its
    (out, in) from that tensor's shape. `plain`: whether a conversion to plain weights reads them elsewhere
    (`checkpoint/quantized_source.py`), block by block. `problems` make the model unreadable. `layers`: where linears
    are quantized in different ways, the import of each by its name; those not there are plain.
    """

    format: str
    methods: tuple[str, ...] = ()
    why: str = ""
    parts: tuple[Part, ...] = ()
    size: Callable[[Shape], tuple[int, int]] = lambda shape: (shape[0], shape[1])
    read: Callable[[Dict[str, torch.Tensor]], Fields] = dict
    group_size: int = 128
    kv_cache: str | None = None
    plain: bool = False
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    config: Dict[str, Any] = field(default_factory=dict)
    """The quantization_config, for the manifest."""
    layers: Dict[str, Import] = field(default_factory=dict)

    def of(self, linear: str) -> Import:
        """How a linear of that name is read, which is quantized."""
        return self.layers.get(linear, self)


def same_shape(out: int, inputs: int) -> tuple[Shape, ...]:
    return ((out, inputs),)


def scalar(_out: int, _inputs: int) -> tuple[Shape, ...]:
    return SCALAR


def per_output(out: int, _inputs: int) -> tuple[Shape, ...]:
    return ((out, 1), (out,))


def per_input(_out: int, inputs: int) -> tuple[Shape, ...]:
    return ((inputs,), (1, inputs))
