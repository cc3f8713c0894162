"""Ready-made quantized Hugging Face models, read without calibration: add a file beside this one and a row here."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace
from typing import Any

from trtbuild.importers import autoawq, compressed_tensors, fp8, gptq, modelopt
from trtbuild.importers.form import Import
from trtbuild.quantize.methods import METHODS
from trtbuild.spec import AUTO, KV_CACHES, ConvertOptions

IMPORTERS: dict[str, Callable[[Dict[str, Any]], Import | None]] = {
    "gptq": gptq.declare,
    "awq": autoawq.declare,
    "compressed-tensors": compressed_tensors.declare,
    "modelopt": modelopt.declare,
    "fp8": fp8.declare,
}
"""`quant_method` -> what declares its import, or says that it has none (fp8 by blocks)."""


def recognise(config: Dict[str, Any], quant_config: Any = None) -> Import | None:
    """The import of a model, or None for a plain model and for formats that no importer knows.

    `quant_config`: ModelOpt's hf_quant_config.json, which says more than config.json where both are there.
    """
    given = config.get("quantization_config")
    inner = quant_config.get("quantization") if isinstance(quant_config, Dict) else None
    named = given.get("quant_method") if isinstance(given, Dict) else None
    if isinstance(inner, Dict) and inner and named in (None, "modelopt"):
        return modelopt.declare(inner)
    declare = IMPORTERS.get(str(named))
    return declare(given) if declare and isinstance(given, Dict) else None


def without_auto(options: ConvertOptions) -> ConvertOptions:
    """The options for a TensorRT-LLM checkpoint, which keeps what it has unless something else is asked for."""
    return replace(options, quant="none") if options.quant == AUTO else options


@dataclass(frozen=True)
class Settled:
    """What a conversion will do: options with a method's name in place of "auto", and the import that is to be run.

    No import where the model is plain, or where its weights are multiplied out block by block.
    """

    options: ConvertOptions
    imported: Import | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def settle(options: ConvertOptions, imported: Import | None) -> Settled:
    """Choose among the methods that a model can become; another one than the model's own is a problem."""
    asked = options.quant
    if imported is None:
        options = without_auto(options)
        wrong = asked in METHODS and METHODS[asked].imported
        hint = f"{asked} is only read from models that are quantized already; this one has no quantization_config"
        return Settled(options, None, (hint,) if wrong else ())
    if imported.plain and (asked == "none" or (asked == AUTO and not imported.methods and not imported.problems)):
        said = (f"{imported.format}: {imported.why}; its weights are multiplied out",) if asked == AUTO else ()
        return Settled(replace(options, quant="none"), None, (), said)
    problems = list(imported.problems)
    name = (imported.methods or ("",))[0] if asked == AUTO else asked
    if not name:
        problems.append(f"{imported.format}: {imported.why}; --quant none multiplies the weights out")
    elif name != "none" and name not in imported.methods:
        able = f"it becomes {' or '.join(imported.methods)} as it is" if imported.methods else imported.why
        problems.append(
            f"the model is quantized already ({imported.format}; {able}), and --quant {asked} would round it a second "
            "time: leave --quant out, take --quant none to multiply it out, or give the unquantized model"
        )
    kept = imported.kv_cache if name != "none" else None
    if KV_CACHES.get(options.kv_cache) not in (None, kept):
        problems.append(
            f"--kv-cache {options.kv_cache}: scales are calibrated with unquantized models only, and this one has "
            + (f"those of {kept}; leave --kv-cache out" if kept else "none")
        )
    kv_cache = next(key for key, algo in KV_CACHES.items() if algo == kept)
    settled = replace(options, quant=name, group_size=imported.group_size, kv_cache=kv_cache)
    if problems:
        settled = replace(settled, quant="none", kv_cache="none")
    warnings = list(imported.warnings)
    if name == "none" and imported.kv_cache:
        warnings.append(f"the model's {imported.kv_cache} KV cache scales are left out: --quant none multiplies it out")
    return Settled(settled, imported, tuple(problems), tuple(warnings))
