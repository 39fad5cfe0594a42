"""The unified score: its scale, what it ranks, and evaluations that cannot be ranked."""

import json

import numpy as np
import pytest

from race.cli import main
from race.evaluate.command_rank import ranked
from race.evaluate.metrics import LEVELS, calibration_error
from race.evaluate.score import CE_MAX, unified_score


def records(rmse_f: float = 100.0, auroc: float = 0.9, **changes) -> list[dict]:
    known = {
        "posterior": "ensemble",
        "split": "liquid",
        "ood": False,
        "n_frames": 10,
        "n_atoms": 80,
        "rmse_e": 5.0,
        "rmse_f": rmse_f,
        "ce_e": 0.01,
        "ce_f": 0.02,
        "spread_e": 50.0,
        "spread_f": 1000.0,
    } | changes
    return [
        known,
        known | {"split": "crystal", "ood": True, "rmse_f": 9e9, "ce_f": 0.3, "auroc": auroc},
    ]


def test_the_formula():
    score = unified_score(records())
    terms = [0.1, 0.1, 0.01 / CE_MAX, 0.02 / CE_MAX, 0.1]
    assert score["score"] == pytest.approx(np.mean(terms), abs=1e-15)
    assert [score[key] for key in ("rmse_e", "rmse_f", "ce_e", "ce_f", "1-auroc")] == pytest.approx(
        terms
    )


def test_the_ends_of_the_scale():
    perfect = records(rmse_f=0.0, auroc=1.0, rmse_e=0.0, ce_e=0.0, ce_f=0.0)
    assert unified_score(perfect)["score"] == 0
    ignorant = records(rmse_f=1000.0, auroc=0.5, rmse_e=50.0, ce_e=CE_MAX, ce_f=CE_MAX)
    assert unified_score(ignorant)["score"] == pytest.approx(0.9)
    # No predicted interval ever holds the reference, or every one does: nothing is worse,
    # to within the levels' spacing.
    assert calibration_error(np.full(50, 100.0)) == pytest.approx(
        CE_MAX
    ) and CE_MAX == pytest.approx(np.mean(LEVELS**2))
    assert calibration_error(np.zeros(50)) == pytest.approx(CE_MAX)
    rng = np.random.default_rng(0)
    assert (
        max(calibration_error(rng.standard_normal(200) * s) for s in (1e-3, 0.1, 0.5, 2, 10, 1e3))
        <= CE_MAX + 1e-12
    )


def test_it_does_not_depend_on_other_models_or_units():
    in_other_units = records(rmse_e=0.005, rmse_f=0.1, spread_e=0.05, spread_f=1.0)
    assert unified_score(in_other_units)["score"] == pytest.approx(
        unified_score(records())["score"], abs=1e-15
    )


def test_without_one_of_its_terms_there_is_none():
    assert unified_score(records()[:1]) is None  # nothing out of distribution
    assert unified_score(records()[1:]) is None
    assert unified_score(records(spread_e=0.0)) is None
    assert (
        unified_score(
            [{key: v for key, v in record.items() if key != "ce_e"} for record in records()]
        )
        is None
    )


def write(folder, content):
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_rank(tmp_path, capsys):
    paths = [
        write(tmp_path / name, records(rmse_f=f))
        for name, f in (("b", 200.0), ("a", 100.0), ("c", 300.0))
    ]
    assert [path.name for path, *_ in ranked(paths)] == ["a", "b", "c"]
    assert main(["rank", *map(str, paths)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("/a ") < printed.index("/b ") < printed.index("/c ")


@pytest.mark.parametrize(
    "other, message",
    [
        (records(n_frames=11), "its splits are not those of"),
        (records(spread_f=1001.0), "its splits are not those of"),
        (records()[:1], "no unified score"),
        ([record | {"ce_f": None} for record in records()], "no unified score"),
        (None, "not an evaluation"),
    ],
)
def test_what_cannot_be_ranked(tmp_path, capsys, other, message):
    paths = [write(tmp_path / "a", records()), tmp_path / "b"]
    if other is not None:
        write(tmp_path / "b", other)
    assert main(["rank", *map(str, paths)]) == 2
    assert message in capsys.readouterr().err
