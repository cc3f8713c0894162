"""Fields of a quantized linear in a TensorRT-LLM checkpoint -> the tensors of an engine (`runtime/forms.py`).

n outputs, k inputs, g inputs of a group, E experts in front where they are stacked. Formats: checkpoint format 4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trtbuild.errors import CheckpointError, EngineError
from trtbuild.float8 import e4m3
from trtbuild.quantize.packing import two_rows, undo_mixed_gemm
from trtbuild.quantize.values import symmetric
from trtbuild.runtime.forms import SQ_TOKEN, Form, layout_sm
from trtbuild.runtime.int4 import pack_int4
from trtbuild.runtime.ops import Weight

if TYPE_CHECKING:
    from safetensors import safe_open as Source

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Fields = dict[str, torch.Tensor]
Shape = tuple[int, ...]
_NAN_E4M3 = 0x7F


class RankFile:
    """Tensors of a rank's checkpoint file, each checked when it is read."""

    def __init__(self, source: Source, path: Path, config: dict[str, Any]) -> None:
        self._source, self._held = source, set(source.keys())
        self.path, self.config = path, config
        self.dtype = DTYPES[config["dtype"]]

    def require(self, *names: str) -> None:
        missing = [name for name in names if name not in self._held]
        if missing:
            hint = "`trtbuild check` compares all tensors with config.json."
            raise CheckpointError(f"{self.path} lacks {', '.join(missing)}", hint=hint)

    def has(self, name: str) -> bool:
        return name in self._held

    def get(self, name: str, *shapes: Shape, dtypes: tuple[torch.dtype, ...] = ()) -> torch.Tensor:
        """A tensor of one of `shapes` and of one of `dtypes` (any where none is given), as it is stored.

        Raises:
            CheckpointError: it is missing, is another one, or holds NaN or infinity.
        """
        self.require(name)
        tensor: torch.Tensor = self._source.get_tensor(name)
        if shapes and tuple(tensor.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise CheckpointError(f"{self.path}: {name} has shape {tuple(tensor.shape)}, expected {expected}")
        if dtypes and tensor.dtype not in dtypes:
            raise CheckpointError(f"{self.path}: {name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
        if tensor.dtype is torch.float8_e4m3fn:
            whole = not bool(((tensor.view(torch.uint8) & _NAN_E4M3) == _NAN_E4M3).any())
        else:
            whole = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
        if not whole:
            raise CheckpointError(f"{self.path}: {name} holds NaN or infinity")
        return tensor

    def bits(self, name: str, *shapes: Shape) -> torch.Tensor:
        """The bytes of a tensor of one of `shapes`, int8 [.., bytes of a row], whatever dtype they were given."""
        self.require(name)
        tensor: torch.Tensor = self._source.get_tensor(name).view(torch.int8)
        if tuple(tensor.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise CheckpointError(f"{self.path}: {name} has bytes {tuple(tensor.shape)}, expected {expected}")
        return tensor

    def scales(self, name: str, *shapes: Shape, zero: bool = True) -> torch.Tensor:
        """Scales in float32: none negative, and none 0 unless `zero`."""
        scale = self.get(name, *shapes).float()
        wrong = scale < 0 if zero else scale <= 0
        if bool(wrong.any()):
            what = "negative" if zero else "zero or negative"
            raise CheckpointError(
                f"{self.path}: {name} has {int(wrong.sum())} of {scale.numel()} scales that are {what}, "
                f"the least {float(scale.min()):g}",
                hint="Quantize the model again.",
            )
        return scale


def engine_fields(file: RankFile, weight: Weight, form: Form) -> Fields:
    """The engine's tensors of a quantized linear, by their suffixes.

    Raises:
        CheckpointError: a field is missing, has another shape, or numbers that cannot be.
        EngineError: what this runtime cannot execute of it.
    """
    *lead, n, k = weight.shape
    shape = (*lead, n // len(weight.sources), k)
    parts = [_READ[form.algo](file, source.removesuffix("weight"), shape, form) for source in weight.sources]
    made = {suffix: _joined([part[suffix] for part in parts]) for suffix in parts[0]}
    if form.bits == 4:
        made["weight"] = pack_int4(made["weight"])
    return {suffix: tensor.contiguous() for suffix, tensor in made.items()}


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Parts of a stack below each other; inputs of stacked linears are never prepared by numbers of their own."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _weight_only(file: RankFile, base: str, shape: Shape, form: Form) -> Fields:
    """Plain weights that are quantized here, or upstream's finished ones (checkpoint format 4.2)."""
    *lead, n, k = shape
    weight = file.get(f"{base}weight")
    if weight.dtype is torch.int8:
        q = _from_layout(file.bits(f"{base}weight", (*lead, k, n * form.bits // 8)), form.bits, file.config)
        scale = file.scales(f"{base}per_channel_scale", (*lead, n))
        _require_dead(file, f"{base}per_channel_scale", q.unsqueeze(-2), scale.unsqueeze(-1))
        return {"weight": q, "per_channel_scale": scale}
    weight = file.get(f"{base}weight", shape, dtypes=tuple(DTYPES.values())).view(-1, n, k)
    q, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(weight.shape[:2])
    for expert, own in enumerate(weight):  # one at a time: the formula works on a float32 copy
        q[expert], scale[expert] = symmetric(own, form.bits)
    # Upstream stores the scale in the model's dtype but divides by the exact one.
    return {"weight": q.view(shape), "per_channel_scale": scale.to(file.dtype).float().view(*lead, n)}


def _awq(file: RankFile, base: str, shape: Shape, form: Form) -> Fields:
    """Two consecutive outputs share a byte, the even one in the low nibble (4.3)."""
    *lead, n, k = shape
    fields = {"weight": two_rows(file.bits(f"{base}weight", (*lead, n // 2, k)))}
    fields["per_channel_scale"] = file.scales(f"{base}weights_scaling_factor", (*lead, n, k // form.group), zero=False)
    return {**fields, **(_prequant(file, base, shape) if form.prequant else {})}


def _w4a8(file: RankFile, base: str, shape: Shape, form: Form) -> Fields:
    """The tensor cores multiply in fp8: int4 times its scale is rounded to e4m3, on the grid of the second scale (4.4).

    So the engine holds what they multiply, in 8 bits.
    """
    *lead, n, k = shape
    q = two_rows(file.bits(f"{base}weight", (*lead, n // 2, k)))
    second = file.scales(f"{base}weights_scaling_factor_2", (), (*lead, 1), zero=False)
    scale = file.scales(f"{base}weights_scaling_factor", zero=False)
    groups = scale.shape[-1] if scale.dim() else 0
    if tuple(scale.shape) != (*lead, n, groups) or not groups or k % groups:
        what = f"weights_scaling_factor has shape {tuple(scale.shape)}"
        raise CheckpointError(f"{file.path}: {base}{what}, expected {(*lead, n)} and a divisor of {k}")
    # Upstream keeps the quotient as float16, whatever the model's dtype.
    relative = (scale / second.reshape(*lead, 1, 1)).half().float()
    ratio = (q.unflatten(-1, (groups, -1)) * relative.unsqueeze(-1)).flatten(-2)
    return {
        "weight": e4m3(ratio),
        "per_channel_scale": second.reshape(*lead, 1).expand(*lead, n),
        **_prequant(file, base, shape),
        **_act_scale(file, base, lead),
    }


def _gptq(file: RankFile, base: str, shape: Shape, form: Form) -> Fields:
    """Finished tensors: weight [k, n] as bytes in the layout of one SM, scales and zeros [k / g, n] (4.5)."""
    n, k = shape
    weight, groups = file.bits(f"{base}weight", (k, n * form.bits // 8)), (k // form.group, n)
    q = _from_layout(weight, form.bits, file.config)
    scale, zero = file.scales(f"{base}weights_scaling_factor", groups).T, file.get(f"{base}zero", groups).float().T
    _require_dead(file, f"{base}weights_scaling_factor", q.unflatten(1, (groups[0], -1)), scale, zero)
    return {"weight": q, "per_channel_scale": scale, "zero": zero}


def _fp8(file: RankFile, base: str, shape: Shape, form: Form) -> Fields:
    """One scale for the weight, or for each expert's (4.6)."""
    *lead, n, _ = shape
    scale = file.scales(f"{base}weights_scaling_factor", (), (*lead, 1), tuple(lead), zero=False)
    weight = _e4m3(file, f"{base}weight", shape)
    per_row = scale.reshape(*lead, 1).expand(*lead, n)
    return {"weight": weight, "per_channel_scale": per_row, **_act_scale(file, base, lead)}


def _fp8_rowwise(file: RankFile, base: str, shape: Shape, form: Form) -> Fields:
    scale = file.scales(f"{base}per_channel_scale", shape[:-1], (1, *shape[:-1]), zero=False)
    return {"weight": _e4m3(file, f"{base}weight", shape), "per_channel_scale": scale.reshape(shape[:-1])}


def _smooth(file: RankFile, base: str, shape: Shape, form: Form) -> Fields:
    fields = {"weight": file.get(f"{base}weight", shape, dtypes=(torch.int8,))}
    fields["per_channel_scale"] = file.scales(f"{base}weights_scaling_factor", shape[:-1], zero=False)
    return {**fields, **_prequant(file, base, shape), **_act_scale(file, base, list(shape[:-2]))}


def _smooth_token(file: RankFile, base: str, shape: Shape, form: Form) -> Fields:
    """The plugin form with a scale for each output and each token; its norms multiply by ones (4.9)."""
    n, k = shape
    fields = {"weight": file.get(f"{base}weight", shape, dtypes=(torch.int8,))}
    scale = file.scales(f"{base}per_channel_scale", (1, n), (n,)).reshape(n)
    _require_dead(file, f"{base}per_channel_scale", fields["weight"].unsqueeze(1), scale.unsqueeze(1))
    fields["per_channel_scale"] = scale
    if form.prequant:
        fields["prequant"] = 1 / file.scales(f"{base}smoother", (1, k), (k,), zero=False).reshape(k)
    return fields


def _prequant(file: RankFile, base: str, shape: Shape) -> Fields:
    """Factors of the inputs [k]; experts have the same ones, as tokens are prepared before they are routed."""
    *lead, _, k = shape
    return {"prequant": _common(file, f"{base}prequant_scaling_factor", (*lead, k)).reshape(k)}


def _act_scale(file: RankFile, base: str, lead: list[int]) -> Fields:
    name = f"{base}activation_scaling_factor"
    return {"act_scale": _common(file, name, (*lead, 1), (), (1,), tuple(lead)).reshape(1)}


def _common(file: RankFile, name: str, shape: Shape, *others: Shape) -> torch.Tensor:
    """Scales that all experts have in common, of which the first dim tells them apart."""
    tensor = file.scales(name, shape, *others, zero=False)
    if len(shape) == 1 or tensor.numel() == shape[-1]:
        return tensor
    if not bool((tensor == tensor[:1]).all()):
        raise EngineError(f"{file.path}: {name} differs from expert to expert; TensorRT-LLM takes the first one's")
    return tensor[0]


def _require_dead(
    file: RankFile, name: str, q: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
) -> None:
    """Upstream gives what is all zeros the scale 0; raise CheckpointError where there is something else under it.

    q [.., groups, inputs of a group], scale and zero [.., groups]. With a zero point, which is lost under a scale of
    0, all q of a group are that, and so alike.
    """
    at = scale == 0
    if not bool(at.any()):
        return
    live = (q != (0 if zero is None else q[..., :1])).any(dim=-1) & at
    if zero is not None:
        live |= at & (zero != 0)
    if bool(live.any()):
        raise CheckpointError(
            f"{file.path}: {name} has {int(live.sum())} of {scale.numel()} scales that are zero over weights that are "
            "not",
            hint="Quantize the model again.",
        )


def _e4m3(file: RankFile, name: str, shape: Shape) -> torch.Tensor:
    # Upstream accepts the bytes as int8, too.
    return file.get(name, shape, dtypes=(torch.float8_e4m3fn, torch.int8)).view(torch.float8_e4m3fn)


def _from_layout(weight: torch.Tensor, bits: int, config: dict[str, Any]) -> torch.Tensor:
    """int8 [.., k, n * bits / 8] in a mixed-gemm layout -> int8 [.., n, k]."""
    sm, stack = layout_sm(config), weight.reshape(-1, *weight.shape[-2:])
    q = torch.stack([undo_mixed_gemm(one, bits, 16, sm).T for one in stack])
    return q.reshape(*weight.shape[:-2], *q.shape[-2:])


_READ: dict[str, Callable[[RankFile, str, Shape, Form], Fields]] = {
    "W8A16": _weight_only,
    "W4A16": _weight_only,
    "W4A16_AWQ": _awq,
    "W4A8_AWQ": _w4a8,
    "W4A16_GPTQ": _gptq,
    "W8A16_GPTQ": _gptq,
    "FP8": _fp8,
    "FP8_PER_CHANNEL_PER_TOKEN": _fp8_rowwise,
    "W8A8_SQ_PER_CHANNEL": _smooth,
    SQ_TOKEN: _smooth_token,
}
