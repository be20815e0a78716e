"""Image grids and loss curves."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from dreambooth_trainer.report.contents import Comparison
from dreambooth_trainer.report.curves import loss_curves, smooth
from dreambooth_trainer.report.grids import GAP, TEXT_SIZE, Row, comparison_grid, fit, labeled_grid

RED, BLUE = (255, 0, 0), (0, 0, 255)
LINE = TEXT_SIZE + 2 * GAP


@dataclass(frozen=True)
class Record:
    step: int
    loss: float
    instance_loss: float
    prior_loss: float | None
    learning_rate: float


def _records(count: int, prior: bool = True, rate: float = 1e-4) -> list[Record]:
    return [Record(s, 2.0 / (s + 1), 1.0 / (s + 1), 1.0 / (s + 1) if prior else None, rate) for s in range(count)]


def _svg_text(svg: str) -> list[str]:
    return [e.text for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text") if e.text]


def test_fit_enlarges_sprites_sharply() -> None:
    sprite = Image.new("RGB", (32, 32), RED)
    sprite.paste(BLUE, (16, 0, 32, 32))
    shown = fit(sprite, 192)
    assert shown.size == (192, 192)
    assert {color for _, color in shown.getcolors(maxcolors=256) or []} == {RED, BLUE}
    assert (shown.getpixel((95, 0)), shown.getpixel((96, 0))) == (RED, BLUE)


@pytest.mark.parametrize("size", [(2048, 1024), (150, 75), (1, 5000), (33, 32)])
def test_fit_scales_the_entire_image_into_a_square(size: tuple[int, int]) -> None:
    shown = fit(Image.new("RGBA", size, RED), 100)
    assert shown.size == (100, 100)
    assert shown.getpixel((49, 50)) == RED


def test_images_have_the_right_positions_in_a_grid() -> None:
    red, blue = Image.new("RGB", (10, 10), RED), Image.new("RGB", (10, 10), BLUE)
    grid = labeled_grid([Row("one", ((red, red), (blue,))), Row("two", ((red,), (blue,)))], tile=50)
    second_group = GAP + 2 * (50 + GAP) + 3 * GAP
    assert grid.size == (second_group + 50 + GAP, 2 * (LINE + 50) + GAP)
    for row in range(2):
        middle = row * (LINE + 50) + LINE + 25
        assert grid.getpixel((GAP + 25, middle)) == RED
        assert grid.getpixel((second_group + 25, middle)) == BLUE
    gap_in_row_two = (GAP + 50 + GAP + 25, LINE + 50 + LINE + 25)
    assert grid.getpixel(gap_in_row_two) == (255, 255, 255)


def test_labels_are_drawn_and_long_ones_truncated() -> None:
    red = Image.new("RGB", (10, 10), RED)
    blank = labeled_grid([Row("", ((red,),))], tile=50)
    long = labeled_grid([Row("a very long prompt indeed " * 9, ((red,),))], tile=50)
    assert long.size == blank.size
    assert long.tobytes() != blank.tobytes()
    margin = long.crop((long.width - GAP + 1, 0, long.width, LINE))
    assert margin.getcolors() == [(margin.width * margin.height, (255, 255, 255))]


def test_comparison_grid_limits_the_number_of_images() -> None:
    red = Image.new("RGB", (10, 10), RED)
    many = comparison_grid([Comparison("p", (red,) * 9, (red,) * 9)], tile=20, max_images=2, pairs=2)
    assert many.width == GAP + 4 * (20 + GAP) + 3 * GAP
    with pytest.raises(ValueError, match="at least one row"):
        comparison_grid([])


def test_images_from_the_same_noise_are_next_to_each_other_in_every_row() -> None:
    red, blue, green = (Image.new("RGB", (10, 10), color) for color in (RED, BLUE, (0, 255, 0)))
    rows = [Comparison("a", (red,) * 4, (blue, green, green, green)), Comparison("b", (red,), (blue, green))]
    grid = comparison_grid(rows, tile=50)
    assert grid.width == GAP + 5 * (50 + GAP) + 6 * GAP
    starts = [GAP, 50 + 5 * GAP, 100 + 9 * GAP]
    for row in range(2):
        middle = LINE + row * (LINE + 50) + LINE + 25
        assert [grid.getpixel((start + 25, middle)) for start in starts] == [RED, BLUE, (0, 255, 0)]


def test_smooth_ignores_missing_values() -> None:
    values = np.array([1.0, 2.0, math.nan, 4.0, 6.0])
    np.testing.assert_allclose(smooth(values, 3), [1.5, 1.5, 3.0, 5.0, 5.0])
    np.testing.assert_allclose(smooth(values, 1), values)
    assert len(smooth(np.array([1.0, 2.0]), 50)) == 2


@pytest.mark.parametrize("values", [[math.nan] * 3, [math.inf, 1.0, 1.0]])
def test_smooth_handles_values_that_are_not_finite(values: Sequence[float]) -> None:
    smoothed = smooth(np.array(values), 1)
    assert math.isnan(smoothed[0])
    assert len(smoothed) == 3


def test_curves_have_three_lines_with_prior_preservation_and_one_without() -> None:
    assert {"Total", "Instance images", "Prior"} <= set(_svg_text(loss_curves(_records(50))))
    text = _svg_text(loss_curves(_records(50, prior=False)))
    assert "Total" in text
    assert "Prior" not in text


def test_curves_show_the_learning_rate_if_it_varies() -> None:
    assert "Learning rate" not in _svg_text(loss_curves(_records(10)))
    rising = [Record(r.step, r.loss, r.instance_loss, r.prior_loss, r.step * 1e-5) for r in _records(10)]
    assert "Learning rate" in _svg_text(loss_curves(rising))


def test_curves_are_deterministic_and_ignore_repeated_steps() -> None:
    records = _records(40)
    once = loss_curves(records)
    assert once == loss_curves(records)
    assert once == loss_curves(records[:30] + records[20:])  # steps 20-29 were repeated
    assert "currentColor" in once
    assert once.startswith("<svg")


def test_curves_of_no_one_many_and_invalid_records() -> None:
    assert loss_curves([]) == ""
    assert "Total" in _svg_text(loss_curves(_records(1)))
    assert "Total" in _svg_text(loss_curves([Record(0, math.nan, math.nan, None, 1e-4), *_records(3)[1:]]))
    assert len(loss_curves(_records(20_000))) < 400_000
