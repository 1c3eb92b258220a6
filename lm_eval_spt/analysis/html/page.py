"""The leaderboard as one HTML file that needs nothing else: it holds style, scripts, plotting library and all numbers.

The parts are files beside this one: ``index.html`` with its placeholders, ``page.css``, and the scripts in the order of
:data:`SCRIPTS`. The numbers are embedded as JSON and drawn in the browser.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_eval_spt.analysis.arms import Arm, curves, data_set
from lm_eval_spt.analysis.distances import KINDS, coordinates, distances, nearest
from lm_eval_spt.analysis.languages import language, seen_by
from lm_eval_spt.analysis.leaderboard import Leaderboard, Standing
from lm_eval_spt.analysis.results import Score

PARTS = Path(__file__).parent
SCRIPTS = ("d3.min.js", "plot.min.js", "table.js", "charts.js", "page.js")
DECIMALS = 4  # of a score, which is a share of 1
NEAREST = 10  # languages that are shown beside one language
CONTAINED = "over seeds and documents"  # what the intervals contain; stands in the heads of tables


def page(board: Leaderboard) -> str:
    """Return the HTML of a leaderboard. The same leaderboard gives the same text.

    Only the page's own scripts can run in it: its security policy lists their digests, so that text from a results file
    can never become a script.
    """
    scripts = [_part(name) for name in SCRIPTS]
    values = {
        "title": html.escape(f"Leaderboard: {_data_set(board)}"),
        "style": _part("page.css"),
        "data": as_json(contents(board)),
        "land": _part("land.json"),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
        "script_hashes": " ".join(f"'sha256-{_digest(script)}'" for script in scripts),
    }
    # All at once, because inserted text may hold braces of its own.
    return re.sub(r"{{(\w+)}}", lambda match: values[match[1]], _part("index.html"))


def contents(board: Leaderboard) -> dict[str, Any]:
    """Return the data that `page.js` shows. Scores are shares of 1."""
    codes = sorted({language for arm in board.arms for name in board.standings for language in arm.scores(name)})
    measured = distances(board.source, codes)
    places = coordinates(code.partition("_")[0] for code in codes)
    near = nearest(codes, NEAREST)
    return {
        "source": board.source,
        "summary": _summary(board),
        "method": board.method,
        "contained": CONTAINED,
        "notices": list(board.notices),
        "metric": next(iter(board.standings)),
        "metrics": list(board.standings),
        "distances": list(KINDS),
        "distance_method": f"Distances: {measured.method}.",
        "languages": [
            _language(code, [arm.base_model for arm in board.arms])
            | {"target": code in board.targets}
            | {"distances": {kind: _round(measured.values[kind].get(code)) for kind in KINDS}}
            | {"place": places.get(code.partition("_")[0])}
            | {"nearest": {kind: [(other, round(far, 3)) for other, far in near[kind][index]] for kind in KINDS}}
            for index, code in enumerate(codes)
        ],
        "arms": [
            _arm(arm, {name: by_arm[index] for name, by_arm in board.standings.items()}, codes, board.source)
            for index, arm in enumerate(board.arms)
        ],
        "curves": {
            setting: [{"name": name, "arms": members} for name, members in curves(board.arms, setting)]
            for setting in ("prompt_length", "reparameterization")
        },
    }


def _arm(arm: Arm, standings: Mapping[str, Standing], codes: list[str], source: str) -> dict[str, Any]:
    """An arm's facts and scores, the latter in the order of `codes`."""
    first = arm.runs[0]
    return {
        "name": arm.name,
        "base_model": arm.base_model,
        "prompt": _listing(f"{run.prompt_name}@{run.prompt_digest[:8]}" for run in arm.runs if run.prompt_digest),
        "description": arm.description,
        "prompt_length": first.prompt_length,
        "reparameterization": arm.reparameterization,
        "trained_on": arm.trained_on,
        "tuned_parameters": arm.tuned_parameters,
        "training_cost": arm.training_cost,
        "seeds": _listing(str(training["seed"]) for training in arm.training if "seed" in training),
        "runs": [run.prompt_name or run.model_name or run.path.stem for run in arm.runs],
        "tasks": f"{first.family} {first.task_version or ''}".strip(),
        "harness": _listing(sorted({run.harness_version for run in arm.runs if run.harness_version})),
        "scores": {name: _scores(arm, name, standing, codes, source) for name, standing in standings.items()},
    }


def _scores(arm: Arm, metric: str, standing: Standing, codes: list[str], source: str) -> dict[str, Any]:
    scores = arm.scores(metric)
    at_source = scores.get(source)
    return {
        "position": standing.position,
        "rank": standing.rank,
        "mean": _round(standing.mean),
        "interval": [_round(end) for end in standing.interval] if standing.interval else None,
        "source": _round(at_source.value) if at_source else None,
        "gap": _round(at_source.value - standing.mean) if at_source else None,
        "values": _values(scores, codes),
        "margins": [  # half of the intervals' widths
            _round((ends[1] - ends[0]) / 2) if (ends := standing.intervals.get(code)) else None for code in codes
        ],
        "runs": [_values(run.scores[metric], codes) for run in arm.runs] if len(arm.runs) > 1 else [],
    }


def _values(scores: Mapping[str, Score], codes: list[str]) -> list[float | None]:
    return [_round(scores[code].value) if code in scores else None for code in codes]


def _language(code: str, base_models: Iterable[str | None]) -> dict[str, Any]:
    """A language's facts."""
    facts = language(code)
    known = [seen for base_model in set(base_models) if (seen := seen_by(base_model)) is not None]
    words = {(): "unknown", (True,): "yes", (False,): "no", (False, True): "by some base models"}
    return {
        "code": code,
        "name": facts.name,
        "family": facts.family or "unknown",
        "script": facts.script_name,
        "seen": words[tuple(sorted({code in seen for seen in known}))],
    }


def _summary(board: Leaderboard) -> str:
    run = board.arms[0].runs[0]
    runs = sum(len(arm.runs) for arm in board.arms)
    latest = max((run.date for arm in board.arms for run in arm.runs if run.date), default=None)
    facts = [
        f"{len(board.arms)} arms ({runs} runs) on {_data_set(board)}, task version {run.task_version or 'unknown'}",
        "few-shot number unknown" if run.num_fewshot is None else f"{run.num_fewshot}-shot",
        f"source language {language(board.source).name} ({board.source})",
        f"{len(board.targets)} target languages",
        f"newest result of {latest:%Y-%m-%d}" if latest else "",
    ]
    return ", ".join(fact for fact in facts if fact) + "."


def _data_set(board: Leaderboard) -> str:
    return data_set(board.arms[0].runs[0].family)


def _listing(texts: Iterable[str]) -> str | None:
    return ", ".join(texts) or None


def _round(number: float | None) -> float | None:
    return None if number is None else round(number, DECIMALS)


def as_json(content: Mapping[str, Any]) -> str:
    """Return JSON that can stand between script tags: it holds no character that has a meaning in HTML."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
