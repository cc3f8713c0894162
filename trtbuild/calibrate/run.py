"""Quantizes a model layer by layer: statistics of its inputs over the calibration set, fields of its linears, next.

One layer's weights are in memory at a time; the source stays on disk, hidden states are spooled. The model that runs
is the unquantized one, in float32. What a layer gives is written as a part of the logical checkpoint, so a killed run
resumes at the layer. Legend: T tokens of a sample, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from trtbuild.calibrate.cache import SEQUENCES, searched_factor
from trtbuild.calibrate.form import EngineForm, Form, Job
from trtbuild.calibrate.spool import Spool
from trtbuild.errors import CheckpointError
from trtbuild.progress import Progress, silent
from trtbuild.quantize.method import Method, QuantOptions
from trtbuild.quantize.statistics import InputAccumulator, LayerStatistics
from trtbuild.quantize.values import kv_cache_scale
from trtbuild.runtime.blockwise import Blockwise, LayerRun, Linear
from trtbuild.spec import SEARCHES

Weights = Callable[[int | str], Dict[str, torch.Tensor]]
"""The float32 tensors of a layer, of "embedding" or of "head" (the last norm, lm_head) by their checkpoint names."""
Ids = tuple[tuple[int, ...], ...]
_SEARCH = 11
"""Candidates of AWQ's search, each about as costly as second moments of the inputs would be for every output."""
_HEAD = "lm_head"


class Parts(Protocol):
    """Where finished layers go; `checkpoint.logical.LogicalWriter` is one."""

    def has(self, part: str) -> bool: ...

    def write(self, part: str, tensors: Dict[str, torch.Tensor]) -> None: ...


@dataclass(frozen=True)
class Task:
    """What is asked: `ways` has the method of every linear that is quantized, by its path in the whole model.

    Linears that read the same input as one matrix (fc and gate) have the same. `dtype` is that of plain fields
    (prequant), `kv_cache_algo` INT8, FP8 or None; `search`: one of `spec.SEARCHES`, for the scales of the cache.
    """

    ways: Dict[str, tuple[Method, QuantOptions]]
    dtype: str
    kv_cache_algo: str | None = None
    search: str = SEARCHES[0]

    @property
    def needs_samples(self) -> bool:
        calibrated = any(method.needs_calibration for method, _ in self.ways.values())
        return calibrated or self.kv_cache_algo is not None


class Quantizer:
    """`config`: the model's TensorRT-LLM config; `ids`: the calibration set, empty where the task needs none.

    Raises:
        EngineError: the runtime cannot execute the model.
    """

    def __init__(self, config: dict[str, Any], task: Task, ids: Ids) -> None:
        self._task, self._ids = task, ids
        self._form: Form
        self._hidden_size: int = config["hidden_size"]
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with self._device:
            self._blocks = Blockwise(config, len(ids[0]) if ids else 1)

    @property
    def spool_bytes(self) -> int:
        """Disk needed for the hidden states between layers, while it runs."""
        return 2 * 4 * len(self._ids) * self._blocks.length * self._hidden_size

    def run(
        self,
        weights: Weights,
        parts: Parts,
        spool_folder: Path,
        progress: Progress = silent,
        form: Form | None = None,
    ) -> None:
        """Write the part of every layer that `parts` has not yet, in TensorRT-LLM's form where no other is given.

        Raises:
            CheckpointError: weights or activations that are not finite.
            OSError: a file cannot be read or written.
        """
        self._form = form or EngineForm(getattr(torch, self._task.dtype))
        with self._device:  # where new tensors lie; files are read into and written from the host's memory
            self._run(weights, parts, spool_folder, progress)

    def _run(self, weights: Weights, parts: Parts, spool_folder: Path, progress: Progress) -> None:
        layers = self._blocks.num_layers
        done = [parts.has(f"layer{layer}") for layer in range(layers)]
        head = self._task.ways.get(_HEAD)
        if all(done) and (head is None or parts.has(_HEAD)):
            return
        if not self._task.needs_samples:
            for layer in (i for i in range(layers) if not done[i]):
                progress(layer, layers, f"layer {layer + 1} of {layers}")
                self._finish(parts, layer, self._run_of(layer, weights), None, {})
            return
        spool = Spool(spool_folder, len(self._ids), (self._blocks.length, self._hidden_size))
        first = layers if all(done) else done.index(False)
        if not spool.holds(first):
            first = 0
            spool.write(0, self._embedded(weights))
        gram = _needs_gram(self._task.ways.values())
        meter = _Meter(progress, self._blocks, len(self._ids), gram)
        for layer in range(first, layers):
            run = self._run_of(layer, weights)
            statistics = None if done[layer] else self._statistics(layer)
            states = self._through(run, statistics, meter.counted(spool.read(layer), layer), layer)
            spool.write(layer + 1, states)
            if statistics is not None:
                made = self._cache_scales(layer, run, statistics, spool)
                self._finish(parts, layer, run, statistics, made, meter.searched)
            del run  # before the next layer's weights are read
        if head is not None:
            progress(1, 1, _HEAD)
            self._finish_head(parts, spool.read(layers), self._moved(weights("head")), *head)

    def _finish_head(
        self,
        parts: Parts,
        hidden: Iterator[torch.Tensor],
        weights: Dict[str, torch.Tensor],
        method: Method,
        options: QuantOptions,
    ) -> None:
        """Quantize lm_head, whose input is what the last norm gives, and write its part."""
        weight = weights[f"{_HEAD}.weight"]
        inputs = InputAccumulator(
            weight.shape[-1], gram=options.search in method.gram_for, even=options.search == "compensate"
        )
        for states in hidden:
            inputs.add(self._blocks.head_input(states, weights))
        linear = Linear(_HEAD, (_HEAD,), (len(weight),), weight.shape[-1])
        made = self._fields(Job("", linear, weights, inputs.stats(), method, options))
        parts.write(_HEAD, {name: tensor.cpu() for name, tensor in made.items()})

    def _run_of(self, layer: int, weights: Weights) -> LayerRun:
        return self._blocks.layer(layer, self._moved(weights(layer)))

    def _moved(self, tensors: Dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def _embedded(self, weights: Weights) -> Iterator[torch.Tensor]:
        tables = self._moved(weights("embedding"))
        for row in self._ids:
            yield self._blocks.embed(torch.tensor(row), tables)

    def _ways(self, layer: int) -> list[tuple[Linear, Method, QuantOptions]]:
        """The linears of a layer that are quantized, each with how."""
        found = []
        for linear in self._blocks.linears(layer):
            way = self._task.ways.get(f"transformer.layers.{layer}.{linear.modules[0]}")
            if way is not None and way[0].fields:
                found.append((linear, *way))
        return found

    def _statistics(self, layer: int) -> LayerStatistics:
        ways = [way for way in self._ways(layer) if way[1].needs_calibration]
        sizes = {linear.name: linear.in_features for linear, _, _ in ways}
        gram = _needs_gram((method, options) for _, method, options in ways)
        return LayerStatistics(sizes, gram=gram, even=any(options.search == "compensate" for _, _, options in ways))

    def _through(
        self, run: LayerRun, statistics: LayerStatistics | None, hidden: Iterator[torch.Tensor], layer: int
    ) -> Iterator[torch.Tensor]:
        for number, states in enumerate(hidden):
            out = run.run(states, statistics)
            if not bool(torch.isfinite(out).all()):
                raise CheckpointError(
                    f"layer {layer} gives NaN or infinite activations for calibration sample {number}",
                    hint="The model is damaged, or this text drives it out of the range of float32.",
                )
            yield out

    def _cache_scales(
        self, layer: int, run: LayerRun, statistics: LayerStatistics, spool: Spool
    ) -> Dict[str, torch.Tensor]:
        """The scales of a layer's KV cache by name; nothing where the cache is not quantized."""
        algo, factor = self._task.kv_cache_algo, 1.0
        if algo is None:
            return {}
        if algo == "INT8" and self._task.search != "modelopt":
            # What entered the layer is still in the spool; an FP8 cache has no scale to speak of.
            hidden = [states.to(self._device) for states in islice(spool.read(layer), SEQUENCES)]
            factor = searched_factor(run, kv_cache_scale(algo, statistics.amax_k, statistics.amax_v), hidden)
        base = f"transformer.layers.{layer}."
        return self._form.kv_scales(base, algo, factor * statistics.amax_k, factor * statistics.amax_v)

    def _finish(
        self,
        parts: Parts,
        layer: int,
        run: LayerRun,
        statistics: LayerStatistics | None,
        beside: Dict[str, torch.Tensor],
        searched: Callable[[Linear], None] = lambda linear: None,
    ) -> None:
        """Quantize the linears of a layer, and write its part, of which `beside` is a part as well."""
        base = f"transformer.layers.{layer}."
        made = dict(beside)
        stats = statistics.stats() if statistics is not None else {}
        for linear, method, options in self._ways(layer):
            made |= self._fields(Job(base, linear, run.weights, stats.pop(linear.name, None), method, options))
            searched(linear)
        parts.write(f"layer{layer}", {name: tensor.cpu() for name, tensor in made.items()})

    def _fields(self, job: Job) -> Dict[str, torch.Tensor]:
        try:
            return self._form.fields(job)
        except CheckpointError as error:
            where = job.base.rstrip(".") or job.linear.name
            raise CheckpointError(f"{where}: {error.message}", hint=error.hint) from error


def _needs_gram(ways: Iterable[tuple[Method, QuantOptions]]) -> bool:
    return any(options.search in method.gram_for for method, options in ways)


class _Meter:
    """Progress in floating-point operations, so that the time left is right whether the text or the search is long."""

    def __init__(self, progress: Progress, blocks: Blockwise, samples: int, needs_gram: bool) -> None:
        self._progress, self._layers, self._samples, self._gram = progress, blocks.num_layers, samples, needs_gram
        linears = blocks.linears(0)
        per_token = sum(self._size(linear) + (linear.in_features**2 if needs_gram else 0) for linear in linears)
        self._sample = blocks.length * per_token
        self._each = samples * self._sample + sum(map(self._search, linears))
        self._done = 0.0
        self._layer = 0

    def counted(self, hidden: Iterator[torch.Tensor], layer: int) -> Iterator[torch.Tensor]:
        """The hidden states of a layer's samples; what was asked for is about to be computed."""
        self._layer, self._done = layer, layer * self._each
        for number, states in enumerate(hidden):
            self._report(self._done + number * self._sample)
            yield states
        self._done += self._samples * self._sample
        self._report(self._done)

    def searched(self, linear: Linear) -> None:
        self._done += self._search(linear)
        self._report(self._done)

    def _report(self, done: float) -> None:
        self._progress(done, self._layers * self._each, f"layer {self._layer + 1} of {self._layers}")

    def _size(self, linear: Linear) -> float:
        return float(sum(linear.parts) * linear.in_features)

    def _search(self, linear: Linear) -> float:
        experts = max(linear.experts, 1)
        return _SEARCH * experts * self._size(linear) * linear.in_features if self._gram else 0.0
