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
_FITS_DB = 4.0  # below its form, up to which a weight with fitted scales may be the right one, rounded twice


def cause(
    reference: torch.Tensor, found: torch.Tensor, form_db: float, others: Dict[str, torch.Tensor], group: int = 0
) -> str:
    """One sentence, or nothing where no mistake that is known explains it.

    `form_db`: signal-to-noise that the form gives at best. `others`: weights of the model that might be there in its
    place, by a name for people. `group`: inputs of a scale.
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
    return _scales(reference, found, form_db, group)


def _alike(reference: torch.Tensor, found: torch.Tensor) -> float:
    """Mean cosine of the rows of two weights, of many rows those at equal distances."""
    step = max(1, len(reference) // _ROWS)
    return float(torch.nn.functional.cosine_similarity(reference[::step], found[::step], dim=-1).mean())


def _pairs(weight: torch.Tensor) -> torch.Tensor:
    """Rows 1, 0, 3, 2, ..."""
    rows: torch.Tensor = weight.unflatten(0, (-1, 2))
    return rows.flip(1).flatten(0, 1)


def _scales(reference: torch.Tensor, found: torch.Tensor, form_db: float, group: int) -> str:
    """Factors of the tensor, of outputs, groups or inputs that make `found` what it should be; the simplest ones."""
    before = snr_db(reference, found)
    # It must also be the better part of what is missing.
    enough = max(form_db - _FITS_DB, (before + form_db) / 2)
    factor, after = _fitted((0, 1), reference, found)
    if after > enough:
        return f"its scale is wrong, by a factor of {1 / float(factor):.3g}"
    tries = [("the scales of its outputs are wrong", 1, reference, found)]
    if group and group < reference.shape[1] and reference.shape[1] % group == 0:
        blocks = (reference.unflatten(1, (-1, group)), found.unflatten(1, (-1, group)))
        tries.append(("the scales of its groups are wrong", 2, *blocks))
    tries.append(("its inputs are scaled wrongly: the pre-quant scale", 0, reference, found))
    for sentence, dim, want, have in tries:
        if _fitted((dim,), want, have)[1] > enough:
            return sentence
    return ""


def _fitted(dims: tuple[int, ...], want: torch.Tensor, have: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(factors along `dims` that bring `have` nearest to `want`, signal-to-noise with them)."""
    energy = have.square().sum(dims, keepdim=True)
    factor = (want * have).sum(dims, keepdim=True) / torch.where(energy > 0, energy, torch.ones_like(energy))
    return factor, snr_db(want, have * factor)
