"""`trtbuild verify`: how good an engine or checkpoint is, beside the model that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.options import AllowPickleOpt, JsonOpt, RevisionOpt
from trtbuild.cli.output import data, note, print_json, progress_bar
from trtbuild.errors import QualityError

if TYPE_CHECKING:
    from rich.table import Table

    from trtbuild.verify.report import LayerSnr, Report, Verdict

NAME = "verify"
PANEL = "Look"
_UNITS = {
    "nonfinite": ("positions without finite logits", "", "of {positions}"),
    "max_perplexity_increase": ("perplexity increase", "%", "{perplexity:.3f} against {perplexity_reference:.3f}"),
    "min_top1": ("top-1 agreement", "", ""),
    "max_kl": ("KL divergence, mean", "", "greatest {kl_max:.3g}"),
    "min_weight_snr": ("weight signal-to-noise", " dB", ""),
    "max_weight_loss": ("weight below its form", " dB", ""),
    "min_output_snr": ("layer signal-to-noise", " dB", ""),
    "max_tp_difference": ("logits against one rank", "", ""),
}
"""Gate -> what it measures, its unit, and what else is to be said."""


def _plot(value: Path | None) -> Path | None:
    from trtbuild.verify.plot import missing

    if value is not None and (why := missing(value)):
        raise typer.BadParameter(why)
    return value


def _limit(name: str, text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, help=text, show_default="of the quantization", metavar="X")
    return option


def command(
    subject: Annotated[Path, typer.Argument(metavar="ENGINE|CHECKPOINT", help="What is to be verified.")],
    against: Annotated[
        str, typer.Option("--against", metavar="MODEL", help="The model that it was made from: folder or hub id.")
    ],
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="UTF-8 text, or .json: token ids.", show_default="bundled English"),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, metavar="N", help="Tokens to run.")] = 2048,
    length: Annotated[int, typer.Option("--length", min=2, metavar="N", help="Tokens of one sequence.")] = 512,
    tp1: Annotated[bool, typer.Option("--tp1/--no-tp1", help="Also compare several ranks with one.")] = True,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", callback=_plot, help="Draw it: .html, .svg or .png.")
    ] = None,
    max_perplexity_increase: Annotated[float | None, _limit("--max-perplexity-increase", "Percent.")] = None,
    min_top1: Annotated[float | None, _limit("--min-top1", "Share of tokens with the same best guess.")] = None,
    max_kl: Annotated[float | None, _limit("--max-kl", "Mean KL divergence of logits, nats.")] = None,
    min_weight_snr: Annotated[float | None, _limit("--min-weight-snr", "dB, of every weight.")] = None,
    max_weight_loss: Annotated[float | None, _limit("--max-weight-loss", "dB below plain rounding.")] = None,
    min_output_snr: Annotated[float | None, _limit("--min-output-snr", "dB, of every layer's output.")] = None,
    max_tp_difference: Annotated[float | None, _limit("--max-tp-difference", "Of a logit, over their spread.")] = None,
    revision: RevisionOpt = None,
    allow_pickle: AllowPickleOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Compare an engine or checkpoint with its model in float32, layer by layer and by its logits, on a text.

    Ends with exit code 8 when it misses a gate; the defaults of gates depend on the quantization.
    """
    from trtbuild import pipeline
    from trtbuild.verify.report import document
    from trtbuild.verify.task import VerifyOptions

    gates = {
        "max_perplexity_increase": max_perplexity_increase,
        "min_top1": min_top1,
        "max_kl": max_kl,
        "min_weight_snr": min_weight_snr,
        "max_weight_loss": max_weight_loss,
        "min_output_snr": min_output_snr,
        "max_tp_difference": max_tp_difference,
    }
    options = VerifyOptions(text, tokens, length, tp1, gates)
    with progress_bar("verify") as progress:
        report = pipeline.verify_artifact(
            subject, against, options, revision=revision, progress=progress, allow_pickle=allow_pickle
        )
    if plot is not None:
        from trtbuild.verify.plot import write_plot

        write_plot(report, plot)
        note(f"picture in {plot}")
    if as_json:
        print_json(document(report))
    else:
        _show(report)
    if not report.ok:
        failed = [_sentence(report, verdict) for verdict in report.verdicts if not verdict.passed]
        raise QualityError(failed, hint="Convert it again, or set the gate that you can live with.")


def _sentence(report: Report, verdict: Verdict) -> str:
    what, unit, _ = _UNITS[verdict.gate]
    bound = "at least" if verdict.gate.startswith("min") else "at most"
    where = f" ({verdict.where})" if verdict.where else ""
    return f"{what}: {verdict.value:.4g}{unit}, {bound} {verdict.limit:g}{unit} is wanted{where}"


def _show(report: Report) -> None:
    layout = f"tp {report.tp_size} x pp {report.pp_size}"
    algo = report.quant_algo or report.dtype
    kv = f", {report.kv_cache_quant_algo} KV cache" if report.kv_cache_quant_algo else ""
    text = report.text
    note(f"{report.kind} of {report.architecture}, {algo}{kv}, {layout}, {report.executor} executor")
    note(f"{text.samples} x {text.length} tokens of {text.name}")
    data.print(_layer_table(report))
    data.print(_gate_table(report))
    for line in (*report.suspects, *report.notes):
        note(f"note: {line}")


def _layer_table(report: Report) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="signal-to-noise, dB")
    for name in ("layer", "output", "stream"):
        table.add_column(name, justify="right")
    table.add_column("worst weight", overflow="fold")
    for name in ("weight", "its form"):
        table.add_column(name, justify="right")
    rows: list[LayerSnr | None] = [*report.layers, None]
    bad = _failed(report)
    for layer in rows:
        number = layer.layer if layer else None
        worst = report.worst_weight(number)
        cells = [str(number), f"{layer.output_db:.1f}", f"{layer.stream_db:.1f}"] if layer else ["other", "", ""]
        if worst:
            why = f": {worst.cause}" if worst.cause else ""
            cells += [f"{worst.name}, rank {worst.rank}{why}", f"{worst.snr_db:.1f}", f"{worst.form_db:.1f}"]
        style = "bold red" if number in bad else ""
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table


def _failed(report: Report) -> set[int | None]:
    """Layers that miss a gate; None: what is outside of layers."""
    limits = {verdict.gate: verdict.limit for verdict in report.verdicts}
    loss, least = limits.get("max_weight_loss", float("inf")), limits.get("min_weight_snr", float("-inf"))
    output = limits.get("min_output_snr", float("-inf"))
    bad: set[int | None] = {w.layer for w in report.weights if w.loss_db > loss or w.snr_db < least}
    return bad | {layer.layer for layer in report.layers if layer.output_db < output}


def _gate_table(report: Report) -> Table:
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name, justify in (("", "left"), ("found", "right"), ("gate", "right"), ("", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    known = {**asdict(report.logits)}
    for verdict in report.verdicts:
        what, unit, more = _UNITS[verdict.gate]
        sign = "≥" if verdict.gate.startswith("min") else "≤"
        said = verdict.where or more.format(**known)
        style = "" if verdict.passed else "bold red"
        row = (what, f"{verdict.value:.4g}{unit}", f"{sign} {verdict.limit:g}{unit}", said)
        table.add_row(*(Text(cell, style=style) for cell in row))
    table.add_row("greatest error of a logit", f"{report.logits.max_error:.4g}", "", f"{report.logits.snr_db:.1f} dB")
    if report.one_rank and not any(verdict.gate == "max_tp_difference" for verdict in report.verdicts):
        said = f"{report.one_rank.snr_db:.1f} dB; each rank quantizes its own part"
        table.add_row("logits against one rank", f"{report.one_rank.difference:.4g}", "", said)
    return table
