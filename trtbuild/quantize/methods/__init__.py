"""The table of methods: add a file beside this one and a row here. Declarations only, nothing heavy."""

from __future__ import annotations

from trtbuild.quantize.method import Method
from trtbuild.quantize.methods import int8, none

METHODS: dict[str, Method] = {method.name: method for method in (none.METHOD, int8.METHOD)}
