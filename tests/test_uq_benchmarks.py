"""The studies of benchmarks/uq in their quick mode, on labels of a pair potential in the
layout of the published data.
"""

import json
import subprocess
import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

UQ = Path(__file__).parents[1] / "benchmarks" / "uq"
sys.path.insert(0, str(UQ))

import acquisition  # noqa: E402
import claims  # noqa: E402
import classical  # noqa: E402
import converged  # noqa: E402
import phases  # noqa: E402
import ranking  # noqa: E402
import result_tables as tables  # noqa: E402
import study  # noqa: E402

from race.conventions import KCAL_PER_MOL  # noqa: E402
from race.data import read_frames  # noqa: E402
from race.data.statistics import summary  # noqa: E402
from race.errors import RaceError  # noqa: E402

REQUIRED = (
    "posterior split rmse_e rmse_f rmse_s ce_e ce_f ce_e_recal ce_f_recal coverage90_e "
    "coverage90_f pit_ks nll_f auroc auroc_ideal "
    "train_s md_cost"
).split()
RNG = np.random.RandomState(0)


def labelled(symbols: str, periodic: bool, **info) -> ase.Atoms:
    """A jittered grid of atoms 1.6 A apart with Lennard-Jones labels."""
    grid = np.stack(np.meshgrid(*[range(2)] * 3), -1).reshape(-1, 3)
    atoms = ase.Atoms(
        symbols,
        1.6 * grid + 0.1 * RNG.standard_normal((8, 3)),
        cell=[3.2] * 3 if periodic else None,
        pbc=periodic,
    )
    atoms.calc = LennardJones(sigma=1.4, epsilon=0.1, rc=3.0, smooth=True)
    stress = {"stress": atoms.get_stress()} if periodic else {}
    atoms.calc = SinglePointCalculator(
        atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces(), **stress
    )
    atoms.info.update(info)
    return atoms


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("b2o3", "3bpa/active_learning", "rmd17"):
        (folder / name).mkdir(parents=True)

    def write(path: str, frames: list[ase.Atoms]) -> list[ase.Atoms]:
        ase.io.write(folder / path, frames)
        return frames

    for name in (
        "liquid_3000K_train",
        "liquid_1600K_train",
        "liquid_3000K_val",
        "liquid_1600K_val",
        "glass_300K_val",
        "crystal_alpha_val",
        "crystal_beta_val",
        "crystal_highP_40GPa_val",
    ):
        write(f"b2o3/B2O3_{name}.extxyz", [labelled("B3O5", True) for _ in range(20)])

    bpa = {"symbols": "H4C2NO", "periodic": False}
    train = write("3bpa/train_300K.xyz", [labelled(**bpa) for _ in range(20)])
    isolated = [ase.Atoms(symbol) for symbol in "HCNO"]
    for atom in isolated:
        atom.calc = SinglePointCalculator(atom, energy=-1.0, forces=np.zeros((1, 3)))
    write("3bpa/iso_atoms.xyz", isolated)
    for kelvin, name in (
        (300, "mixedT_not_in_train"),
        (600, "mixedT_plus_AL"),
        (1200, "mixedT_plus_AL"),
    ):
        mixed = [labelled(**bpa, source="train_mixedT.xyz") for _ in range(80)]
        drawn = [
            labelled(**bpa, source="RACE_AL", random_selected=k % 2 == 0)
            for k in range(160 if kelvin > 300 else 0)
        ]
        write(f"3bpa/test{kelvin}K_{name}.extxyz", mixed + drawn)
    write("3bpa/active_learning/train_rng_10.xyz", train + [labelled(**bpa) for _ in range(4)])
    write("3bpa/active_learning/valid_rng_10.xyz", [labelled(**bpa) for _ in range(2)])

    for part, n_frames in (("train", 20), ("test", 200)):
        frames = [labelled("C2H5O", False) for _ in range(n_frames)]
        np.savez(
            folder / f"rmd17/rmd17_ethanol_{part}_01.npz",
            nuclear_charges=frames[0].numbers,
            coords=[a.positions for a in frames],
            energies=[a.get_potential_energy() / KCAL_PER_MOL for a in frames],
            forces=[a.get_forces() / KCAL_PER_MOL for a in frames],
        )
    return folder


def quick(name: str, data: Path, out: Path, runs: str | None = None) -> str:
    command = [
        sys.executable,
        UQ / f"{name}.py",
        "--data",
        data,
        "--out",
        out / (runs or name),
        "--results",
        out,
        "--quick",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


POSTERIORS = {
    "b2o3": "single ensemble stacked distill llpr laplace swag ivon shallow evidential",
    "threebpa": "point ensemble laplace laplace-diagonal single-jef DE-JEF DE-E evidential eip",
    "rmd17": "RACE Ensemble single-jef DE-JEF DE-E evidential eip",
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_study_runs_and_is_not_run_again(name, data, tmp_path):
    quick(name, data, tmp_path)
    content = (tmp_path / f"{name}.json").read_text()
    records = tables.read(tmp_path / f"{name}.json")
    assert {"machine", "date", "versions"} <= json.loads(content)["about"].keys()
    assert (
        list(dict.fromkeys(record["posterior"] for record in records)) == POSTERIORS[name].split()
    )
    for record in records:
        assert (
            set(REQUIRED) <= record.keys()
            and record["rmse_f"] > 0
            and record["train_s"] > 0
            and record["md_cost"] > 0
        )
    assert all(
        posterior in (tmp_path / f"{name}.md").read_text() for posterior in POSTERIORS[name].split()
    )

    again = quick(name, data, tmp_path)
    assert not any(word in again for word in ("training", "fitting", "judging", "timing"))
    assert (tmp_path / f"{name}.json").read_text() == content


def test_converged_models_are_graded_and_not_fitted_again(data, tmp_path):
    """The committed model itself, on frames of another force field."""
    quick("converged", data, tmp_path)
    content = (tmp_path / "converged.json").read_text()
    records = tables.read(tmp_path / "converged.json")
    splits = [("300 K", False), ("600 K", True), ("1200 K", True)]
    assert [(r["posterior"], r["split"], r["ood"]) for r in records] == [
        (posterior, *split)
        for posterior in ("one member", "llpr", "distill", "pops")
        for split in splits
    ]
    for record in records:
        assert record["n_frames"] == (2 if record["ood"] else 3)
        assert set(REQUIRED) - {"train_s"} <= record.keys() and record["md_cost"] > 0
        for key in ("auroc_error_f", "auroc_error_f_grade", "auroc_error_f_trivial", "nll_f"):
            assert np.isfinite(record[key]), key
        assert not record["ood"] or 0 <= record["auroc_grade"] <= 1 <= 2 * record["auroc_trivial"]
    frames = {
        part: {atoms.info["energy"] for atoms in read_frames(path)}
        for path in (tmp_path / "converged" / "3bpa-medium-4-60" / "data").glob("*.xyz")
        for part in [path.stem]
    }
    assert set(frames) == {"fit", "calibration", "300K", "600K", "1200K"}
    assert sum(map(len, frames.values())) == len(set.union(*frames.values())), "a frame twice"
    again = quick("converged", data, tmp_path)
    assert not any(word in again for word in ("fitting", "judging", "exporting", "timing"))
    assert (tmp_path / "converged.json").read_text() == content


def test_matched_studies_run_and_are_not_run_again(data, tmp_path):
    """Labels by LAMMPS; the frames of `data` are not read."""
    quick("phases", data, tmp_path)
    content = (tmp_path / "phases.json").read_text()
    records = tables.read(tmp_path / "phases.json")
    splits = (phases.KNOWN, "unseen", phases.BOTH)
    assert [(r["study"], r["posterior"], r["split"]) for r in records] == [
        (study, posterior, split)
        for study in ("vacancy", "antisites")
        for posterior in ("ensemble", "one member", "llpr")
        for split in splits
    ]
    for record in records:
        assert record["n_frames"] == (6 if record["split"] == phases.BOTH else 3)
        assert record.get("seeds", 1) == (1 if record["posterior"] == "ensemble" else 2)
        assert np.isfinite(record["auroc_error_f_grade"])
        if record["split"] == "unseen":
            assert 0 <= record["auroc_grade"] <= 1 <= 2 * record["auroc_trivial"]
        if record["split"] == phases.BOTH:
            assert 0 <= record["auroc_together"] <= 1 <= 2 * record["auroc_by_labels"]
            assert 0 <= record["auroc_defect"] <= 1 <= 2 * record["auroc_defect_by_nearest"]
    for material in ("Si", "BN"):
        sets = {
            path.stem: {atoms.get_potential_energy() for atoms in ase.io.read(path, ":")}
            for path in (tmp_path / "phases" / material / "data").glob("*.xyz")
            if path.stem in ("train", "validation", "calibration") or "-" in path.stem
        }
        drawn = [sets[name] for name in sets if not name.endswith((phases.KNOWN, "unseen"))]
        assert sum(map(len, drawn)) == len(set.union(*drawn)), "a frame twice"
    again = quick("phases", data, tmp_path)
    assert not any(word in again for word in ("drawing", "training", "fitting", "judging"))
    assert (tmp_path / "phases.json").read_text() == content


def test_pairs_agree_in_every_score():
    known, unseen = RNG.standard_normal((60, 4)), RNG.standard_normal((30, 4)) + 0.3
    tolerances = [0.6, 0.7, 0.8, 0.9]
    pairs = classical.matched(known, unseen, tolerances, 100)
    assert 5 < len(pairs) <= 30 and all(len(set(rows)) == len(rows) for rows in pairs.T)
    apart = (known[pairs[:, 0]] - unseen[pairs[:, 1]]) / tolerances
    assert np.abs(apart).max() <= 1
    fewer = classical.matched(known, unseen, tolerances, 5)
    assert (fewer == pairs[:5]).all() and (np.diff((apart**2).sum(1)) >= 0).all()
    assert classical.matched(known, unseen + 9, tolerances, 5).shape == (0, 2)


def test_several_scores_find_what_none_finds_alone():
    """A product of two; and nothing where there is nothing."""
    values, positive = RNG.standard_normal((400, 4)), np.repeat([False, True], 200)
    values[:, 1] = np.abs(values[:, 1]) * np.sign(values[:, 0]) * np.where(positive, 1, -1)
    assert max(phases.side(score, positive) for score in values.T) < 0.6
    assert phases.combined(values, positive) > 0.9
    assert abs(phases.combined(RNG.standard_normal((400, 4)), positive) - 0.5) < 0.15


def test_defects_are_where_atoms_were_changed():
    options = study.yaml.safe_load((UQ / "phases.yaml").read_text())
    state = {"repeat": [2, 2, 2], "temperature": [200, 300], "density": [1.0, 1.0]}
    for name, kind, structure, n_atoms, most in (
        ("Si", "vacancy", "diamond", 63, 10),
        ("Si", "interstitial", "diamond", 65, 12),
        ("BN", "antisites", "zincblende", 64, 12),
    ):
        material = classical.Material(**options["materials"][name]["potential"] | {"relax": 0.1})
        given = options["studies"][kind]["unseen"] | state
        assert (given["defect"], given["structure"]) == (kind, structure)
        first, again = (classical.drawn(material, given, 1, [3])[0] for _ in range(2))
        assert (first.positions == again.positions).all()
        assert (classical.drawn(material, given, 1, [4])[0].positions != first.positions).any()
        density = len(first) / first.get_volume()
        assert len(first) == n_atoms and density == pytest.approx(material.density, rel=1e-6)
        (where,) = np.nonzero(first.arrays["defect"])
        assert 2 <= len(where) <= most, kind
        # Together in one place
        apart = first.get_distances(where[0], where, mic=True)
        assert apart.max() < 2.6 * classical.nearest_distances(first).max(), kind
        symbols = first.get_chemical_symbols()
        assert {symbols.count(element) for element in material.elements} == {
            n_atoms // len(material.elements)
        }


def test_frames_of_another_training_are_refused(data, tmp_path):
    frames = read_frames(data / "3bpa" / "train_300K.xyz")
    about = json.loads(json.dumps(summary(frames, 5.0)))
    converged.verify(data / "3bpa" / "train_300K.xyz", about)
    ase.io.write(tmp_path / "x.xyz", frames[:-1])
    with pytest.raises(RaceError, match="n_frames: not the frames of the training"):
        converged.verify(tmp_path / "x.xyz", about)
    about["min_distance"]["H-O"] += 1e-6
    with pytest.raises(RaceError, match="min_distance"):
        converged.verify(data / "3bpa" / "train_300K.xyz", about)


def test_acquisition_runs_and_continues(data, tmp_path):
    quick("acquisition", data, tmp_path)
    records = tables.read(tmp_path / "acquisition.json")
    # Of each temperature: the 6 replayed, the 2 of our own.
    each = {("initial", 0), ("rng", 3), ("random", 2), ("bald-joint", 2)}
    assert {(r["n_members"], r["seed"], r["strategy"], r["n_added"]) for r in records} == {
        *((2, seed, *row) for seed in (0, 1) for row in each),
        (3, 0, "initial", 0),
        (3, 0, "random", 2),
    }
    first = {
        (r["seed"], r["strategy"]): r["rmse_f"]
        for r in records
        if r["split"] == "1200 K" and r["n_members"] == 2
    }
    assert len(set(first.values())) == len(first), "seeds and strategies differ"
    assert "training" not in quick("acquisition", data, tmp_path)

    quick("ranking", data, tmp_path, "acquisition")  # of the four members of two initial runs
    found = tables.read(tmp_path / "ranking.json")
    assert {(r["split"], r["score"], r["n_members"], r["of_members"]) for r in found} == {
        (split, score, 2, 4) for split in acquisition.HOT for score in ranking.KEYS
    }


@pytest.mark.parametrize("decades, least, most", [(1.0, 0.85, 1.0), (0.0, -0.1, 0.1)])
def test_rankings_agree_where_frames_differ_and_not_where_members_scatter(decades, least, most):
    """Members that spread by 1, or by frame from 0.1 to 10, about noise of 1, on 200 frames
    of three atoms.
    """
    spread = 10 ** (decades * np.linspace(-1, 1, 200))[:, None]
    energy, forces = (
        spread * RNG.standard_normal((200, 12)),
        spread.repeat(3, 0)[..., None] * RNG.standard_normal((600, 12, 3)),
    )
    members = energy, np.ones((200, 12)), forces, np.broadcast_to(np.eye(3), (600, 12, 3, 3))
    records = ranking.agreement(members, "600 K", draws=10)
    assert [record["n_members"] for record in records[::2]] == [2, 3, 4, 6]
    six = {record["score"]: record for record in records if record["n_members"] == 6}
    assert all(least < record["spearman"] <= most for record in six.values()), six
    by_size = [record["spearman"] for record in records if record["score"] == "bald-energy"]
    assert decades == 0 or by_size == sorted(by_size)
    assert decades == 0 or all(record["top_shared"] > 4 for record in six.values())


def test_other_options_are_refused(data, tmp_path):
    runs = study.Study(tmp_path, bootstrap=0, timing=0)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.asked.json").write_text(json.dumps({"posterior": "swag"}))
    with pytest.raises(RaceError, match="made with other options"):
        runs.fit("a", "ivon", [tmp_path])


def test_what_is_the_same_keeps_its_stamp(tmp_path, monkeypatch):
    """A figure that is no number, too, which is unequal to itself; and a study that is run
    again, which passes the first of its records before all.
    """
    stamps = iter({"machine": "a", "date": date, "versions": {}} for date in ("1", "2"))
    monkeypatch.setattr(tables, "stamp", lambda: next(stamps))
    nan = float("nan")
    for values, date in (((nan, 1.0), "1"), ((nan,), "1"), ((nan, 1.0), "1"), ((3.0,), "2")):
        tables.write(tmp_path, "x", [{"x": x} for x in values], lambda records: [])
        assert json.loads((tmp_path / "x.json").read_text())["about"]["date"] == date
    assert tables.read(tmp_path / "x.json") == [{"x": 3.0}]


def test_seeds_are_pooled():
    rows = [
        {"posterior": "x", "seed": k, "rmse_f": value, "nll_f": None}
        for k, value in enumerate((1.0, 2.0, 6.0))
    ]
    one = tables.pooled(rows, ["rmse_f", "nll_f"])
    assert (
        one["rmse_f"] == 3.0
        and one["spread"]["rmse_f"] == 2.5
        and one["nll_f"] is None
        and one["posterior"] == "x"
    )
    assert (
        "seed" not in one
        and tables.cell(one, "rmse_f", ".1f") == "3.0 ± 2.5"
        and tables.cell(one, "nll_f", ".1f") == ""
    )


def test_committed_tables_are_drawn_from_the_committed_records():
    for path in (UQ / "results").glob("*.json"):
        draw = __import__(path.stem).draw
        assert path.with_suffix(".md").read_text() == tables.page(path, draw), path


def test_intervals_stand_in_brackets():
    record = {"x": 1, "nll_f": 2.0, "rmse_f": 3.0, "interval90": {"nll_f": [1.5, 2.25]}}
    row = tables.table([record], {"x": "x"}, ("nll_f", "rmse_f"), intervals=True)[-1]
    assert row == "| 1 | 2.00 (1.50 to 2.25) | 3.0 |"
    assert tables.table([record], {"x": "x"}, ("nll_f",))[-1] == "| 1 | 2.00 |"


def test_claims_are_judged():
    good = {
        "posterior": "ensemble",
        "split": "liquid",
        "coverage90_f_recal": 0.9,
        "pit_ks": 0.04,
        "pit_ks_recal": 0.03,
        "pit_ks_floor": 0.01,
        "ce_e": 0.02,
        "ce_f": 0.003,
        "ce_f_floor": 0.001,
        "seeds": 3,
        "nll_f": -2.0,
    }
    rows = claims.b2o3(
        [good, {"posterior": "distill", "split": "liquid", "nll_f": -1.81, "md_cost": 1.1}]
    )
    # Without a floor a calibration error is not judged; errors and crystals are not there
    assert [row.met for row in rows] == [True, False, True, None, False, *[None] * 5, True]
    assert [row.floor for row in rows[:5]] == ["", "0.010", "0.010", "", "0.0010"]
    assert {row.seeds for row in rows[:5]} == {3}
    better = claims.b2o3([good | {"ce_f": 0.002}])
    assert better[4].met and better[4].target == "<= 2 floors"
    assert not claims.b2o3(
        [good, {"posterior": "distill", "split": "liquid", "nll_f": -1.79, "md_cost": 1.1}]
    )[-1][3]
    mse, jef = (
        {"posterior": name, "split": "x", "rmse_e": 1.0, "rmse_f": value}
        for name, value in (("point", 10.0), ("single-jef", 11.1))
    )
    assert [row.met for row in claims.accuracy([mse, jef], "x", "point", "ensemble")] == [False]

    def curve(strategy: str, errors: dict[int, float], seed: int = 0) -> list[dict]:
        about = {"split": "1200 K", "seed": seed, "n_members": 3}
        return [
            about
            | {"strategy": strategy if n else "initial", "n_added": n, "rmse_e": e, "rmse_f": e}
            for n, e in errors.items()
        ]

    random = curve("rng", {0: 10.0, 10: 8.0, 20: 6.0})
    assert [row[3] for row in claims.bald(random + curve("hb_ef", {10: 6.0}))] == [True]
    assert [row[3] for row in claims.bald(random + curve("hb_ef", {10: 6.5, 20: 5.0}))] == [False]
    assert [row[3] for row in claims.bald(random + curve("hb_ef", {10: 6.5}))] == [False]

    # Over seeds: by the mean curves, 10 at 0, 8 and 7 at 10, 7 and 5 at 20. A third seed
    # has one of the strategies alone: it is left out.
    both = curve("rng", {0: 10.0, 10: 8.0, 20: 7.0}) + curve("hb_ef", {10: 6.0, 20: 5.0})
    both += (
        curve("rng", {0: 10.0, 10: 8.0, 20: 7.0}, seed=1)
        + curve("hb_ef", {10: 8.0, 20: 5.0}, seed=1)
        + curve("rng", {0: 9.0, 20: 1.0}, 2)
    )
    need = acquisition.labels_needed(both, "rng", "hb_ef", "1200 K", "rmse_f")[20]
    assert (
        need.mean == pytest.approx(10.0)
        and need.seeds == pytest.approx([7.5, 40 / 3])
        and str(need) == "10 (8 to 13)"
    )
    assert (
        "energy 10 (8 to 13); force 10 (8 to 13)" in claims.bald(both)[0][2]
        and "2 seeds" in claims.bald(both)[0][0]
    )
    # One seed alone has these rounds
    late = both + curve("rng", {30: 4.9}) + curve("hb_ef", {30: 4.0})
    found = acquisition.labels_needed(late, "rng", "hb_ef", "1200 K", "rmse_f")
    assert str(found[30]) == "21" and found[20] == need
    assert (
        str(acquisition.labels_needed(both, "hb_ef", "rng", "1200 K", "rmse_f")[20]) == "- (- to -)"
    )


def test_claims_of_converged_models_name_every_posterior():
    known = {"set": "3BPA", "split": "300 K", "ood": False, "auroc_error_f": 0.95}
    known |= {"coverage90_e": 0.9, "coverage90_f": 0.9, "pit_ks": 0.02, "pit_ks_floor": 0.01}
    known |= {"ce_e": 0.002, "ce_e_floor": 0.001, "ce_f": 0.002, "ce_f_floor": 0.001}
    known |= {"auroc_error_f_trivial": 0.6}
    hot = {"set": "3BPA", "split": "600 K", "ood": True, "auroc_error_f": 0.5}
    hot |= {"auroc": 0.8, "auroc_energy": 0.97, "auroc_trivial": 0.99}
    rows = claims.converged(
        [
            known | {"posterior": "llpr"},
            hot | {"posterior": "llpr"},
            known | {"posterior": "pops", "ce_f": 0.0021, "coverage90_f": 0.93},
            hot | {"posterior": "pops", "auroc_grade": 0.995},
        ]
    )
    assert [row.met for row in rows] == [
        *[(2, 2), (1, 2), (2, 2), (2, 2), (1, 2), (2, 2)],
        *[(1, 2), (0, 2)],
    ]
    assert rows[1].measured == "llpr 0.900; pops 0.930"
    assert rows[4].floor == "0.0010" and rows[5].baseline == "0.600"
    assert rows[6].measured == "llpr 0.970 (E); pops 0.995 (grade)"
    assert rows[6].baseline == "0.990"
    pair = [
        known | {"posterior": "ensemble", "nll_f": -10.0},
        known | {"posterior": "distill", "nll_f": -9.1, "auroc_error_f": 0.84, "md_cost": 1.2},
    ]
    lost = claims.converged(pair)[-2:]  # of the NLL 9 %, of the AUROC 12 %
    assert [row.met for row in lost] == [True, False]
    assert lost[1].measured == "0.840 against 0.950 (11.6 % lost), at 1.20 of a member's step"
    words = [claims.verdict(met) for met in (None, True, False, (2, 2), (1, 2), (0, 2))]
    assert words == ["not judged", "met", "**missed**", "met", "met by 1 of 2", "**missed**"]


def test_claims_of_matched_studies_are_of_one_score_in_all():
    def records(study: str, posterior: str, trivial: float, **scores: float) -> list[dict]:
        about = {"study": study, "posterior": posterior, "seeds": 3}
        unseen = about | {"split": "unseen", "auroc_trivial": trivial} | scores
        both = about | {"split": phases.BOTH, "auroc_error_f": 0.92, "auroc_together": 0.7}
        return [unseen, both | {"auroc_error_f_trivial": 0.6}]

    a = records("a", "llpr", 0.6, auroc=0.9, auroc_max=0.8)
    b = records("b", "llpr", 0.6, auroc=0.65, auroc_max=0.8)
    rows = claims.phases(a + b)
    # The mean over b's atoms is above every score, and below all together
    assert [row.met for row in rows] == [(1, 1), (1, 1), (1, 1), (1, 1), True]
    assert rows[0].measured == "llpr 0.900 (F)" and rows[0].baseline == "0.700"
    assert rows[-1].measured == "llpr by largest F: 2 of 2" and rows[-1].seeds == 3
    other = records("a", "pops", 0.6, auroc=0.9) + records("b", "pops", 0.6, auroc=0.65)
    assert claims.phases(other)[-1].met is False
    assert claims.phases(other)[-1].measured == "pops by F: 1 of 2"
    assert claims.phases([]) == []
    bold = [line for line in phases.draw(full(a + b)) if "**" in line]
    assert bold == [
        "| llpr, mean F | **0.900** | 0.650 | 1 of 2 |",
        "| llpr, largest F | **0.800** | **0.800** | 2 of 2 |",
    ]


def full(records: list[dict]) -> list[dict]:
    """With what `draw` says of a study."""
    return [{"material": "Si", "n_frames": 5} | record for record in records]


def test_committed_claims_are_those_of_the_records():
    path = UQ / "results" / "claims.md"
    assert not path.exists() or path.read_text() == "\n".join(claims.page(path.parent)) + "\n"
