"""`race evaluate` end to end on a run written by hand: records, recalibration file,
figures, refusals.
"""

import argparse
import csv
import importlib
import json
import shutil
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from race.cli import COMMANDS, main
from race.config import DataConfig, ModelConfig, ModelConstants, RunConfig, TrainConfig
from race.evaluate.command import configure, named_paths
from race.evaluate.score import unified_score
from race.model.race import RACE
from race.train.files import sha256
from race.train.run import write_config, write_summary

REQUIRED = (
    "posterior split rmse_e rmse_f rmse_s ce_e ce_f ce_e_recal ce_f_recal coverage90_e "
    "coverage90_f coverage90_f_recal pit_ks nll_f "
    "auroc auroc_ideal in_training interval90"
).split()


def frames(seed: int, n: int, a: float = 3.6) -> list[ase.Atoms]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        atoms = ase.build.bulk("BN", "zincblende", a=a) * (2, 1, 1)
        atoms.rattle(0.1, seed=int(rng.integers(1 << 30)))
        atoms.info["energy"] = -8.0 * len(atoms) + rng.normal()
        atoms.arrays["forces"] = rng.normal(size=(len(atoms), 3))
        atoms.info["temperature"] = 300.0 + 900.0 * (len(out) % 2)
        atoms.info["stress"] = 0.1 * rng.normal(size=6)
        out.append(atoms)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of random weights, training data, calibration data and two splits."""
    folder = tmp_path_factory.mktemp("evaluate")
    for k, (name, n, a) in enumerate(
        (("train", 4, 3.6), ("calibration", 8, 3.6), ("liquid", 6, 3.6), ("crystal", 5, 4.0))
    ):
        ase.io.write(folder / f"{name}.extxyz", frames(k, n, a))
    model = ModelConfig(
        elements=["B", "N"],
        r_max=3.0,
        n_layers=1,
        irreps_hidden="4x0e+4x1o+4x2e",
        n_features=4,
        radial_mlp=[8],
        readout_hidden=8,
        n_members=2,
        sigma0=0.3,
    )
    run = folder / "run"
    run.mkdir()
    write_config(
        run,
        RunConfig(
            data=DataConfig(train=[folder / "train.extxyz"]),
            model=model,
            constants=ModelConstants.given(model),
            train=TrainConfig(dtype="float64"),
        ),
    )
    torch.manual_seed(0)
    save_file(
        {
            name: p.detach().contiguous()
            for name, p in RACE.untrained(model, torch.float64).named_parameters()
        },
        run / "model.safetensors",
    )
    write_summary(
        run,
        {
            "training": {"files": {str(folder / "train.extxyz"): sha256(folder / "train.extxyz")}},
            "seconds": 12.5,
            "best_epoch": [1, 1],
        },
    )
    with open(run / "log.csv", "w", newline="") as file:
        header = ["epoch", "train/loss", "validation/loss", "validation/forces_rmse"]
        csv.writer(file).writerows([header, [1, 9, 10, 300], [2, -1, "", 200]])
    return folder


def evaluate(folder: Path, *arguments: str) -> int:
    return main(["evaluate", str(folder / "run"), *arguments, "--bootstrap", "20"])


def test_records_and_figures(folder, capsys):
    splits = [
        f"liquid={folder / 'liquid.extxyz'}",
        str(folder / "crystal.extxyz"),
        str(folder / "train.extxyz"),
    ]
    calibration = str(folder / "calibration.extxyz")
    assert (
        evaluate(
            folder,
            *splits,
            "--calibrate",
            calibration,
            "--ood",
            "crystal",
            "--out",
            str(folder / "out"),
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "crystal (OOD)" in printed and "(trained on)" in printed and "AUROC" in printed
    records = json.loads((folder / "out" / "metrics.json").read_text())
    assert [r["split"] for r in records] == ["liquid", "crystal", "train"] and [
        r["in_training"] for r in records
    ] == [False, False, True]
    crystal = records[1]
    assert not set(REQUIRED) - set(crystal)
    assert crystal["posterior"] == "ensemble" and crystal["ood"] and crystal["train_s"] == 12.5
    low, high = crystal["interval90"]["rmse_f"]
    assert low < crystal["rmse_f"] < high
    fitted = json.loads((folder / "out" / "calibration.json").read_text())
    assert (
        fitted["forces"]["method"] == "isotonic"
        and fitted["covariance_scale"] > 0
        and set(fitted) >= {"energy", "stress"}
    )
    assert set(crystal["by_temperature"]) == {"300", "1200"}
    score = unified_score(records)
    assert f"unified score {score['score']:.4f}" in printed and 0 < score["score"]
    figures = (
        "learning_curve parity calibration error_vs_sigma sparsification "
        "reliability_by_element reliability_by_temperature"
    ).split()
    for name in figures:
        assert (folder / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_all_that_stdout_has(folder, tmp_path, capsys):
    splits = [f"liquid={folder / 'liquid.extxyz'}", f"crystal={folder / 'crystal.extxyz'}"]
    out = tmp_path / "out"
    assert evaluate(folder, *splits, "--ood", "crystal", "--out", str(out), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["records"] == json.loads((out / "metrics.json").read_text())
    assert printed["score"]["score"] == unified_score(printed["records"])["score"]
    assert str(out / "parity.png") in printed["files"]
    assert main(["rank", str(out), "--json"]) == 0
    (ranked,) = json.loads(capsys.readouterr().out)
    assert ranked["evaluation"] == str(out) and ranked["score"] == printed["score"]["score"]


def test_an_artifact_gives_the_records_of_its_run(folder, tmp_path, capsys):
    pytest.importorskip("race._race", reason="librace is not built")
    artifact = tmp_path / "x.race.pt"
    assert main(["export", str(folder / "run"), "-o", str(artifact)]) == 0
    capsys.readouterr()
    assert main(["info", str(artifact), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["elements"] == ["B", "N"] and len(about["sha256"]) == 64
    data = [str(folder / "liquid.extxyz"), "--bootstrap", "0"]
    assert main(["evaluate", str(folder / "run"), *data, "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(artifact), *data, "--out", str(tmp_path / "artifact")]) == 0
    run, compiled = (
        json.loads((tmp_path / name / "metrics.json").read_text())[0]
        for name in ("run", "artifact")
    )
    for key in (
        "rmse_e",
        "rmse_f",
        "rmse_s",
        "nll_e",
        "nll_f",
        "zms_e",
        "zms_f",
        "zms_s",
        "pit_ks",
    ):
        assert compiled[key] == pytest.approx(run[key], rel=1e-6), key


def test_an_artifact_with_a_grade_is_scored_by_it(folder, tmp_path, capsys):
    pytest.importorskip("race._race", reason="librace is not built")
    artifact = str(tmp_path / "x.race.pt")
    assert main(["export", str(folder / "run"), "-o", artifact]) == 0
    splits = [str(folder / "liquid.extxyz"), str(folder / "crystal.extxyz")]
    words = ["evaluate", artifact, *splits, "--ood", "crystal", "--bootstrap", "0"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "grade" in capsys.readouterr().out
    liquid, crystal = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 0 <= crystal["auroc_grade"] <= 1 and "auroc_grade" not in liquid
    assert 0 < liquid["auroc_error_f_grade"] < 1
    assert liquid["auroc_error_f_trivial"] >= 0.5


def test_an_artifact_is_judged_with_the_calibration_it_carries(folder, tmp_path, capsys):
    pytest.importorskip("race._race", reason="librace is not built")
    artifact, calibration, liquid = (
        tmp_path / "x.race.pt",
        str(folder / "calibration.extxyz"),
        str(folder / "liquid.extxyz"),
    )
    given = ["--calibrate", calibration, "--method", "scaling", "--bootstrap", "0"]
    assert (
        main(["evaluate", str(folder / "run"), liquid, *given, "--out", str(tmp_path / "run")]) == 0
    )
    assert (
        main(
            [
                "export",
                str(folder / "run"),
                "-o",
                str(artifact),
                "--calibration",
                str(tmp_path / "run" / "calibration.json"),
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "evaluate",
                str(artifact),
                liquid,
                "--bootstrap",
                "0",
                "--out",
                str(tmp_path / "artifact"),
            ]
        )
        == 0
    )
    run, compiled = (
        json.loads((tmp_path / name / "metrics.json").read_text())[0]
        for name in ("run", "artifact")
    )
    for key in ("ce_e_recal", "ce_f_recal", "coverage90_s_recal", "nll_f_recal", "pit_ks_recal"):
        assert compiled[key] == pytest.approx(run[key], rel=1e-6), key
    assert run["ce_f_recal"] != run["ce_f"]
    capsys.readouterr()
    assert main(["evaluate", str(artifact), calibration, "--out", str(tmp_path / "bad")]) == 2
    assert "8 of 8 frames are those that the artifact was calibrated on" in capsys.readouterr().err
    assert main(["info", str(artifact)]) == 0
    printed = capsys.readouterr().out
    assert "scaling, 8 frames: energy 90 % within" in printed and "energy_std_scale" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["liquid.extxyz", "--calibrate", "liquid.extxyz"],
            "6 of 6 frames are also in --calibrate",
        ),
        (["liquid.extxyz", "--calibrate", "train.extxyz"], "the model was trained on it"),
        (["liquid.extxyz", "--ood", "gas"], "--ood gas: no such split"),
        (["missing.extxyz"], "no such file"),
    ],
)
def test_refusals(folder, capsys, arguments, message):
    assert (
        evaluate(
            folder,
            *(str(folder / a) if a.endswith("xyz") else a for a in arguments),
            "--out",
            str(folder / "bad"),
        )
        == 2
    )
    assert message in capsys.readouterr().err
    assert not (folder / "bad").exists()


def test_no_such_model(folder, capsys):
    assert main(["evaluate", str(folder / "nothing"), str(folder / "liquid.extxyz")]) == 2
    assert "no such run or artifact" in capsys.readouterr().err


def test_names_of_splits():
    names = named_paths(["a/liquid_val.extxyz", "x=b/c.xyz", "x=d.xyz", "odd/n=1/e.xyz"])
    assert {name: [str(p) for p in paths] for name, paths in names.items()} == {
        "liquid_val": ["a/liquid_val.extxyz"],
        "x": ["b/c.xyz", "d.xyz"],
        "e": ["odd/n=1/e.xyz"],
    }


def test_an_option_given_twice_adds_up():
    """Of every command: the last one alone would be kept without a word."""
    parser = argparse.ArgumentParser()
    configure(parser)
    args = parser.parse_args("run data --ood a --ood b c --calibrate x --calibrate y".split())
    assert args.ood == ["a", "b", "c"] and [str(p) for p in args.calibrate] == ["x", "y"]
    for module, _ in COMMANDS.values():
        parser = argparse.ArgumentParser()
        importlib.import_module(module).configure(parser)
        for action in parser._actions:
            if action.option_strings and action.nargs in ("+", "*"):
                assert isinstance(action, argparse._ExtendAction), action.option_strings


def test_few_labels_give_the_table_with_gaps(folder, tmp_path, capsys):
    """One frame alone with forces or a stress, and isolated atoms, whose forces are zero."""
    few = frames(7, 6)
    for atoms in few[:-1]:
        del atoms.arrays["forces"], atoms.info["stress"]
    ase.io.write(tmp_path / "one.extxyz", few)
    alone = [ase.Atoms("B", info={"energy": -3.0}), ase.Atoms("N", info={"energy": -4.0})]
    for atoms in alone:
        atoms.arrays["forces"] = np.zeros((1, 3))
    ase.io.write(tmp_path / "alone.extxyz", alone)
    for name in ("one", "alone"):
        assert (
            evaluate(folder, str(tmp_path / f"{name}.extxyz"), "--out", str(tmp_path / name)) == 0
        )
        record = json.loads((tmp_path / name / "metrics.json").read_text())[0]
        assert record["rmse_f"] >= 0 and record["interval90"]["rmse_e"][0] is not None
    # Nothing can be drawn again from one frame with forces.
    one = json.loads((tmp_path / "one" / "metrics.json").read_text())[0]
    assert one["interval90"]["rmse_f"] == [None, None]


def test_an_artifact_knows_what_its_run_was_trained_on(folder, tmp_path, capsys):
    pytest.importorskip("race._race", reason="librace is not built")
    artifact, seen = str(tmp_path / "x.race.pt"), str(folder / "train.extxyz")
    assert main(["export", str(folder / "run"), "-o", artifact]) == 0
    words = ["evaluate", artifact, "--bootstrap", "0", "--out", str(tmp_path / "out")]
    assert main([*words, seen, str(folder / "liquid.extxyz")]) == 0
    records = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [record["in_training"] for record in records] == [True, False]
    assert main([*words, str(folder / "liquid.extxyz"), "--calibrate", seen]) == 2
    assert "the model was trained on it" in capsys.readouterr().err


def test_the_calibration_of_another_model_is_refused(folder, tmp_path, capsys):
    """Known by its weights and constants: a copy is the same, another width of noise is not."""
    pytest.importorskip("race._race", reason="librace is not built")
    artifact, ev = tmp_path / "x.race.pt", tmp_path / "ev"
    copied, other = (shutil.copytree(folder / "run", tmp_path / name) for name in ("copy", "other"))
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["constants"]["sigma0"] *= 2
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    given = ["--calibrate", str(folder / "calibration.extxyz"), "--bootstrap", "0"]
    data = [str(folder / "liquid.extxyz"), *given]
    with_calibration = ["-o", str(artifact), "--calibration", str(ev / "calibration.json")]
    for model in (folder / "run", artifact):  # and an artifact's is of its run
        assert main(["evaluate", str(model), *data, "--out", str(ev)]) == 0
        assert main(["export", str(copied), *with_calibration]) == 0
        before = artifact.read_bytes()
        capsys.readouterr()
        assert main(["export", str(other), *with_calibration]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "calibration.json: was fitted to the errors of another model; expected" in line
        assert artifact.read_bytes() == before
        assert main(["export", str(copied), "-o", str(artifact)]) == 0
