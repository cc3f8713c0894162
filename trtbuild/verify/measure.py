"""Numbers from pairs of tensors: signal-to-noise, divergence of logits, perplexity. Reads nothing, writes nothing.

T tokens of a sequence, V vocabulary. Sums over many are float64.
"""

from __future__ import annotations

import math

import torch

from trtbuild.verify.report import EXACT_DB, Logits

_ROWS = 64  # logits at a time: a vocabulary of 128k is 130 MB of float64 then
_BLOCK = 1 << 16  # elements whose products are summed in float32: they stay in a core's cache


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies, between -EXACT_DB and EXACT_DB; no noise at all is EXACT_DB."""
    if not math.isfinite(noise):
        return -EXACT_DB
    if noise == 0.0:
        return EXACT_DB
    if signal == 0.0:
        return -EXACT_DB
    return max(-EXACT_DB, min(EXACT_DB, 10.0 * math.log10(signal / noise)))


def snr_db(reference: torch.Tensor, found: torch.Tensor) -> float:
    """Energy of `reference` over that of the difference, in dB; float32 of the same shape, any shape."""
    signal = noise = 0.0
    for want, have in zip(reference.reshape(-1).split(_BLOCK), found.reshape(-1).split(_BLOCK), strict=True):
        error = have - want
        signal += float(want.dot(want))
        noise += float(error.dot(error))
    return decibels(signal, noise)


class TokenNoise:
    """Signal-to-noise of vectors of tokens, where every token counts the same.

    A few tokens of a language model have activations a thousand times as large as all others; over plain energies only
    those would count. So the noise of each token is taken relative to its own signal, and then the mean.
    """

    def __init__(self) -> None:
        self._sum, self._tokens = 0.0, 0

    def add(self, signal: torch.Tensor, noise: torch.Tensor) -> None:
        """Both [T, width]; tokens without signal do not count."""
        energy = torch.linalg.vecdot(signal, signal).double()
        counted = energy > 0
        self._sum += float((torch.linalg.vecdot(noise, noise)[counted] / energy[counted]).sum())
        self._tokens += int(counted.sum())

    @property
    def db(self) -> float:
        return decibels(float(self._tokens), self._sum)


class LogitMeter:
    """Compares logits sample by sample: `add`, then `result`."""

    def __init__(self) -> None:
        self._positions = self._predicted = self._agree = self._bad = 0
        self._kl = self._kl_max = self._worst = 0.0
        self._losses = [0.0, 0.0]  # of the reference and of what is verified
        self._signal = self._noise = 0.0

    def add(self, reference: torch.Tensor, found: torch.Tensor, ids: torch.Tensor) -> None:
        """Logits [T, V] after each of the token ids [T] of one sample."""
        following = torch.cat([ids[1:].long(), torch.tensor([-1])])
        for start in range(0, len(ids), _ROWS):
            rows = slice(start, start + _ROWS)
            self._rows(reference[rows].double(), found[rows].double(), following[rows])

    def result(self) -> Logits:
        def perplexity(loss: float) -> float:
            # Beyond e^700 there is no number; whatever it is, it is far beyond every gate.
            return math.exp(min(loss / max(self._predicted, 1), 700.0))

        count = max(self._positions, 1)
        return Logits(
            positions=self._positions,
            nonfinite=self._bad,
            kl_mean=self._kl / count,
            kl_max=self._kl_max,
            top1=self._agree / count,
            perplexity_reference=perplexity(self._losses[0]),
            perplexity=perplexity(self._losses[1]),
            max_error=self._worst,
            snr_db=decibels(self._signal, self._noise),
        )

    def _rows(self, reference: torch.Tensor, found: torch.Tensor, following: torch.Tensor) -> None:
        whole = torch.isfinite(found).all(-1) & torch.isfinite(reference).all(-1)
        self._bad += int((~whole).sum())
        reference, found, following = reference[whole], found[whole], following[whole]
        if not len(reference):
            return
        p, q = reference.log_softmax(-1), found.log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).clamp_(min=0)  # rounding may leave a negative nothing
        self._kl += float(kl.sum())
        self._kl_max = max(self._kl_max, float(kl.max()))
        self._agree += int((reference.argmax(-1) == found.argmax(-1)).sum())
        self._positions += len(kl)
        known = following >= 0
        self._predicted += int(known.sum())
        for number, log_probs in enumerate((p, q)):
            self._losses[number] -= float(log_probs[known].gather(1, following[known, None]).sum())
        error = found - reference
        self._worst = max(self._worst, float(error.abs().max()))
        self._signal += float(reference.square().sum())
        self._noise += float(error.square().sum())
