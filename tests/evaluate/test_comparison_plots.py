"""The two pictures of a comparison: everything in the table is in them, zero parameters too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from gistcli.evaluate import comparison_plots
from gistcli.evaluate.comparison_plots import (
    PALETTE,
    Dot,
    plot_learning_curves,
    plot_over_parameters,
    spread,
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = comparison_plots.save_figure

    def keep(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(comparison_plots, "save_figure", keep)
    return figures


def test_no_parameters_stand_at_a_tick_that_says_zero(tmp_path: Path, drawn: list[Figure]) -> None:
    dots = [Dot("linear", 0, 0.7, 0.01), Dot("gift", 24_576, 0.8), Dot("full", 85_800_000, 0.82)]
    dots.append(Dot("published: gift", 24_576, 0.79, published=True))
    plot_over_parameters(dots, tmp_path / "p.png", title="x", metric="test/accuracy")
    (axes,) = drawn[0].axes
    zero = axes.get_xticks()[0]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels[0] == "0"
    assert labels.count("0") == 1
    assert zero < 24_576 / 2
    assert any(np.allclose(line.get_xdata(), zero) for line in axes.get_lines())
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["linear", "gift", "full", "published"]
    with Image.open(tmp_path / "p.png") as picture:
        assert min(picture.size) > 400


def test_without_a_row_of_zero_parameters_there_is_no_zero(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plot_over_parameters([Dot("gift", 512, 0.8)], tmp_path / "p.png", title="", metric="m")
    (axes,) = drawn[0].axes
    assert "0" not in [text.get_text() for text in axes.get_xticklabels()]


def test_only_zero_parameters_can_be_drawn_and_a_loss_is_no_percentage(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plot_over_parameters([Dot("linear", 0, 1.3)], tmp_path / "p.png", title="", metric="m",
                         rate=False)  # fmt: skip
    assert not any("%" in text.get_text() for text in drawn[0].axes[0].get_yticklabels())


def test_a_panel_a_task_and_a_line_a_row_with_the_range_of_its_seeds(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    curve = [(10, 0.2), (20, 0.5)]
    higher = [(10, 0.4), (20, 0.6)]
    tasks = {f"t{i}": {"gift": [curve, higher], "lora": [higher]} for i in range(5)}
    del tasks["t3"]["gift"]
    plot_learning_curves(tasks, ["gift", "lora"], tmp_path / "c.png", title="x", metric="m")
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == list(tasks)
    first, fourth = panels[0], panels[3]
    assert [line.get_label() for line in first.get_lines()] == ["gift", "lora"]
    assert first.get_lines()[0].get_ydata().tolist() == pytest.approx([0.3, 0.55])
    assert len(first.collections) == 1  # one seed has no band
    assert [line.get_color() for line in fourth.get_lines()] == [PALETTE[1]]


def test_runs_of_other_steps_are_averaged_where_they_have_figures() -> None:
    steps, mean, low, high = spread([[(1, 0.0), (2, 1.0)], [(2, 0.5), (3, 0.5)]])
    assert steps.tolist() == [1, 2, 3]
    assert mean.tolist() == [0.0, 0.75, 0.5]
    assert low.tolist() == [0.0, 0.5, 0.5]
    assert high.tolist() == [0.0, 1.0, 0.5]


def test_more_rows_than_colours_differ_in_their_dashes() -> None:
    styles = {comparison_plots._style(place) for place in range(20)}
    assert len(styles) == 20


def test_a_row_with_a_long_name_leaves_room_for_the_curves(tmp_path: Path) -> None:
    """Matplotlib warns where the axes collapse, and warnings are errors here."""
    names = [f"prefix (method.init=run:{'/deep' * 30}/{end})" for end in ("hyper", "shared")]
    curves = {"task": {name: [[(0, 0.1), (5, 0.9)]] for name in names}}
    plot_learning_curves(curves, names, tmp_path / "c.png", title="t", metric="accuracy")
    dots = [Dot(name, 10.0, 0.5) for name in names]
    plot_over_parameters(dots, tmp_path / "d.png", title="t", metric="accuracy")
    assert min(p.stat().st_size for p in tmp_path.glob("*.png")) > 5_000
