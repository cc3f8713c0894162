"""Rounding with compensation against its definition: each step solved as a least-squares problem, in float64."""

from __future__ import annotations

import pytest
import torch

from trtbuild.quantize.compensate import compensated

OUT, IN = 12, 40


def problem(tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weights [OUT, IN], gram of correlated inputs of unequal size, step [OUT] of a grid from -8 to 7)."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(tokens, IN, generator=generator) @ torch.randn(IN, IN, generator=generator)
    x *= torch.rand(IN, generator=generator) ** 2
    weight = torch.randn(OUT, IN, generator=generator)
    return weight, x.T @ x / tokens, weight.abs().amax(1) / 7


def nearest(column: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return (column / step).round().clamp(-8, 7) * step


def error(made: torch.Tensor, weight: torch.Tensor, gram: torch.Tensor) -> float:
    difference = (made - weight).double()
    return float(((difference @ gram.double()) * difference).sum())


def by_definition(weight: torch.Tensor, gram: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """After each rounded column, the columns still free are those of least output error, solved anew."""
    own = gram.diagonal().double()
    damped = gram.double() + (0.01 * own + 0.01 * own.median()).diag()
    order = own.argsort(descending=True, stable=True).tolist()
    exact, made = weight.double(), weight.double().clone()
    for done, channel in enumerate(order):
        made[:, channel] = nearest(made[:, channel], step.double())
        fixed, free = order[: done + 1], order[done + 1 :]
        if free:
            known = (made - exact)[:, fixed] @ damped[fixed][:, free]
            made[:, free] = exact[:, free] - torch.linalg.solve(damped[free][:, free], known.T).T
    return made


def test_equals_its_definition() -> None:
    weight, gram, step = problem()
    found = compensated(weight, gram, lambda column, _: nearest(column, step))
    wanted = by_definition(weight, gram, step)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_leaves_less_error_than_the_nearest() -> None:
    weight, gram, step = problem()
    found = compensated(weight, gram, lambda column, _: nearest(column, step))
    plain = torch.stack([nearest(column, step) for column in weight.T], dim=1)
    assert error(found, weight, gram) < 0.6 * error(plain, weight, gram)


def test_inputs_that_have_nothing_in_common_are_rounded_to_nearest() -> None:
    weight, gram, step = problem()
    found = compensated(weight, gram.diagonal().diag(), lambda column, _: nearest(column, step))
    torch.testing.assert_close(found, torch.stack([nearest(column, step) for column in weight.T], dim=1))


@pytest.mark.parametrize("dead", [[3], list(range(30)), list(range(IN))])
def test_channels_that_never_act(dead: list[int]) -> None:
    weight, gram, step = problem()
    gram[dead], gram[:, dead] = 0.0, 0.0
    found = compensated(weight, gram, lambda column, _: nearest(column, step))
    for channel in dead:
        torch.testing.assert_close(found[:, channel], nearest(weight[:, channel], step))
    assert bool(torch.isfinite(found).all())


def test_one_input_a_million_times_as_large() -> None:
    """What one huge channel does to float32 leaves the others compensated."""
    weight, gram, step = problem()
    factor = torch.ones(IN)
    factor[7] = 1e6
    huge = gram * torch.outer(factor, factor)
    found = compensated(weight, huge, lambda column, _: nearest(column, step))
    assert bool(torch.isfinite(found).all())
    plain = torch.stack([nearest(column, step) for column in weight.T], dim=1)
    assert error(found, weight, huge) <= 1.001 * error(plain, weight, huge)


def test_more_columns_than_a_block() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(900, 300, generator=generator) @ torch.randn(300, 300, generator=generator)
    weight, gram = torch.randn(4, 300, generator=generator), x.T @ x / 900
    step = weight.abs().amax(1) / 7
    found = compensated(weight, gram, lambda column, _: nearest(column, step))
    wanted = by_definition(weight, gram, step)
    same = float(((found.double() - wanted).abs() < 1e-4).double().mean())
    assert same > 0.97, same  # a weight on a rounding edge goes the other way, and takes later ones with it
