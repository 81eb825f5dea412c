"""The loss of the last cast: closed forms, and the figures that were measured elsewhere."""

from __future__ import annotations

import math

import pytest
import torch

from gistcli.artifacts.rounding import advice, measure, measure_update, worst


def low_rank_update(size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """W ~ N(0, 0.02), stored in bfloat16, and W + a rank-16 update of `size` times its norm."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(512, 512, generator=generator) * 0.02).bfloat16().float()
    update = torch.randn(512, 16, generator=generator) @ torch.randn(16, 512, generator=generator)
    return base, base + update * (size * base.norm() / update.norm())


@pytest.mark.parametrize(
    ("size", "rounding", "cosine", "unchanged"),
    [(0.001, 0.79, 0.64, 0.78), (0.01, 0.17, 0.987, 0.18), (0.1, 0.017, 0.9999, 0.02)],
)
def test_bfloat16_loses_what_the_survey_measured(
    size: float, rounding: float, cosine: float, unchanged: float
) -> None:
    found = measure("w", *low_rank_update(size), torch.bfloat16)
    assert found.relative_rounding == pytest.approx(rounding, rel=0.1)
    assert found.cosine == pytest.approx(cosine, abs=0.03)
    assert found.unchanged_fraction == pytest.approx(unchanged, abs=0.02)
    assert found.relative_change == pytest.approx(size, rel=1e-3)
    assert found.by_dtype["bfloat16"] == found.relative_rounding


def test_one_element_in_closed_form() -> None:
    # bfloat16 keeps 8 bits: next to 1 stands 1 + 2^-7, and 1 + 2^-8 is halfway, rounded to even
    found = measure("w", torch.ones(2), torch.tensor([1 + 2**-8, 1 + 2**-7]), torch.bfloat16)
    assert found.relative_rounding == pytest.approx(1 / math.sqrt(5), rel=1e-6)
    assert found.unchanged_fraction == 0.5


def test_float32_loses_nothing_and_needs_no_advice() -> None:
    found = measure("w", *low_rank_update(0.001), torch.float32)
    assert found.relative_rounding == 0
    assert found.cosine == pytest.approx(1)
    assert advice([found], "float32") == ""


def test_no_update_is_no_loss() -> None:
    base = torch.randn(4, 4)
    found = measure("w", base, base.clone(), torch.bfloat16)
    assert (found.relative_change, found.relative_rounding, found.cosine) == (0, 0, 1)


def test_an_overflow_is_infinite_and_null_in_json() -> None:
    found = measure("w", torch.zeros(2), torch.tensor([1e5, 0.0]), torch.float16)
    assert found.relative_rounding == math.inf
    assert found.as_dict()["by_dtype"]["float16"] is None
    assert found.as_dict()["by_dtype"]["float32"] == 0


def test_the_advice_names_tensor_loss_and_better_dtypes() -> None:
    found = [
        measure("small", *low_rank_update(0.1), torch.bfloat16),
        measure("large", *low_rank_update(0.01), torch.bfloat16),
    ]
    text = advice(found, "bfloat16")
    assert "large" in text
    assert "16" in text  # per cent
    assert "float32 would lose nothing" in text
    assert worst(found) == found[1].relative_rounding


def test_an_update_kept_apart_is_compared_with_itself() -> None:
    found = measure_update("w", torch.ones(2), torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0]))
    assert found.relative_rounding == 0.5
    assert found.unchanged_fraction == 0
