"""The outlines of the land: that they are whole, small, and where the land is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lm_eval_spt.analysis.world_map import LAND, draw_land, equal_earth

LAND_AND_SEA = {
    (52.5, 13.4): True,  # Berlin
    (39.0, -98.0): True,  # Kansas
    (66.0, -172.5): True,  # Chukotka, beyond the map's edge in the east
    (66.0, 175.0): True,
    (-1.0, 15.0): True,  # Congo
    (-25.0, 134.0): True,  # Alice Springs
    (0.0, -30.0): False,  # the Atlantic
    (-20.0, 80.0): False,  # the Indian Ocean
    (30.0, -170.0): False,  # the Pacific, on both sides of the edge
    (30.0, 170.0): False,
    (41.7, 51.0): False,  # the Caspian Sea
}


def test_the_file_is_small_and_whole():
    assert LAND.stat().st_size < 100_000
    for polygon in json.loads(LAND.read_text())["coordinates"]:
        for ring in polygon:
            longitude, latitude = np.array(ring).T
            assert ring[0] == ring[-1]
            assert abs(longitude).max() <= 180 and abs(latitude).max() <= 90


def test_land_is_drawn_where_it_is():
    agg = pytest.importorskip("matplotlib.backends.backend_agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7))
    canvas = agg.FigureCanvasAgg(figure)
    panel = figure.subplots()
    draw_land(panel)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    for place, is_land in LAND_AND_SEA.items():
        x, y = panel.transData.transform(equal_earth(*np.array(place)))
        assert (pixels[len(pixels) - 1 - int(y), int(x), 0] < 250) == is_land, place
