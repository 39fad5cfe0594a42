"""`race fit`: refusals in one line, kills, and what is left in the folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

import race
from race.cli import main
from race.errors import RaceError
from race.files import FIT
from race.options import Options
from race.posterior.command import describe
from race.posterior.fit import fit, parse_options
from race.posterior.registry import POSTERIORS
from race.train.checkpoint import read_tensors
from race.train.run import load_run


def refusal(capsys, *arguments) -> str:
    assert main(["fit", *map(str, arguments)]) == 2
    text = capsys.readouterr().err.strip()
    assert "\n" not in text and text.startswith("race fit: ")
    return text


def test_refusals(trained, tmp_path, capsys):
    run, out = trained(), tmp_path / "out"
    assert "no such posterior; expected ensemble or swag" in refusal(
        capsys, run, "--posterior", "nope", "--out", out
    )
    assert "--rank: posterior laplace has no such option" in refusal(
        capsys, run, "--posterior", "laplace", "--out", out, "--rank", 3
    )
    assert "--epochs: Input should be a valid integer" in refusal(
        capsys, run, "--posterior", "swag", "--out", out, "--epochs", "many"
    )
    assert "too short for two snapshots" in refusal(
        capsys, run, "--posterior", "swag", "--out", out, "--start", 20
    )
    assert "fitted to one run; got 2 runs" in refusal(
        capsys, run, run, "--posterior", "swag", "--out", out
    )
    assert "not a run" in refusal(capsys, tmp_path / "nowhere", "--posterior", "swag", "--out", out)
    assert "no laplace posterior for this head" in refusal(
        capsys, trained("evidential"), "--posterior", "laplace", "--out", out
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("laplace", {"probes": 8}, "--probes is not used: --structure is last-layer"),
        ("laplace", {"probes": 8, "structure": "diagonal"}, ""),
        ("laplace", {}, ""),
        ("llpr", {"alpha": 1, "zeta": 1, "calibration_frames": 9}, "--calibration-frames is not"),
        ("llpr", {"alpha": 1, "calibration_frames": 9}, ""),
        ("distill", {"copies": 0, "rattle": 0.1}, "--rattle is not used: --copies is 0"),
    ],
)
def test_options_that_change_nothing_are_said(name, given, said, trained, tmp_path, caplog):
    with pytest.raises(RaceError, match="fitted to one run"):  # after which nothing is fitted
        fit(name, [trained(), trained(seed=1)], tmp_path / "out", given)
    assert (said in caplog.text) if said else ("not used" not in caplog.text)


def test_all_wrong_options_are_refused_at_once():
    options = POSTERIORS["swag"].options
    with pytest.raises(RaceError) as error:
        parse_options("swag", options, {"depth": 3, "epochs": "many", "members": 0})
    first, *lines = str(error.value).splitlines()
    assert first == "3 problems"
    assert [line.split(":")[0].strip() for line in lines] == ["--depth", "--members", "--epochs"]


def test_data_that_changed_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("race.train.files.sha256", lambda path: "0" * 64)
    with pytest.raises(race.RaceError, match="data has changed since the training"):
        fit("laplace", [trained()], tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_nothing(trained, tmp_path, monkeypatch, caplog):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("race.posterior.laplace.last_layer", interrupted)
    with caplog.at_level("INFO"), pytest.raises(SystemExit, match="130"):
        fit("laplace", [trained()], tmp_path / "out", {})
    assert not (tmp_path / "out").exists() and "interrupted: nothing written" in caplog.text


def test_result_is_a_run(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        main(
            [
                "fit",
                str(trained(n_members=2)),
                "--posterior",
                "swag",
                "--out",
                str(out),
                "--members",
                "5",
                "--epochs",
                "2",
                "--start",
                "0",
                "--every",
                "0.5",
                "--rank",
                "2",
            ]
        )
        == 0
    )
    model, config, summary = load_run(out)
    assert (
        model.n_members == config.model.n_members == 5
        and summary["posterior"]["options"]["every"] == 0.5
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml",
        "log.csv",
        "model.safetensors",
        "summary.json",
        "tensorboard",
    ]
    text = capsys.readouterr().out
    assert "validation before the fit" in text and "validation after the fit" in text
    assert "already holds a run" in refusal(
        capsys, trained(), "--posterior", "laplace", "--out", out
    )
    # Around the members in turn: samples 0, 2, 4 are nearer to the first.
    first, second = load_run(trained(n_members=2))[0].embedding.detach()
    nearer = [(p - first).norm() < (p - second).norm() for p in model.embedding.detach()]
    assert nearer == [True, False, True, False, True]


@pytest.mark.parametrize("under_way", [False, True])
def test_race_train_does_not_continue_a_fit(under_way, trained, fitted, tmp_path, capsys):
    """Which has no checkpoint of a training: it would be begun anew, and replace the fit."""
    out, config = tmp_path / "out", tmp_path / "config.yaml"
    if under_way:
        out.mkdir()
        (out / FIT).write_text('{"posterior": "swag"}')
    else:
        shutil.copytree(fitted("leverage"), out)
    content = yaml.safe_load((trained() / "config.yaml").read_text())
    del content["constants"]
    config.write_text(yaml.safe_dump(content))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["train", str(config), "--out", str(out), "--resume"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == (
        f"race train: {out}: cannot be continued by `race train`; expected a run of `race train`; "
        f"got a fit of `race fit`, {'one under way' if under_way else 'leverage'}; "
        "go on from the weights of a run with train.warm_start and another --out"
    )
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_a_fit_is_not_continued_from_other_weights(trained, tmp_path, monkeypatch):
    """Those of the run, which has been trained on since; its folder is the same."""
    run, out = shutil.copytree(trained(), tmp_path / "run"), tmp_path / "out"

    def stopped(*_):
        (out / "fit").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("race.posterior.swag.continue_training", stopped)
        with pytest.raises(SystemExit, match="130"):
            fit("swag", [run], out, {"epochs": 12})
    shutil.copy(trained(seed=1) / "model.safetensors", run)
    with pytest.raises(RaceError, match="weights: differs from the fit that --resume continues"):
        fit("swag", [run], out, {"epochs": 12}, resume=True)


@pytest.mark.parametrize("posterior", ["swag", "ivon"])
def test_resume_after_a_kill(posterior, trained, tmp_path, capsys):
    """SIGKILL in the middle, then --resume: the weights of a fit that was left alone."""
    options = {"epochs": 14, "members": 2} | (
        {"start": 1, "every": 0.4, "rank": 5} if posterior == "swag" else {}
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(posterior, [trained()], whole, options)
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    command = [
        sys.executable,
        "-m",
        "race.cli",
        "fit",
        str(trained()),
        "--posterior",
        posterior,
        "--out",
        str(killed),
        *flags,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    state, end = killed / "fit" / "checkpoint" / "state.json", time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if json.loads(state.read_text())["step"] >= 8:
                break
        except (OSError, ValueError):
            pass  # not yet, or between two renamings
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "config.yaml").exists()
    with pytest.raises(race.RaceError, match="not a run"):
        load_run(killed)
    assert "interrupted fit" in refusal(capsys, *command[4:])
    assert "differs from the fit" in refusal(capsys, *command[4:], "--resume", "--seed", "9")
    fit(posterior, [trained()], killed, options, resume=True)
    a, b = (read_tensors(run / "model.safetensors") for run in (whole, killed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert len((killed / "log.csv").read_text().splitlines()) == 15


def test_a_leader_that_is_of_another_run_is_said(trained, fitted, tmp_path, caplog):
    """It may be given: the user may know better."""
    teacher, path = trained(n_members=3), str(tmp_path / "x.race.pt")
    for leader, warned in ((fitted("distill"), False), (trained(seed=1), True)):
        caplog.clear()
        assert main(["export", str(teacher), "-o", path, "--distilled", str(leader)]) == 0
        assert (f"{leader} was not distilled of {teacher}" in caplog.text) == warned


def test_every_option_is_documented_and_a_flag(capsys):
    text = "\n".join(describe())
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    shown = capsys.readouterr().out
    for posterior in POSTERIORS.values():
        options = posterior.options
        assert issubclass(options, Options)
        for name, field in options.model_fields.items():
            flag = f"--{name.replace('_', '-')}"
            assert field.description and flag in text and flag in shown
