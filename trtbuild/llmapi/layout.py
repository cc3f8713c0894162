"""A family's rules read backwards: which Hugging Face tensors a quantized model has, and where each comes from. PURE.

Legend: module = a linear of a TensorRT-LLM checkpoint by its path in the whole model ("transformer.layers.0.mlp.fc"),
whose rows are stacked from one or more Hugging Face linears.
Source of names and shapes: NVIDIA/TensorRT-Model-Optimizer modelopt/torch/export/{unified_export_hf,quant_utils}.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace

from trtbuild.families.rules import Family
from trtbuild.fields import LINEAR
from trtbuild.layout import DTYPES, GROUP, Job, Piece, RankJobs, TensorInfo, Window
from trtbuild.mixed import Choice, Choices
from trtbuild.quantize.method import Method
from trtbuild.shard import shard
from trtbuild.spec import ConvertOptions, ModelSpec

SUFFIXES = {
    "weight": "weight",
    "weights_scaling_factor": "weight_scale",
    "per_channel_scale": "weight_scale",
    "weights_scaling_factor_2": "weight_scale_2",
    "activation_scaling_factor": "input_scale",
    "prequant_scaling_factor": "pre_quant_scale",
}
"""Field of a method -> suffix of the Hugging Face tensor."""
PREQUANT = "prequant_scaling_factor"
SHARD_BYTES = 5_000_000_000
"""Most that one file holds, as transformers' save_pretrained has it; a larger tensor has a file of its own."""
_BEFORE = {
    "attention.qkv": ("input_layernorm",),
    "mlp.fc": ("pre_feedforward_layernorm", "post_layernorm"),
    "mlp.gate": ("pre_feedforward_layernorm", "post_layernorm"),
}
"""Module -> the norm whose output is its input; the first that the layer has. True of every family that loads."""


@dataclass(frozen=True)
class HfLinear:
    """A linear [out, in] of the Hugging Face model. `rows`: (rows of the module's weight, its own rows), in own order.

    `expert`: index into the module's weight, which has a leading dim for them; None for other linears.
    """

    name: str
    module: str
    expert: int | None
    rows: tuple[tuple[Window, Window], ...]
    out: int
    inputs: int


@dataclass(frozen=True)
class HfNorm:
    """The norm before a linear: its checkpoint name, its Hugging Face name, and what the checkpoint's has added."""

    target: str
    name: str
    add: float


@dataclass(frozen=True)
class HfLayout:
    """`linears` and `norms` (those that take in the inputs' scale) by module; `jobs`: every tensor in order.

    Jobs without pieces are made by the quantizer; the others are copied from the source.
    """

    linears: Dict[str, tuple[HfLinear, ...]]
    norms: Dict[str, HfNorm]
    jobs: tuple[Job, ...]

    @property
    def plain(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.pieces)


def hf_layout(
    family: Family,
    spec: ModelSpec,
    dtype: str,
    choices: Choices,
    kv_cache: bool,
    sources: Dict[str, str],
    index: Dict[str, TensorInfo],
) -> HfLayout:
    """The layout of a model; `sources`: planned source -> the tensor that the files hold for it (`coverage`)."""
    whole = shard(family, spec, ConvertOptions(dtype=dtype), dtype, {})[0]
    linears = {job.name.removesuffix(".weight"): _linears(job) for job in whole.jobs if LINEAR.search(job.name)}
    quantized = {module: choice for module, choice in choices.items() if choice.method.fields}
    norms = _norms(whole, spec, quantized)
    jobs = _jobs(whole, linears, norms, quantized, DTYPES[dtype], kv_cache, sources, index)
    return HfLayout(linears, norms, tuple(jobs))


def in_shards(jobs: tuple[Job, ...], limit: int = 0) -> tuple[RankJobs, ...]:
    """Tensors in order, dealt to files of at most `limit` bytes (0: SHARD_BYTES); a file's number is its `rank`."""
    limit = limit or SHARD_BYTES
    files: list[list[Job]] = []
    held = limit + 1
    for job in jobs:
        if held + job.nbytes > limit:
            files.append([])
            held = 0
        files[-1].append(job)
        held += job.nbytes
    return tuple(RankJobs(number, 0, 0, range(0), tuple(found)) for number, found in enumerate(files))


def file_names(count: int) -> list[str]:
    """Names of the files of a model, as transformers has them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]


def unquantized(layout: HfLayout, choices: Choices) -> list[str]:
    """Linears that stay plain though others are quantized, as ModelOpt's exclude_modules names them, and routers."""
    plain = [
        linear.name
        for module, linears in layout.linears.items()
        if not choices[module].method.fields
        for linear in linears
    ]
    routers = [
        job.name.removesuffix(".weight")
        for job in layout.plain
        if len(job.shape) == 2 and ".layers." in job.name and job.name.endswith(("gate.weight", "expert_gate.weight"))
    ]
    return [*sorted({*plain, *routers}), "lm_head"]


def _linears(job: Job) -> tuple[HfLinear, ...]:
    """The Hugging Face linears that a module's weight is stacked from."""
    experts = job.shape[0] if len(job.shape) == 3 else 1
    each = len(job.pieces) // experts
    found = []
    for expert in range(experts):
        at = 0
        for piece in job.pieces[expert * each : (expert + 1) * each]:
            rows: list[tuple[Window, Window]] = []
            for start, stop in piece.rows:
                rows.append(((at, at + stop - start), (start, stop)))
                at += stop - start
            rows.sort(key=lambda pair: pair[1])
            number = expert if len(job.shape) == 3 else None
            name, module = piece.source.removesuffix(".weight"), job.name.removesuffix(".weight")
            found.append(HfLinear(name, module, number, tuple(rows), piece.num_rows, job.shape[-1]))
    return tuple(found)


def _norms(whole: RankJobs, spec: ModelSpec, quantized: Dict[str, Choice]) -> dict[str, HfNorm]:
    """The norms that are multiplied by their linears' input scale; a router beside experts reads the same norm."""
    jobs = {job.name: job for job in whole.jobs}
    found = {}
    for module, choice in quantized.items():
        if not _has_prequant(choice.method):
            continue
        base, kind = module.rsplit(".", 2)[0], ".".join(module.rsplit(".", 2)[1:])
        for norm in _BEFORE.get(kind, ()) if not (spec.num_experts and kind != "attention.qkv") else ():
            job = jobs.get(f"{base}.{norm}.weight")
            if job is not None:
                found[module] = HfNorm(job.name, job.pieces[0].source, job.add)
                break
    return found


def _has_prequant(method: Method) -> bool:
    return any(field.suffix == PREQUANT for field in method.fields)


def _jobs(
    whole: RankJobs,
    linears: Dict[str, tuple[HfLinear, ...]],
    norms: Dict[str, HfNorm],
    quantized: Dict[str, Choice],
    code: str,
    kv_cache: bool,
    sources: Dict[str, str],
    index: Dict[str, TensorInfo],
) -> Iterator[Job]:
    read: set[str] = set()
    folded = {norm.name for norm in norms.values()}
    for job in whole.jobs:
        module = job.name.removesuffix(".weight")
        part = f"layer{job.group.split('.')[2]}" if ".layers." in job.group else ""
        if module in quantized and LINEAR.search(job.name):
            for linear in linears[module]:
                yield from _stored(linear, quantized[module], code, module in norms, part)
        else:
            for piece in job.pieces:
                actual = sources[piece.source]
                if actual in read:  # a tied lm_head, which Hugging Face files do not hold
                    continue
                read.add(actual)
                shape = index[actual].shape
                copied = (Piece(actual, ((0, shape[0]),)),)
                made = piece.source in folded
                yield Job(piece.source, code, shape, () if made else copied, part if made else piece.source)
        if kv_cache and module.endswith("attention.qkv"):
            attention = linears[module][0].name.rpartition(".")[0]
            for name in ("k", "v"):
                yield Job(f"{attention}.{name}_proj.{name}_scale", "F32", (), (), part)


def _stored(linear: HfLinear, choice: Choice, code: str, folded: bool, part: str) -> Iterator[Job]:
    """The tensors of one quantized linear; scalars have no dim."""
    for field in choice.method.fields:
        if field.suffix == PREQUANT and folded:
            continue
        shape: tuple[int, ...] = ()
        if field.rows:
            shape += (linear.out // field.packed,)
        if field.cols:
            shape += (linear.inputs // (choice.group_size if field.cols == GROUP else 1),)
        dtype = "U8" if field.packed > 1 else field.dtype or code
        yield Job(f"{linear.name}.{SUFFIXES[field.suffix]}", dtype, shape, (), part)


def with_layers(shards: tuple[RankJobs, ...]) -> tuple[RankJobs, ...]:
    """The files with the layers that they hold tensors of."""
    found = []
    for file in shards:
        layers = [int(job.name.split(".layers.")[1].split(".")[0]) for job in file.jobs if ".layers." in job.name]
        found.append(replace(file, layers=range(min(layers, default=0), max(layers, default=-1) + 1)))
    return tuple(found)
