"""Functions of gathered rows: part by part they are what they would be at once."""

from __future__ import annotations

import pytest
import torch

from raysys.autoencoder import gather
from raysys.autoencoder.gather import of_rows, product_sums, sums_of_rows


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def _assert_same(parts: torch.Tensor, whole: torch.Tensor, tables: list[torch.Tensor]) -> None:
    """Compare values, and the gradients of a weighted sum of them."""
    assert torch.allclose(parts, whole, rtol=1e-12)
    weight = torch.randn_like(whole)
    wanted = torch.autograd.grad((whole * weight).sum(), tables)
    found = torch.autograd.grad((parts * weight).sum(), tables)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("elements", [1, 64, 1 << 18])
def test_values_and_gradients_are_those_of_the_whole(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "_PART_ELEMENTS", elements)
    torch.manual_seed(0)
    users, items, own = _random(5, 3), _random(7, 2, 3), _random(23, 2)
    row, item = torch.randint(5, (23,)), torch.randint(7, (23,))  # rows of both repeat

    def function(u: torch.Tensor, i: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (u[:, None, :] * i).sum(dim=2).tanh() * w

    whole = function(users[row], items[item], own)
    parts = of_rows(function, [users, items, own], [row, item, None])
    _assert_same(parts, whole, [users, items, own])


@pytest.mark.parametrize("elements", [1, 64, 1 << 18])
def test_sums_of_rows_are_sums_of_what_the_rows_give(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "_PART_ELEMENTS", elements)
    torch.manual_seed(0)
    items, own = _random(7, 3), _random(23)
    item, row = torch.randint(7, (23,)), torch.randint(5, (23,))

    def function(i: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return i.tanh() * w[:, None]

    whole = items.new_zeros(6, 3).index_add(0, row, function(items[item], own))
    parts = sums_of_rows(function, [items, own], [item, None], (row, 6))
    _assert_same(parts, whole, [items, own])


def test_a_table_without_gradient_gets_none_and_no_cells_give_no_rows() -> None:
    table, fixed = _random(4, 3), torch.ones(4, 3, dtype=torch.float64)
    at = torch.tensor([0, 3, 3])
    product_sums(table, at, fixed, at).sum().backward()
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == [1.0, 0.0, 0.0, 2.0]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert product_sums(table, nothing, fixed, nothing).shape == (0,)


def test_one_table_may_be_looked_up_twice() -> None:
    table = _random(4, 3)
    one, other = torch.tensor([0, 1, 1]), torch.tensor([2, 1, 3])
    product_sums(table, one, table, other).sum().backward()
    found = table.grad
    table.grad = None
    (table[one] * table[other]).sum().backward()
    assert found is not None
    assert table.grad is not None
    assert torch.allclose(found, table.grad)
