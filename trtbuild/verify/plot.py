"""EDGE: a report as a picture: output noise of every layer above, and below a map of weights where a bad one is red.

.html and .svg are written by a template and need nothing else; .png needs matplotlib (the extra `plot`).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trtbuild.errors import OutputError
from trtbuild.staging import write_error
from trtbuild.verify.report import EXACT_DB, Report, WeightSnr

KINDS = (".html", ".svg", ".png")
TEMPLATES = Path(__file__).resolve().parent
_TOP_DB = 80.0
"""Above it nothing can be seen, and nothing is of interest."""


def missing(path: Path) -> str:
    """Why a picture of that name cannot be written here, or nothing."""
    if path.suffix not in KINDS:
        return f"{path.name}: a picture is {', '.join(KINDS)}"
    if path.suffix == ".png" and find_spec("matplotlib") is None:
        return f"{path.name} needs matplotlib: pip install trtbuild[plot], or write .html or .svg"
    return ""


def write_plot(report: Report, path: Path) -> None:
    """Write the picture of a report; the name's ending says what kind.

    Raises:
        OutputError: it cannot be written there.
    """
    if why := missing(path):
        raise OutputError(why)
    try:
        if path.suffix == ".png":
            _write_png(report, path)
        else:
            path.write_text(_rendered(report, page=path.suffix == ".html"), encoding="utf-8")
    except OSError as error:
        raise write_error(path, error) from error


def modules_of(report: Report) -> list[str]:
    """Rows of the map: weights of layers, in the order in which they run."""
    return list(dict.fromkeys(weight.name for weight in report.weights if weight.layer is not None))


def worst_by_place(report: Report) -> dict[tuple[str, int], WeightSnr]:
    """(weight, layer) -> the rank that is farthest below its form."""
    found: dict[tuple[str, int], WeightSnr] = {}
    for weight in report.weights:
        if weight.layer is None:
            continue
        key = (weight.name, weight.layer)
        if key not in found or weight.loss_db > found[key].loss_db:
            found[key] = weight
    return found


def limit_of(report: Report, gate: str) -> float | None:
    return next((verdict.limit for verdict in report.verdicts if verdict.gate == gate), None)


def _rendered(report: Report, *, page: bool) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    layers = [
        {"layer": layer.layer, "output": layer.output_db, "stream": layer.stream_db, "bad": _bad_layer(report, layer)}
        for layer in report.layers
    ]
    shown = [min(layer.output_db, _TOP_DB) for layer in report.layers]
    cells = [
        {"row": modules_of(report).index(name), "layer": layer, "weight": weight, "heat": _heat(report, weight)}
        for (name, layer), weight in worst_by_place(report).items()
    ]
    return environment.get_template("plot.html.j2").render(
        page=page,
        report=report,
        layers=layers,
        modules=modules_of(report),
        cells=cells,
        top=max(10.0, *shown) if shown else 10.0,
        output_gate=limit_of(report, "min_output_snr"),
        loss_gate=limit_of(report, "max_weight_loss"),
        exact=EXACT_DB,
    )


def _bad_layer(report: Report, layer: Any) -> bool:
    limit = limit_of(report, "min_output_snr")
    named = any(suspect.startswith(f"layer {layer.layer}:") for suspect in report.suspects)
    return named or (limit is not None and layer.output_db < limit)


def _heat(report: Report, weight: WeightSnr) -> float:
    """0 (as good as its form) to 1 (at the gate or beyond)."""
    limit = limit_of(report, "max_weight_loss") or 3.0
    return max(0.0, min(1.0, weight.loss_db / limit))


def _write_png(report: Report, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 0.3 * len(report.layers) + 3), 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    numbers = [layer.layer for layer in report.layers]
    colors = ["tab:red" if _bad_layer(report, layer) else "tab:blue" for layer in report.layers]
    above.bar(numbers, [min(layer.output_db, _TOP_DB) for layer in report.layers], color=colors, label="of the layer")
    above.plot(numbers, [min(layer.stream_db, _TOP_DB) for layer in report.layers], "k.-", label="all before it too")
    if (limit := limit_of(report, "min_output_snr")) is not None:
        above.axhline(limit, color="gray", linestyle="--", label="gate")
    above.set(ylabel="output, dB", title=f"{report.subject} ({report.quant_algo or report.dtype})")
    above.legend()
    modules = modules_of(report)
    heat = [[0.0] * len(numbers) for _ in modules]
    for (name, layer), weight in worst_by_place(report).items():
        heat[modules.index(name)][numbers.index(layer)] = weight.loss_db
    drawn = below.imshow(heat, aspect="auto", cmap="Reds", vmin=0, vmax=limit_of(report, "max_weight_loss") or 3.0)
    below.set(yticks=range(len(modules)), yticklabels=modules, xlabel="layer")
    figure.colorbar(drawn, ax=below, label="dB below its form")
    figure.savefig(path, dpi=120)
