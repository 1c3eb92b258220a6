"""The six distances, against the libraries' own functions and published values."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lm_eval_spt.analysis import distances as module
from lm_eval_spt.analysis.distances import KINDS, coordinates, distances, nearest
from lm_eval_spt.analysis.languages import languages
from lm_eval_spt.common.errors import UserError

FEATURE_SETS = {
    "syntactic": "syntax_knn",
    "phonological": "phonology_knn",
    "inventory": "inventory_knn",
    "featural": "syntax_knn+phonology_knn+inventory_knn",
    "geographic": "geo",
}
"""Without genetic: lang2vec takes seconds to look up the names of the family's features."""


def test_values_that_uriel_plus_publishes():
    to_danish = distances("frr_Latn", ["dan_Latn"]).values
    assert (round(to_danish["genetic"]["dan_Latn"], 4), round(to_danish["geographic"]["dan_Latn"], 4)) == (
        0.6936,
        0.0023,
    )
    to_french = distances("eng_Latn", ["fra_Latn"]).values
    assert (round(to_french["genetic"]["fra_Latn"], 4), round(to_french["geographic"]["fra_Latn"], 4)) == (
        0.9386,
        0.0246,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("formula", ["angular", "cosine"])
def test_they_are_those_of_the_vectors_that_lang2vec_gives(monkeypatch, formula):
    pytest.importorskip("pkg_resources")
    commands = str(Path(sys.executable).parent)  # has a script of that name; `pytest` alone imports from there, too
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != commands])
    from lang2vec import lang2vec

    codes = ["deu", "tur", "yor", "vie"]
    measured = distances("eng_Latn", [f"{code}_Latn" for code in codes], formula).values
    for kind, feature_set in FEATURE_SETS.items():
        features = lang2vec.get_features(["eng", *codes], feature_set)
        vectors = {code: np.array(vector, dtype=float) for code, vector in features.items()}
        for code in codes:
            norms = np.linalg.norm(vectors["eng"]) * np.linalg.norm(vectors[code])
            cosine = np.dot(vectors["eng"], vectors[code]) / norms
            expected = 1 - cosine if formula == "cosine" else 2 * np.arccos(cosine) / np.pi
            assert measured[kind][f"{code}_Latn"] == pytest.approx(expected, abs=2e-6), (kind, code)


def test_all_languages_of_sib200_have_all_distances():
    measured = distances("eng_Latn", languages())
    for kind in KINDS:
        assert not measured.missing[kind]
        assert set(measured.values[kind]) == set(languages())
        assert all(0 <= value <= 1 for value in measured.values[kind].values())
        assert measured.values[kind]["eng_Latn"] == 0
        assert measured.values[kind]["arb_Arab"] == measured.values[kind]["arb_Latn"]


def test_stand_ins_are_used_where_there_is_nothing_and_named():
    measured = distances("eng_Latn", ["lvs_Latn", "twi_Latn", "eus_Latn", "deu_Latn"])
    assert measured.stand_ins == {"lvs_Latn": "lav", "twi_Latn": "aka"}
    assert measured.values["genetic"]["lvs_Latn"] == distances("eng_Latn", ["lav_Latn"]).values["genetic"]["lav_Latn"]
    assert measured.values["genetic"]["eus_Latn"] == 1
    assert distances("eus_Latn", ["eus_Latn"]).values["genetic"]["eus_Latn"] == 0


def test_the_nearest_are_those_with_the_smallest_distances():
    codes = [*languages(), "qqq_Latn"]
    found = nearest(codes, 5)
    for kind in KINDS:
        assert len(found[kind]) == len(codes)
        assert found[kind][-1] == []  # nothing is known of it
    for start in ("eng_Latn", "eus_Latn", "kaz_Cyrl", "nqo_Nkoo"):
        others = [code for code in languages() if code != start]
        measured = distances(start, others).values
        for kind in KINDS:
            near = [(codes[index], far) for index, far in found[kind][codes.index(start)]]
            order = sorted(others, key=lambda code: (measured[kind][code], measured["geographic"][code], code))
            assert near == [(code, pytest.approx(measured[kind][code], abs=1e-6)) for code in order[:5]]


def test_what_is_missing_is_counted():
    measured = distances("eng_Latn", ["deu_Latn", "qqq_Latn"])
    assert all(measured.missing[kind] == ["qqq_Latn"] for kind in KINDS)
    assert np.isnan(measured.vector("genetic", ["qqq_Latn"])).all()
    assert not any(distances("qqq_Latn", ["deu_Latn"]).values.values())


def test_the_method_names_formula_sets_and_version():
    method = distances("eng_Latn", ["deu_Latn"]).method
    for part in ("2 arccos(cosine) / pi", "syntax_knn", "fam", "geo", "lang2vec"):
        assert part in method
    assert "1 - cosine" in distances("eng_Latn", ["deu_Latn"], "cosine").method


@pytest.mark.parametrize(("options", "message"), [({"formula": "l2"}, "formula"), ({"library": "uriel"}, "library")])
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(UserError, match=f"unknown .*{message}"):
        distances("eng_Latn", ["deu_Latn"], **options)


def test_precomputed_distances_are_used_where_the_installed_version_has_them(tmp_path, monkeypatch):
    zipfile.ZipFile(tmp_path / "distances2.zip", "w").close()
    known = ["eng", "deu", "lav"]
    table = {("eng", "deu"): 0.25, ("eng", "lav"): 0.75}

    def distance(kind, asked):
        assert kind in KINDS
        return np.array([[0 if a == b else table.get((a, b), -1) for b in asked] for a in asked])

    fake = types.ModuleType("lang2vec.lang2vec")
    fake.DISTANCE_LANGUAGES, fake.distance = known, distance
    package = types.ModuleType("lang2vec")
    package.lang2vec = fake
    monkeypatch.setattr(module, "_data", lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "lang2vec", package)
    monkeypatch.setitem(sys.modules, "lang2vec.lang2vec", fake)
    measured = distances("eng_Latn", ["deu_Latn", "lvs_Latn", "fra_Latn"])
    assert all(by_code == {"deu_Latn": 0.25, "lvs_Latn": 0.75} for by_code in measured.values.values())
    assert measured.missing["genetic"] == ["fra_Latn"]
    assert measured.stand_ins == {"lvs_Latn": "lav"}
    assert "precomputed" in measured.method


def test_urielplus_agrees():
    urielplus = pytest.importorskip("urielplus.urielplus")
    uriel = urielplus.URIELPlus()
    codes = ["deu", "yor", "kor"]
    targets = [f"{code}_Latn" for code in codes]
    with_it = distances("eng_Latn", targets, library="urielplus")
    plain = distances("eng_Latn", targets)
    for code, target in zip(codes, targets, strict=True):
        for kind in ("genetic", "geographic"):
            assert round(plain.values[kind][target], 4) == pytest.approx(
                uriel.new_distance(kind, "eng", code), abs=1e-4
            )
        for kind in KINDS:
            try:
                expected = uriel.new_distance(kind, "eng", code)
            except ValueError:  # no feature in common
                assert target in with_it.missing[kind]
            else:
                assert with_it.values[kind][target] == pytest.approx(expected, abs=1e-4)
    assert "urielplus" in with_it.method


@pytest.mark.parametrize(
    ("source", "sums"),  # over the 205 languages, by version 0.1
    [
        ("eng_Latn", (112.1816, 80.4803, 100.8994, 104.5198, 194.0572, 43.9244)),
        ("swh_Latn", (120.3670, 93.8877, 87.7346, 104.1784, 193.2791, 46.8645)),
        ("zho_Hans", (123.1226, 96.3060, 111.3977, 114.9906, 201.7396, 52.8708)),
    ],
)
def test_those_of_sib200_are_those_of_the_first_results(source, sums):
    measured = distances(source, languages()).values
    assert [sum(measured[kind].values()) for kind in KINDS] == pytest.approx(sums, abs=1e-4)


def test_any_language_of_uriel_has_distances():
    measured = distances("eng_Latn", ["vai_Vaii", "brh_Arab", "yrl_Latn", "pcm_Latn"])
    assert not any(measured.missing.values())
    assert not measured.stand_ins


def test_coordinates_follow_from_the_distances_to_known_points():
    # Glottolog's: Standard English 53.0 -1.0, German 48.649 12.4676, Zulu -25.3305 31.3512, Maori -38.29 176.54.
    found = coordinates(["eng", "deu", "zul", "mri", "qqq"])
    expected = {"eng": (53.0, -1.0), "deu": (48.65, 12.47), "zul": (-25.33, 31.35), "mri": (-38.29, 176.54)}
    assert found.keys() == expected.keys()
    for code, place in expected.items():
        assert found[code] == pytest.approx(place, abs=0.3)
    assert len(coordinates(code[:3] for code in languages())) == 197


def test_coordinates_give_back_the_vectors_that_they_are_made_of():
    table = module._lang2vec("geography")
    points = np.radians([[float(part) for part in name.split("_")[1:]] for name in table.names])
    for code, place in coordinates(["eng", "quy", "mri", "hau"]).items():
        latitude, longitude = np.radians(place)
        # The haversine formula; a vector holds shares of half the girth, rounded.
        half = np.sin((points[:, 0] - latitude) / 2) ** 2
        half += np.cos(points[:, 0]) * np.cos(latitude) * np.sin((points[:, 1] - longitude) / 2) ** 2
        angles = 2 * np.arcsin(np.sqrt(half)) / np.pi
        assert np.abs(angles - table.values[table.rows[code]]).max() < 0.01
