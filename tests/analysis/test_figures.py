"""Figures: that all are drawn, hold what they should, and can be read without colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_eval_spt.analysis import figures
from lm_eval_spt.analysis.arms import Arm, training_record
from lm_eval_spt.analysis.distances import KINDS, coordinates, distances
from lm_eval_spt.analysis.languages import languages
from lm_eval_spt.analysis.results import read_run
from lm_eval_spt.analysis.transfer import analyse
from lm_eval_spt.analysis.world_map import equal_earth
from lm_eval_spt.cli import main
from tests.helpers.results import some_scores, write_prompt, write_results

pytest.importorskip("matplotlib")
from PIL import Image  # noqa: E402


def arm(folder: Path, name: str, mean: float, count: int = 80, **prompt: Any) -> Arm:
    file = write_prompt(folder / f"{name}.safetensors", **prompt) if prompt else None
    run = read_run(write_results(folder / name, some_scores(mean, count), prompt=file))
    return Arm(name, [run], [training_record(run)])


def drawn(arms: list[Arm]) -> dict[str, Any]:
    analysis = analyse(arms, distances("eng_Latn", languages()))
    return dict(figures._figures(analysis, arms))


@pytest.fixture
def arms(tmp_path: Path) -> list[Arm]:
    return [
        arm(tmp_path, "none", 0.3),
        arm(tmp_path, "length 4", 0.4, length=4, reparameterization="none"),
        arm(tmp_path, "length 16", 0.5, length=16, reparameterization="none"),
        arm(tmp_path, "mlp 16", 0.45, length=16, reparameterization="mlp"),
    ]


def test_all_figures_are_drawn_as_png_and_pdf(tmp_path, arms):
    analysis = analyse(arms, distances("eng_Latn", languages()))
    written = figures.draw(analysis, arms, tmp_path / "figures")
    names = {"distance", "families", "differences", "heatmap", "map", "prompt_length", "reparameterization"}
    assert {path.name for path in written} == {f"{name}.{ending}" for name in names for ending in ("png", "pdf")}
    for path in written:
        if path.suffix == ".png":
            pixels = np.asarray(Image.open(path).convert("RGB"))
            assert pixels.shape[1] == 1400
            assert pixels[[0, -1]].min() == 255  # nothing is cut off at the edges
            assert pixels[:, [0, -1]].min() == 255
        else:
            assert path.read_bytes().startswith(b"%PDF")


def test_the_points_are_the_data(arms):
    panels = drawn(arms)["distance"].axes
    measured = distances("eng_Latn", languages())
    assert [panel.get_title() for panel in panels] == list(KINDS)
    for panel, kind in zip(panels, KINDS, strict=True):
        for collection, shown in zip(panel.collections, arms, strict=True):
            scores = shown.scores("acc")
            expected = [
                (measured.values[kind][code], 100 * scores[code].value) for code in sorted(scores) if code != "eng_Latn"
            ]
            np.testing.assert_allclose(collection.get_offsets(), expected)


def test_the_map_has_the_scores_of_the_reference_and_the_gains_of_the_others(arms):
    figure = drawn(arms)["map"]
    panels = [panel for panel in figure.axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == [
        "none: acc (%)",
        "length 4: gain in acc, points",
        "length 16: gain in acc, points",
        "mlp 16: gain in acc, points",
    ]
    reference = arms[0].scores("acc")
    codes = sorted(code for code in reference if code != "eng_Latn")
    places = np.array([coordinates([code[:3]])[code[:3]] for code in codes])
    for panel, shown in zip(panels, arms, strict=True):
        (points,) = panel.collections
        np.testing.assert_allclose(points.get_offsets(), np.stack(equal_earth(*places.T), 1))
        scores = shown.scores("acc")
        values = [100 * (scores[code].value - (shown is not arms[0]) * reference[code].value) for code in codes]
        np.testing.assert_allclose(points.get_array(), values)
    assert panels[1].collections[0].get_clim() == panels[3].collections[0].get_clim()
    low, high = panels[1].collections[0].get_clim()
    assert low == -high  # no gain is white


def test_lengths_and_reparameterizations(arms):
    both = drawn(arms)
    (panel,) = both["prompt_length"].axes
    targets, source = panel.lines
    assert list(targets.get_xdata()) == list(source.get_xdata()) == [4, 16]
    assert list(source.get_ydata()) == pytest.approx(
        [100 * shown.scores("acc")["eng_Latn"].value for shown in arms[1:3]]
    )
    (panel,) = both["reparameterization"].axes
    offsets = [collection.get_offsets() for collection in panel.collections]
    means = [points[0, 0] for points in offsets if len(points) == 1]
    assert np.mean(means) == pytest.approx(-5, abs=1)


def test_figures_without_their_data_are_left_out(tmp_path):
    assert set(drawn([arm(tmp_path, "a", 0.3, count=30)])) == {"distance", "families", "heatmap", "map"}


def test_arms_differ_in_more_than_colour():
    styles = [figures._style(index) for index in range(8)]
    assert len({style["marker"] for style in styles}) == len({style["color"] for style in styles}) == 8
    # In print without colours as well as on screen, every colour stands out from white (WCAG asks 2:1 at the least).
    for style in styles:
        red, green, blue = (int(style["color"][start : start + 2], 16) / 255 for start in (1, 3, 5))
        linear = [
            value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (red, green, blue)
        ]
        luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
        assert 1.05 / (luminance + 0.05) > 2


def test_the_command_draws(tmp_path, capsys):
    write_results(tmp_path / "a", some_scores(0.5, 12))
    for place in (tmp_path / "first", tmp_path / "second"):
        assert main(["transfer", f"$a_${'{'}={tmp_path / 'a'}", "--figures", str(place)]) == 0
        assert f"wrote 8 files to {place}" in capsys.readouterr().err
    names = sorted(path.name for path in place.iterdir())
    assert names[:2] == ["distance.pdf", "distance.png"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
