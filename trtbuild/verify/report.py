"""What `trtbuild verify` found, as values and as a JSON document. PURE.

All decibels are signal over noise; the signal is the float32 model's. They lie between -EXACT_DB and EXACT_DB.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

EXACT_DB = 200.0
"""Of two tensors without a difference."""
SCHEMA = 1


@dataclass(frozen=True)
class WeightSnr:
    """A weight of one rank against its slice of the model.

    `layer` is None outside the layers. `module` is TensorRT-LLM's name ("mlp.fc"), `part` q, k or v of a fused one.
    `form_db`: what the form of the weight can give at best on this slice, by plain rounding. `cause`: the likely reason
    where the weight is worse than that, or nothing.
    """

    layer: int | None
    module: str
    part: str
    rank: int
    snr_db: float
    form_db: float
    cause: str = ""

    @property
    def loss_db(self) -> float:
        """How far below its form it is."""
        return self.form_db - self.snr_db

    @property
    def name(self) -> str:
        part = f" ({self.part})" if self.part else ""
        return self.module + part

    @property
    def where(self) -> str:
        at = "" if self.layer is None else f"layer {self.layer}, "
        return f"{at}{self.name}, rank {self.rank}"


@dataclass(frozen=True)
class LayerSnr:
    """A layer's output. `output_db`: it started from the model's own hidden states, so that errors of other layers do
    not count, and the signal is what the layer adds to the residual stream. `stream_db`: the hidden states after it
    when everything before it is the engine's.
    """

    layer: int
    output_db: float
    stream_db: float


@dataclass(frozen=True)
class Logits:
    """Logits after every token. `nonfinite`: positions with NaN or infinity, which no other number counts.

    KL divergence in nats, of the verified from the reference; perplexity of the next tokens of the text.
    """

    positions: int
    nonfinite: int
    kl_mean: float
    kl_max: float
    top1: float
    perplexity_reference: float
    perplexity: float
    max_error: float
    snr_db: float

    @property
    def perplexity_ratio(self) -> float:
        return self.perplexity / self.perplexity_reference

    @property
    def perplexity_increase(self) -> float:
        """In percent."""
        return 100.0 * (self.perplexity_ratio - 1.0)


@dataclass(frozen=True)
class OneRank:
    """The same checkpoint on one rank. `difference`: greatest difference of a logit over the logits' spread."""

    max_error: float
    difference: float
    snr_db: float


@dataclass(frozen=True)
class Verdict:
    """One gate: `value` must be at least (or at most) `limit`; `where` is the worst place."""

    gate: str
    limit: float
    value: float
    passed: bool
    where: str = ""


@dataclass(frozen=True)
class Text:
    """What was run: `tokens` in `samples` sequences of `length`."""

    name: str
    sha256: str
    samples: int
    length: int

    @property
    def tokens(self) -> int:
        return self.samples * self.length


@dataclass(frozen=True)
class Report:
    subject: str
    kind: str
    model: str
    architecture: str
    dtype: str
    quant_algo: str
    kv_cache_quant_algo: str
    tp_size: int
    pp_size: int
    executor: str
    text: Text
    logits: Logits
    layers: tuple[LayerSnr, ...]
    weights: tuple[WeightSnr, ...]
    one_rank: OneRank | None
    notes: tuple[str, ...]
    verdicts: tuple[Verdict, ...] = ()
    suspects: tuple[str, ...] = ()
    """Layers that stand out from the others although no gate says so."""

    @property
    def ok(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)

    def worst_weight(self, layer: int | None) -> WeightSnr | None:
        """The weight of a layer that is farthest below its form, in whole dB; among equals the noisiest."""
        own = [weight for weight in self.weights if weight.layer == layer]
        return max(own, key=lambda weight: (max(round(weight.loss_db), 0), -weight.snr_db), default=None)


def document(report: Report) -> dict[str, Any]:
    """The report as JSON. `schema` changes when a key is removed or changes its meaning."""
    logits = report.logits
    return {
        "schema": SCHEMA,
        "ok": report.ok,
        "subject": report.subject,
        "kind": report.kind,
        "model": report.model,
        "architecture": report.architecture,
        "dtype": report.dtype,
        "quant_algo": report.quant_algo or None,
        "kv_cache_quant_algo": report.kv_cache_quant_algo or None,
        "tp": report.tp_size,
        "pp": report.pp_size,
        "executor": report.executor,
        "text": {**asdict(report.text), "tokens": report.text.tokens},
        "gates": [asdict(verdict) for verdict in report.verdicts],
        "logits": {
            **asdict(logits),
            "perplexity_ratio": logits.perplexity_ratio,
            "perplexity_increase_percent": logits.perplexity_increase,
        },
        "one_rank": asdict(report.one_rank) if report.one_rank else None,
        "layers": [asdict(layer) for layer in report.layers],
        "weights": [{**asdict(weight), "loss_db": weight.loss_db} for weight in report.weights],
        "suspects": list(report.suspects),
        "notes": list(report.notes),
    }
