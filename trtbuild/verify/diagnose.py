"""Why a weight is not what it should be: known mistakes are tried on it, and the one that explains it is named.

Weights are [n outputs, k inputs] float32.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict

import torch

from trtbuild.verify.measure import snr_db

_ROWS = 256
_ALIKE = 0.8  # mean cosine of rows from which on two weights are one and the same; of unrelated rows it is about 0
_BETTER = 0.15
_FITS_DB = 5.0  # by which a fitted scale must improve a weight to be the reason


def cause(reference: torch.Tensor, found: torch.Tensor, others: Dict[str, torch.Tensor], group: int = 0) -> str:
    """One sentence, or nothing where no mistake that is known explains it.

    `others`: weights of the model that might be there in its place, by a name for people. `group`: inputs of a scale.
    """
    if not bool(torch.isfinite(found).all()):
        return "it holds NaN or infinity"
    if not bool(found.any()):
        return "it is zero"
    own = _alike(reference, found)
    tried = {f"it is {name}": _alike(other, found) for name, other in others.items() if other.shape == found.shape}
    if reference.shape[0] == reference.shape[1]:
        tried["it is transposed"] = _alike(reference, found.T)
    if reference.shape[0] % 2 == 0:
        tried["neighbouring outputs are exchanged: the order of nibbles"] = _alike(reference, _pairs(found))
    if reference.shape[1] % 2 == 0:
        tried["neighbouring inputs are exchanged: the order of nibbles"] = _alike(reference, _pairs(found.T).T)
    sentence = max(tried, key=lambda key: tried[key], default="")
    if sentence and tried[sentence] > max(_ALIKE, own + _BETTER):
        return sentence
    return _scales(reference, found, group)


def _alike(reference: torch.Tensor, found: torch.Tensor) -> float:
    """Mean cosine of the rows of two weights; of many rows, those at equal distances, in pairs."""
    step = max(1, len(reference) // _ROWS)
    a, b = reference[::step], found[::step]
    return float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean())


def _pairs(weight: torch.Tensor) -> torch.Tensor:
    """Rows 1, 0, 3, 2, ..."""
    rows: torch.Tensor = weight.unflatten(0, (-1, 2))
    return rows.flip(1).flatten(0, 1)


def _scales(reference: torch.Tensor, found: torch.Tensor, group: int) -> str:
    """Which factors, of a tensor, of outputs, groups or inputs, make `found` fit."""
    before = snr_db(reference, found)

    def fitted(dims: tuple[int, ...], want: torch.Tensor, have: torch.Tensor) -> tuple[float, torch.Tensor]:
        energy = have.square().sum(dims, keepdim=True)
        factor = (want * have).sum(dims, keepdim=True) / torch.where(energy > 0, energy, torch.ones_like(energy))
        return snr_db(want, have * factor), factor

    tries: list[tuple[str, float, torch.Tensor]] = [
        ("its scale is wrong", *fitted((0, 1), reference, found)),
        ("the scales of its outputs are wrong", *fitted((1,), reference, found)),
        ("its inputs are scaled wrongly: the pre-quant scale", *fitted((0,), reference, found)),
    ]
    if group and reference.shape[1] % group == 0:
        blocks = (reference.unflatten(1, (-1, group)), found.unflatten(1, (-1, group)))
        tries.append(("the scales of its groups are wrong", *fitted((2,), *blocks)))
    best, chosen = before + _FITS_DB, ""
    for sentence, after, factor in tries:  # the next one has more freedom, and must be clearly better for it
        if after > best:
            off = factor[factor > 0]
            middle = f", by a factor of {1 / float(off.median()):.3g}" if off.numel() else ""
            best, chosen = after + _FITS_DB, sentence + (middle if "scale is" in sentence else "")
    return chosen
