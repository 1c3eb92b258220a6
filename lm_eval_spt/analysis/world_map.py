"""A world map: where languages are spoken, on the outlines of the land.

The outlines are Natural Earth's (public domain), in ``html/land.json``. The places are lang2vec's, which are
Glottolog's (CC BY 4.0). The projection is Equal Earth: Šavrič, Patterson and Jenny 2018,
doi:10.1080/13658816.2018.1504949.
"""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAND = pathlib.Path(__file__).parent / "html" / "land.json"

SOUTH = 58
"""Degrees south of the equator at which a drawn map ends: no language is spoken beyond."""

A1, A2, A3, A4 = 1.340264, -0.081106, 0.000893, 0.003796


def equal_earth(latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project places on the globe, given in degrees, to x and y on a map that keeps areas."""
    theta = np.arcsin(np.sqrt(3) / 2 * np.sin(np.radians(latitude)))
    scale = 9 * A4 * theta**8 + 7 * A3 * theta**6 + 3 * A2 * theta**2 + A1
    x = 2 / np.sqrt(3) * np.radians(longitude) * np.cos(theta) / scale
    return x, A4 * theta**9 + A3 * theta**7 + A2 * theta**3 + A1 * theta


def draw_land(panel: Axes) -> None:
    """Draw the land and the map's edge, without Antarctica."""
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    side = np.linspace(-SOUTH, 90, 91)
    edge = np.stack(equal_earth(np.concatenate([side, side[::-1]]), np.repeat([180.0, -180.0], len(side))), 1)
    frame = panel.add_patch(Polygon(edge, facecolor="none", edgecolor="0.75", linewidth=0.5))
    for polygon in json.loads(LAND.read_text(encoding="utf-8"))["coordinates"]:
        rings = [_whole(*np.array(ring).T) for ring in polygon]  # after the coast come lakes
        if rings[0][0].max() < -SOUTH:
            continue
        for shift in (-360, 0, 360):  # what is beyond the map's edge in the east is to be seen in the west
            corners = [np.stack(equal_earth(latitude, longitude + shift), 1) for latitude, longitude in rings]
            path = Path.make_compound_path(*(Path(ring, closed=True) for ring in corners))
            panel.add_patch(PathPatch(path, facecolor="0.9", linewidth=0, clip_path=frame))
    panel.set_aspect("equal")
    panel.set(xlim=(edge[:, 0].min(), edge[:, 0].max()), ylim=(edge[:, 1].min(), edge[:, 1].max()))
    panel.axis("off")


def _whole(longitude: np.ndarray, latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A ring's latitude and longitude without jumps from 180 to -180 degrees: it may go on beyond these."""
    longitude = np.unwrap(longitude, period=360)
    return latitude, longitude - 360 * np.round((longitude.min() + longitude.max()) / 720)
