"""What calibration remembers of the inputs of a linear, one step (a sequence: ModelOpt's batch of one) at a time.

Only per-channel numbers and, where the method asks, the gram matrix stay; no activation does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trtbuild.quantize.gram import add_moments, mirror
from trtbuild.quantize.method import InputStats

if TYPE_CHECKING:
    import torch


def evened(x: torch.Tensor) -> torch.Tensor:
    """x [tokens, in]; in second moments, a token beyond the median length counts by its length instead of its square.

    The first token of a text can be a thousand times as long as the others, and plain second moments would be of it
    alone. Its error matters relative to what it adds to a hidden state; but all tokens attend to it.
    """
    import torch

    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    share: torch.Tensor = (length.median() / length.clamp(min=1e-30)).clamp(max=1.0).sqrt()
    return x * share


class InputAccumulator:
    """Collects `InputStats` of one linear with `in_features` inputs; all numbers float32.

    The gram is a plain float32 sum: each addend is itself a float32 product over hundreds of tokens, and some hundred
    of them lose nothing that a search for a scale could see. `even`: it is of `evened` inputs.
    """

    def __init__(self, in_features: int, *, gram: bool = False, even: bool = False) -> None:
        import torch

        self._even = even
        self._tokens = self._batches = 0
        self._amax, self._abs_mean = torch.zeros(in_features), torch.zeros(in_features, dtype=torch.float64)
        self._gram = torch.zeros(in_features, in_features) if gram else None

    def add(self, x: torch.Tensor) -> None:
        """x [tokens, in] of one batch, which counts as much as any other; a batch without tokens does not count."""
        import torch

        if not len(x):
            return
        magnitude = x.abs()
        self._tokens, self._batches = self._tokens + len(x), self._batches + 1
        torch.maximum(self._amax, magnitude.amax(0), out=self._amax)
        self._abs_mean += magnitude.mean(0)
        if self._gram is not None:
            add_moments(self._gram, evened(x) if self._even else x)

    def stats(self) -> InputStats:
        """Everything so far; zeros where no token came. The gram is handed out: nothing can be added after that."""
        gram, self._gram = self._gram, None
        if gram is not None:
            mirror(gram.div_(max(self._tokens, 1)))
        return InputStats(self._tokens, self._amax.clone(), (self._abs_mean / max(self._batches, 1)).float(), gram)


class LayerStatistics:
    """The accumulators of a layer, filled by a runtime tap.

    `sizes`: inputs of each linear by module name; the experts of a layer count as one linear that sees every routed
    token. `amax_k`, `amax_v`: greatest magnitude of the outputs of the k and v linears. `expert_tokens`: tokens that
    were routed to each expert, by module.
    """

    def __init__(self, sizes: dict[str, int], *, gram: bool = False, even: bool = False) -> None:
        self._inputs = {name: InputAccumulator(size, gram=gram, even=even) for name, size in sizes.items()}
        self.amax_k = self.amax_v = 0.0
        self.expert_tokens: dict[str, list[int]] = {}

    def linear(self, module: str, x: torch.Tensor) -> None:
        if module in self._inputs:
            self._inputs[module].add(x)

    def experts(self, module: str, xs: Sequence[torch.Tensor]) -> None:
        import torch

        if module not in self._inputs:
            return
        counts = self.expert_tokens.setdefault(module, [0] * len(xs))
        for expert, x in enumerate(xs):
            counts[expert] += len(x)
        self._inputs[module].add(torch.cat(list(xs)))

    def keys_values(self, k: torch.Tensor, v: torch.Tensor) -> None:
        self.amax_k = max(self.amax_k, float(k.abs().max()))
        self.amax_v = max(self.amax_v, float(v.abs().max()))

    def stats(self) -> dict[str, InputStats]:
        """What every linear saw, by module name; to be asked for once."""
        return {name: inputs.stats() for name, inputs in self._inputs.items()}
