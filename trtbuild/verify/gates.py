"""What is good enough: limits for each quantization, and their verdicts on a report. PURE.

The defaults leave room for models that are harder to quantize than the demo model, on which they were measured; a
damaged weight misses them by far. A method's own gate of weights is `max_weight_loss`: how far a weight may be below
what its form gives by plain rounding, whatever the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any

from trtbuild.quantization import MIXED, layer_table
from trtbuild.verify.report import Report, Verdict

_STANDS_OUT_DB = 12.0


@dataclass(frozen=True)
class Gates:
    """Limits; None: reported, and no gate.

    max_perplexity_increase: percent. min_top1: share of positions. max_kl: mean over positions, nats. min_weight_snr,
    max_weight_loss, min_output_snr: dB. max_tp_difference: greatest difference of a logit from that of one rank, over
    the standard deviation of all logits.
    """

    max_perplexity_increase: float | None = 1.0
    min_top1: float | None = 0.95
    max_kl: float | None = 0.01
    min_weight_snr: float | None = 40.0
    max_weight_loss: float | None = 1.0
    min_output_snr: float | None = 30.0
    max_tp_difference: float | None = 1e-3


_FLIPS = 0.25
"""Where inputs are rounded, sums in another order may round to the next step."""
_GPTQ_LOSS = 9.0  # it trades errors of weights for those of outputs

GATES: dict[str, Gates] = {
    "": Gates(),
    # The engine build quantizes each rank's part on its own, so that one rank is another quantization.
    "W8A16": Gates(2.0, 0.93, 0.01, 25.0, 1.0, 20.0, None),
    "W4A16": Gates(100.0, 0.5, 1.0, 8.0, 1.0, 4.0, None),
    "W4A16_AWQ": Gates(30.0, 0.65, 0.4, 10.0, 1.0, 6.0),
    "W4A8_AWQ": Gates(35.0, 0.65, 0.45, 10.0, 1.0, 6.0, _FLIPS),
    "W4A16_GPTQ": Gates(30.0, 0.65, 0.4, 8.0, _GPTQ_LOSS, 6.0),
    "W8A16_GPTQ": Gates(2.0, 0.93, 0.01, 22.0, _GPTQ_LOSS, 18.0),
    "FP8": Gates(5.0, 0.88, 0.05, 25.0, 1.0, 14.0, _FLIPS),
    # Each rank takes the scale of its part of a token.
    "FP8_PER_CHANNEL_PER_TOKEN": Gates(5.0, 0.88, 0.05, 25.0, 1.0, 14.0, None),
    "W8A8_SQ_PER_CHANNEL": Gates(8.0, 0.8, 0.1, 20.0, 1.0, 10.0, _FLIPS),
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": Gates(8.0, 0.8, 0.1, 20.0, 1.0, 10.0, None),
}
_KV = Gates(3.0, 0.9, 0.03, None, None, 14.0, _FLIPS)


def gates_of(config: Dict[str, Any]) -> Gates:
    """The defaults for a checkpoint's config.json; of several algorithms in one model, the looser limits."""
    quantization = config.get("quantization") or {}
    algo = quantization.get("quant_algo") or ""
    algos = {algo}
    if algo == MIXED:
        algos = {str(layer.get("quant_algo") or "") for layer in layer_table(config).values()}
    chosen = [GATES.get(name, GATES["W4A16_AWQ"]) for name in sorted(algos)] or [GATES[""]]
    found = chosen[0]
    for other in chosen[1:]:
        found = _looser(found, other)
    return _with_kv(found) if quantization.get("kv_cache_quant_algo") else found


def override(gates: Gates, given: Dict[str, float | None]) -> Gates:
    """Limits that the user gave take the place of the defaults."""
    return replace(gates, **{name: value for name, value in given.items() if value is not None})


def judged(report: Report, gates: Gates) -> Report:
    """The report with the verdict of every gate, and the layers that stand out."""
    return replace(report, verdicts=tuple(_verdicts(report, gates)), suspects=tuple(_suspects(report)))


def _verdicts(report: Report, gates: Gates) -> Iterator[Verdict]:
    logits = report.logits
    yield Verdict("nonfinite", 0, logits.nonfinite, logits.nonfinite == 0)
    values = (
        ("max_perplexity_increase", logits.perplexity_increase, ""),
        ("min_top1", logits.top1, ""),
        ("max_kl", logits.kl_mean, ""),
        *_worst_places(report),
    )
    for name, value, where in values:
        limit = getattr(gates, name)
        if limit is not None:
            passed = value <= limit if name.startswith("max") else value >= limit
            # A gate of logits without one finite position says nothing.
            yield Verdict(name, limit, value, passed and logits.positions > 0, where)


def _worst_places(report: Report) -> Iterator[tuple[str, float, str]]:
    if report.weights:
        worst = min(report.weights, key=lambda weight: weight.snr_db)
        yield "min_weight_snr", worst.snr_db, worst.where + _because(worst.cause)
        lost = max(report.weights, key=lambda weight: weight.loss_db)
        yield "max_weight_loss", lost.loss_db, lost.where + _because(lost.cause)
    if report.layers:
        layer = min(report.layers, key=lambda layer: layer.output_db)
        yield "min_output_snr", layer.output_db, f"layer {layer.layer}"
    if report.one_rank:
        yield "max_tp_difference", report.one_rank.difference, ""


def _because(cause: str) -> str:
    return f": {cause}" if cause else ""


def _suspects(report: Report) -> Iterator[str]:
    """Layers whose output is much noisier than that of most."""
    if len(report.layers) < 3:
        return
    usual = median(layer.output_db for layer in report.layers)
    for layer in report.layers:
        if layer.output_db < usual - _STANDS_OUT_DB:
            yield f"layer {layer.layer}: output {layer.output_db:.1f} dB, where most have {usual:.1f}"


def _looser(one: Gates, other: Gates) -> Gates:
    made: dict[str, float | None] = {}
    for field in fields(Gates):
        pair = (getattr(one, field.name), getattr(other, field.name))
        choose = max if field.name.startswith("max") else min
        made[field.name] = None if None in pair else choose(pair)
    return Gates(**made)


def _with_kv(gates: Gates) -> Gates:
    """A rounded KV cache adds its own error to everything but the weights."""
    looser = _looser(gates, replace(_KV, min_weight_snr=gates.min_weight_snr, max_weight_loss=gates.max_weight_loss))
    extra = _KV.max_perplexity_increase
    if gates.max_perplexity_increase is not None and extra is not None:
        looser = replace(looser, max_perplexity_increase=gates.max_perplexity_increase + extra)
    return looser
