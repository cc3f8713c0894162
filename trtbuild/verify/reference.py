"""The model itself, in float32 and a layer at a time; its hidden states lie on disk. T tokens, H hidden features."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trtbuild.checkpoint.layer import read_tensors
from trtbuild.errors import VerifyError
from trtbuild.layout import Job, RankJobs, TensorInfo
from trtbuild.progress import Progress
from trtbuild.runtime.blockwise import Blockwise

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LAYERS, _HEAD = "transformer.layers.", ("lm_head.", "transformer.ln_f.")


class Reference:
    """`jobs`: the float32 plan of one rank; `ids`: int32 [samples, T]; `spool`: the file to make.

    Raises:
        EngineError: the runtime cannot execute the model.
    """

    def __init__(
        self, config: dict[str, Any], jobs: RankJobs, index: Dict[str, TensorInfo], ids: torch.Tensor, spool: Path
    ) -> None:
        self._jobs, self._index, self._ids = jobs, index, ids
        self._blocks = Blockwise(config, ids.shape[1])
        self.num_layers = self._blocks.num_layers
        shape = (self.num_layers + 1, *ids.shape, int(config["hidden_size"]))
        self.hidden: NDArray[Any] = np.memmap(spool, np.float32, "w+", shape=shape)
        """[layers + 1, samples, T, H]: before the first layer, and after each."""
        self._head: dict[str, torch.Tensor] = {}

    def run(self, progress: Progress) -> None:
        """Fill `hidden`.

        Raises:
            CheckpointError: a weight cannot be read. VerifyError: the model itself gives NaN or infinity.
        """
        tables = self._read(lambda job: not job.name.startswith((_LAYERS, *_HEAD)))
        for sample, ids in enumerate(self._ids):
            self.hidden[0, sample] = self._blocks.embed(ids, tables).numpy()
        del tables
        samples, total = len(self._ids), self.num_layers * len(self._ids)
        for layer in range(self.num_layers):
            base = f"{_LAYERS}{layer}."
            run = self._blocks.layer(layer, self._read(lambda job, base=base: job.name.startswith(base)))  # type: ignore[misc]
            for sample in range(samples):
                progress(layer * samples + sample, total, f"model, layer {layer + 1} of {self.num_layers}")
                out = run.run(torch.from_numpy(self.hidden[layer, sample]))
                if not bool(torch.isfinite(out).all()):
                    raise VerifyError([f"layer {layer} of the model itself gives NaN or infinity on this text"])
                self.hidden[layer + 1, sample] = out.numpy()
            del run  # before the next layer's weights are read
        progress(total, total, "model")

    def logits(self, sample: int) -> torch.Tensor:
        """Float32 [T, vocabulary] of one sample."""
        self._head = self._head or self._read(lambda job: job.name.startswith(_HEAD))
        return self._blocks.head(torch.from_numpy(self.hidden[-1, sample]), self._head)

    def _read(self, wanted: Callable[[Job], bool]) -> dict[str, torch.Tensor]:
        return read_tensors(self._jobs, self._index, wanted)
