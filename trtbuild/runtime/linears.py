"""Emits the operations and weights of linears in whatever form each module has. PURE.

A linear whose form changes its inputs becomes two operations: PREPARE, from the input to PREPARED, and LINEAR.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.runtime.forms import Config, Form, form_of
from trtbuild.runtime.ops import Buffer, Kind, Op, Weight

_LAYER = re.compile(r"(?<=^transformer\.layers\.)\d+")


class Linears:
    """Appends to `ops` and `weights` of a rank whose first layer has the number `first_layer` in the whole model.

    Modules are named as in the rank's files ("transformer.layers.0.mlp.fc"), [n, k] or of experts [E, n, k].
    """

    def __init__(self, config: Config, first_layer: int, ops: list[Op], weights: list[Weight]) -> None:
        self._config, self._first_layer = config, first_layer
        self.ops, self.weights = ops, weights

    def form(self, module: str) -> Form | None:
        return form_of(self._config, _LAYER.sub(lambda found: str(int(found[0]) + self._first_layer), module))

    def add(
        self, name: str, out: Buffer, in_: Buffer, n: int, k: int, *, parts: tuple[str, ...] = (), bias: bool = False,
        of_rows: bool = False,
    ) -> None:  # fmt: skip
        """`parts`: modules of equal size with the same input that `name` stacks. `of_rows` marks lm_head."""
        parts = parts or (name,)
        forms = {self.form(part) for part in parts}
        if len(parts) > 1 and (len(forms) > 1 or any(form and form.own_input for form in forms)):
            for number, part in enumerate(parts):
                width = n // len(parts)
                self._one(part, (part,), out, in_, width, k, column=number * width, bias=bias, of_rows=of_rows)
        else:
            self._one(name, parts, out, in_, n, k, bias=bias, of_rows=of_rows)

    def experts(self, name: str, out: Buffer, in_: Buffer, shape: tuple[int, int, int], held: dict[str, Any],
                between: Callable[[Buffer], None] | None = None) -> None:  # fmt: skip
        """The linear of each expert over its pairs; `held` says which experts, as every operation on them does.

        `in_` holds pairs, or tokens that `between` makes pairs of: it gets the buffer of the prepared tokens.
        """
        form, (_, n, k) = self.form(name), shape
        if form and not form.experts:
            raise EngineError(f"the cpu runtime cannot execute experts in the form {form.algo}: {name}")
        weight = self._weight(name, (name,), shape, form)
        if between:
            between(self._prepare(name, form, in_, Buffer.PREPARED, k))
            in_ = Buffer.EXPERT
        else:  # in place: pairs lie close together, in a buffer of their own width
            self._prepare(name, form, in_, in_, k, **held)
        self.ops.append(Op(Kind.EXPERT_LINEAR, out, in_, weight=weight, n=n, k=k, **held))

    def _one(
        self, name: str, sources: tuple[str, ...], out: Buffer, in_: Buffer, n: int, k: int, *, bias: bool,
        of_rows: bool, column: int = 0,
    ) -> None:  # fmt: skip
        form, bias_name = self.form(sources[0]), f"{name}.bias" if bias else ""
        weight = self._weight(name, sources, (n, k), form)
        if bias:
            self.weights.append(Weight(bias_name, tuple(f"{part}.bias" for part in sources), (n,), float32=True))
        in_ = self._prepare(name, form, in_, Buffer.PREPARED, k, of_rows=of_rows)
        op = Op(Kind.LINEAR, out, in_, None, weight, bias_name, n=n, k=k, column=column, of_rows=of_rows)
        self.ops.append(op)

    def _weight(self, name: str, sources: tuple[str, ...], shape: tuple[int, ...], form: Form | None) -> str:
        k = shape[-1]
        unit = (form.group or 2 if form.bits == 4 else form.group or 1) if form else 1
        if k % unit:
            what = f"groups of {unit}" if form and form.group else "pairs that share a byte"
            raise EngineError(f"the {k} inputs of {name} on a rank are no whole number of {what}")
        names = tuple(f"{part}.weight" for part in sources)
        self.weights.append(Weight(f"{name}.weight", names, shape, quantized=name != "lm_head", form=form))
        return f"{name}.weight"

    def _prepare(self, name: str, form: Form | None, in_: Buffer, out: Buffer, k: int, **fields: Any) -> Buffer:
        """The buffer that holds the inputs as the form wants them."""
        if form is None or not form.prepares:
            return in_
        prequant = f"{name}.prequant" if form.prequant else ""
        scale = f"{name}.act_scale" if form.own_round else ""
        self.ops.append(Op(Kind.PREPARE, out, in_, weight=prequant, bias=scale, k=k, act=form.round, **fields))
        return out
