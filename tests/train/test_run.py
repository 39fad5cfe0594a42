"""Whole runs on a few small cells: learning, checkpoints, kills, and what a run leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import race
from race.cli import main
from race.data import Dataset, read_frames
from race.errors import RaceError
from race.train.checkpoint import (
    has_checkpoint,
    load_checkpoint,
    mend_checkpoint,
    read_tensors,
    save_checkpoint,
)
from race.train.members import initial_model, stack_members
from race.train.metrics import Metrics
from race.train.parallel import Ranks
from race.train.prepare import prepare
from race.train.run import load_run, provenance
from race.train.trainer import Trainer
from race.train.training import train

from .conftest import batch_of, make_config, resolved, rows_of, write_yaml


@pytest.fixture(scope="module")
def finished(copper, tmp_path_factory):
    """A run of two members with forces, stress and the default loss."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(
        make_config(copper, model={"n_members": 2}, train={"epochs": 20, "stress_weight": 0.1}), run
    )
    return run


@pytest.fixture(scope="module")
def noisy(copper, tmp_path_factory):
    """The same with noise of the stress."""
    run = tmp_path_factory.mktemp("noisy") / "run"
    train(
        make_config(
            copper,
            {"n_members": 2, "stress_head": "equivariant"},
            {"epochs": 20, "stress_weight": 1.0},
        ),
        run,
    )
    return run


# ---- learning ------------------------------------------------------------------------------------


def test_training_learns(finished):
    rows = rows_of(finished)
    assert [int(row["epoch"]) for row in rows] == list(range(1, 21))
    first, last = rows[0], rows[-1]
    assert float(last["train/loss"]) < float(first["train/loss"]) - 5.0
    assert float(last["validation/energy_rmse"]) < 0.2 * float(first["validation/energy_rmse"])
    assert float(last["validation/forces_rmse/member_1"]) < 0.7 * float(
        first["validation/forces_rmse/member_1"]
    )
    assert 0.5 < float(last["validation/forces_coverage"]) <= 1.0


def test_noise_of_the_stress_learns(noisy):
    """Its likelihood rises as the error falls, and the error of the validation set is of the
    size that it says.
    """
    first, *_, last = rows_of(noisy)
    assert float(last["validation/stress_rmse"]) < 0.5 * float(first["validation/stress_rmse"])
    assert 0.2 < float(last["validation/stress_rmse"]) / float(last["validation/stress_std"]) < 3.0
    assert 0.5 < float(last["validation/stress_coverage"]) <= 1.0
    model, config, _ = load_run(noisy)
    assert model.has_stress_cov and config.model.stress_head == "equivariant"


def test_run_folder(finished):
    model, config, summary = load_run(finished)
    assert config.constants.elements == ["Cu", "Au"] and config.model.n_members == 2
    assert config.constants.sigma0 == pytest.approx(0.1 * config.constants.scale[0])
    assert config.constants.avg_num_neighbors > 5 and len(config.constants.atomic_energies) == 2
    assert (
        summary["training"]["n_frames"] == 9 and summary["versions"]["torch"] == torch.__version__
    )
    assert any(finished.glob("tensorboard/events*"))
    # the weights are the best of each member: validating them again gives the least errors
    # of the log
    prepared = prepare(config)
    # As it was in training
    model.scale_noise(
        1 / config.constants.energy_noise_factor, 1 / config.constants.forces_noise_factor
    )
    trainer = Trainer(config, model, prepared.train, prepared.validation, finished / "elsewhere")
    scores, metrics = trainer.validate()
    rows = rows_of(finished)
    for member in range(2):
        names = [f"validation/{term}_rmse/member_{member}" for term in trainer.loss.weights]
        least = min(np.mean([np.log(float(row[name])) for name in names]) for row in rows)
        assert scores[member] == pytest.approx(least, rel=1e-6)
    assert summary["validation"]["validation/forces_rmse"] == pytest.approx(
        metrics["validation/forces_rmse"], rel=1e-9
    )
    # The factors are those of the two together, and so is no member's loss
    assert not any("loss" in name for name in summary["validation"])


def test_warm_start(finished, copper, tmp_path):
    """The weights and the constants of another run, whatever the new data would have given;
    nothing else of it.
    """
    run = tmp_path / "run"
    options = {"epochs": 1, "warm_start": finished, "learning_rate": 1e-12, "warmup_epochs": 0}
    train(make_config(copper, model={"n_members": 2}, train=options, split_seed=7), run)
    config, before = load_run(run)[1], load_run(finished)[1]
    assert config.model == before.model and config.train.warm_start == finished
    assert config.constants.as_trained() == before.constants.as_trained()
    old, new = (read_tensors(folder / "model.safetensors") for folder in (finished, run))
    assert all(torch.allclose(new[name], old[name], atol=1e-9) for name in old)
    cold = tmp_path / "cold"
    train(
        make_config(
            copper, model={"n_members": 2}, train={**options, "warm_start": None}, split_seed=7
        ),
        cold,
    )
    assert not torch.allclose(
        read_tensors(cold / "model.safetensors")["embedding"], old["embedding"], atol=1e-3
    )
    # Goes on from its own
    train(
        make_config(copper, model={"n_members": 2}, train={**options, "epochs": 2}, split_seed=7),
        run,
        resume=True,
    )
    with pytest.raises(
        RaceError,
        match="model.n_layers: differs from the run that train.warm_start names; expected 2; got "
        "1; leave it out",
    ):
        train(
            make_config(copper, model={"n_members": 2, "n_layers": 1}, train=options),
            tmp_path / "other",
        )
    with pytest.raises(RaceError, match="not a run"):
        train(make_config(copper, train={"warm_start": tmp_path / "none"}), tmp_path / "other")


def test_metrics_against_numpy(finished, copper):
    model, config, _ = load_run(finished)
    batch = batch_of(copper, config, 5)
    out = model(batch).detach()
    metrics = Metrics(config.model, config.constants)
    dataset = Dataset(
        read_frames(copper)[:5], config.constants.elements, config.model.r_max, torch.float64
    )
    for part in dataset.batches(2):  # batches of unequal size must weigh by their rows
        result = model(part).detach()
        metrics.update(part, result, model.forces_cov(result.raw).detach())
    found = {name: value.numpy() for name, value in metrics.result(Ranks()).items()}
    forces, energy = out.forces.numpy(), out.energy.numpy()
    cov = model.forces_cov(out.raw).detach().numpy()
    error = forces.mean(1) - batch.forces.numpy()
    spread = forces - forces.mean(1, keepdims=True)
    constants = config.constants
    assert constants.forces_spread_factor >= 3**0.5 and constants.energy_spread_factor >= 3**0.5
    widened = constants.forces_spread_factor**2 * spread[..., :, None] * spread[..., None, :]
    total = cov.mean(1) + widened.mean(1)
    nll = [
        0.5 * (e @ np.linalg.inv(c) @ e + np.log(np.linalg.det(c)))
        for e, c in zip(error, total, strict=True)
    ]
    std = np.sqrt(np.einsum("naa->na", total))
    assert found["forces_rmse"][-1] == pytest.approx(1e3 * np.sqrt((error**2).mean()))
    assert found["forces_nll"][-1] == pytest.approx(np.mean(nll))
    assert found["forces_coverage"][-1] == pytest.approx((abs(error) < 1.6448536 * std).mean())
    assert found["energy_mae"][0] == pytest.approx(
        1e3 * np.abs((energy[:, 0] - batch.energy.numpy()) / 4).mean()
    )
    assert found["energy_std"][-1] == pytest.approx(
        1e3
        * np.sqrt(
            out.energy_var.numpy().mean(1) + constants.energy_spread_factor**2 * energy.var(1)
        ).mean()
        / 4
    )
    assert found["stress_rmse"][1] == pytest.approx(
        1e3 * np.sqrt(((out.stress[:, 1] - batch.stress) ** 2).mean().item())
    )


def test_head_without_forces_covariance_has_no_force_deviation(copper):
    config = resolved(copper, model={"head": "point", "n_members": 2}, train={"loss": "mse"})
    model, batch = (
        initial_model(config.model, config.constants, 0, torch.float64),
        batch_of(copper, config),
    )
    metrics = Metrics(config.model, config.constants)
    metrics.update(batch, model(batch).detach(), None)
    result = metrics.result(Ranks())
    # The ensemble has its spread
    assert torch.isnan(result["forces_std"]).tolist() == [
        True,
        True,
        False,
    ]
    assert "forces_nll" not in result and "energy_nll" not in result


# ---- members -------------------------------------------------------------------------------------


def test_member_starts_as_its_own_seed(copper):
    config = resolved(copper, model={"n_members": 3})
    together, alone = (
        initial_model(config.model, config.constants, 5, torch.float64),
        initial_model(
            config.model.model_copy(update={"n_members": 1}), config.constants, 7, torch.float64
        ),
    )
    for name, p in together.named_parameters():
        assert torch.equal(p[2:3], alone.get_parameter(name)), name
        assert p.shape[0] == 3 and (p.numel() == 0 or not torch.equal(p[0], p[1]))


def test_step_gives_members_their_own_gradient(copper, tmp_path):
    """The gradient norm of a member, before clipping, is what it has when trained alone."""
    norms = []
    for n_members, seed in ((2, 0), (1, 1)):
        prepared = prepare(make_config(copper, model={"n_members": n_members}))
        model = initial_model(prepared.config.model, prepared.config.constants, seed, torch.float64)
        trainer = Trainer(prepared.config, model, prepared.train, prepared.validation, tmp_path)
        trainer.step(prepared.train.batch([0, 1, 2]))
        norms.append(trainer.sums["gradient"][-1].item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-9) and norms[0] > trainer.options.clip_norm


def test_bar_shows_means_since_its_last_refresh(copper, tmp_path):
    prepared = prepare(make_config(copper))
    model = initial_model(prepared.config.model, prepared.config.constants, 0, torch.float64)
    trainer = Trainer(prepared.config, model, prepared.train, prepared.validation, tmp_path)
    losses = []
    for k in range(5):
        before = trainer.sums.get("loss", torch.zeros(1))
        trainer.step(prepared.train.batch([k, k + 1]))
        losses.append((trainer.sums["loss"] - before).item())
        if k == 2:
            assert trainer._recent_means()["train/loss"] == pytest.approx(np.mean(losses))
    assert trainer._recent_means()["train/loss"] == pytest.approx(np.mean(losses[3:]))


def test_best_epoch_is_chosen_per_member(copper, tmp_path, monkeypatch):
    prepared = prepare(make_config(copper, model={"n_members": 2}, train={"ema_decay": 0.0}))
    model = initial_model(prepared.config.model, prepared.config.constants, 0, torch.float64)
    trainer = Trainer(prepared.config, model, prepared.train, prepared.validation, tmp_path)
    weights = []
    for scores in ([1.0, 2.0], [0.5, 3.0]):
        trainer.step(prepared.train.batch([0, 1, 2]))
        monkeypatch.setattr(trainer, "validate", lambda scores=scores: (scores, {}))
        trainer.end_epoch()
        weights.append(trainer.average.tensors[0].clone())
    best = read_tensors(tmp_path / "model.safetensors")["embedding"]
    assert trainer.state.best_epoch == [2, 1] and trainer.state.best == [0.5, 2.0]
    assert (
        torch.equal(best[0], weights[1][0])
        and torch.equal(best[1], weights[0][1])
        and not torch.equal(weights[0], weights[1])
    )


def test_stack_equals_the_separate_models(finished, copper, tmp_path):
    config = make_config(copper, train={"epochs": 1, "seed": 7})
    train(config, tmp_path / "other")
    separate = [load_run(finished)[0], load_run(tmp_path / "other")[0]]
    stacked = stack_members(separate).eval()
    assert stacked.n_members == 3
    for model in separate:  # the factors on the noise are those of each model by itself
        model.scale_noise(
            1 / model.constants.energy_noise_factor, 1 / model.constants.forces_noise_factor
        )
    batch = batch_of(copper, load_run(finished)[1])
    together, parts = stacked(batch), [model(batch) for model in separate]
    for key, axis in (("energy", 1), ("forces", 1), ("stress", 1), ("raw", 1), ("energy_var", 1)):
        torch.testing.assert_close(
            getattr(together, key),
            torch.cat([getattr(part, key) for part in parts], axis),
            rtol=1e-10,
            atol=1e-10,
        )


def test_stack_refuses_different_models(finished, copper, tmp_path):
    train(make_config(copper, model={"r_max": 3.4}, train={"epochs": 1}), tmp_path / "other")
    with pytest.raises(RaceError, match="model.r_max differs"):
        stack_members([load_run(finished)[0], load_run(tmp_path / "other")[0]])


# ---- kills ---------------------------------------------------------------------------------------


def start(config_path, run, *options) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "race.cli",
        "train",
        str(config_path),
        "--out",
        str(run),
        *options,
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_until(process, condition, deadline=120):
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        try:
            if condition():
                return
        except (FileNotFoundError, NotADirectoryError):
            pass  # between the two renamings of a checkpoint
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    raise AssertionError("the run did not get there in time")


def test_the_commit_is_that_of_the_package(tmp_path, monkeypatch):
    """Not of a repository around the environment that it is installed in; none without git."""
    package = tmp_path / "venv" / "race"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(race, "__file__", str(package / "__init__.py"))
    author = ("-c", "user.name=a", "-c", "user.email=a@b")

    def git(*words):
        subprocess.run(["git", *author, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "of a user's project")
    assert provenance()["git"] is None
    git("add", ".")
    git("commit", "-m", "of the package")
    assert len(provenance()["git"]) == 40
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["git"] is None


def test_an_unfinished_run_is_said_to_be_one(copper, tmp_path, monkeypatch, caplog):
    """Whoever reads it: noise and spread are fitted to errors at its end."""
    config, run = make_config(copper, train={"epochs": 1}), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("race.train.training.fit_noise", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            train(config, run)
    load_run(run)
    assert f"{run} has not finished" in caplog.text
    caplog.clear()
    train(config, run, resume=True)
    load_run(run)
    assert "not finished" not in caplog.text


@pytest.mark.parametrize("ignored", [True, False])
def test_ctrl_c_that_is_ignored_at_the_start(ignored, copper, tmp_path, monkeypatch):
    """As in the background of a shell script: it stays ignored."""
    step, handler = Trainer.step, signal.SIG_IGN if ignored else signal.default_int_handler

    def interrupted(self, batch):
        step(self, batch)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "step", interrupted)
    before = signal.signal(signal.SIGINT, handler)
    try:
        if ignored:
            train(make_config(copper, train={"epochs": 1}), tmp_path / "run")
            assert "best_epoch" in json.loads((tmp_path / "run" / "summary.json").read_text())
        else:
            with pytest.raises(SystemExit, match="130"):
                train(make_config(copper, train={"epochs": 1}), tmp_path / "run")
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_resume_after_a_kill_gives_the_same_weights(number, copper, tmp_path):
    """Killed inside an epoch, between any two instructions, and continued: bit for bit the
    run that was left alone.
    """
    # 5 batches make an epoch
    options = {
        "batch_size": 2,
        "schedule": "plateau",
        "patience": 1,
        "learning_rate": 0.3,
        "ema_decay": 0.5,
    }
    options["balance"] = number == signal.SIGTERM
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(make_config(copper, model={"n_members": 2}, train=options | {"epochs": 1}), whole)
    shutil.copytree(whole, killed)
    options["epochs"] = 8
    config = make_config(copper, model={"n_members": 2}, train=options)
    train(config, whole, resume=True)

    minutes = 0.0 if number == signal.SIGKILL else 60.0
    path = tmp_path / "config.yaml"
    write_yaml(
        path,
        make_config(
            copper, model={"n_members": 2}, train=options | {"checkpoint_minutes": minutes}
        ),
    )
    process = start(path, killed, "--resume")
    if number == signal.SIGKILL:
        wait_until(
            process,
            lambda: json.loads((killed / "checkpoint" / "state.json").read_text())["step"] >= 13,
        )
    else:
        wait_until(process, lambda: len(rows_of(killed)) >= 2)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert (
            process.returncode == 128 + signal.SIGTERM
            and "SIGTERM: saved" in text
            and "Traceback" not in text
        )
    assert has_checkpoint(killed) and 10 < load_checkpoint(killed)[2]["step"] < 40

    train(config, killed, resume=True)
    for name in ("model.safetensors", "checkpoint/last.safetensors"):
        a, b = read_tensors(whole / name), read_tensors(killed / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    a, b = (load_checkpoint(run)[2] | {"seconds": 0} for run in (whole, killed))
    assert a == b and a["schedule"]["scale"] < 1.0, (
        "the rate has to have been halved for this to test it"
    )
    timeless = [
        [{key: x for key, x in row.items() if key != "seconds"} for row in rows_of(run)]
        for run in (whole, killed)
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 8


def test_kill_between_the_renamings_of_a_checkpoint(tmp_path):
    tensors = {"weights": {"w": torch.ones(2)}}
    save_checkpoint(tmp_path, tensors, {}, {"step": 1})
    os.rename(tmp_path / "checkpoint", tmp_path / ".checkpoint.old")
    mend_checkpoint(tmp_path)
    assert has_checkpoint(tmp_path) and load_checkpoint(tmp_path)[2] == {"step": 1}
    save_checkpoint(tmp_path, tensors, {}, {"step": 2})
    assert (
        load_checkpoint(tmp_path)[2] == {"step": 2} and not (tmp_path / ".checkpoint.old").exists()
    )


# ---- refusals: one line, a non-zero status -------------------------------------------------------


def refusal(capsys, path, *options) -> str:
    assert main(["train", str(path), *options]) == 2
    text = capsys.readouterr().err.strip()
    assert "\n" not in text and text.startswith("race train: ")
    return text


def test_divergence_is_named(copper, tmp_path):
    config = make_config(
        copper, model={"n_members": 2}, train={"epochs": 3, "checkpoint_minutes": 0.0}
    )
    prepared = prepare(config)
    model = initial_model(prepared.config.model, prepared.config.constants, 0, torch.float64)
    trainer = Trainer(prepared.config, model, prepared.train, prepared.validation, tmp_path)
    with torch.no_grad():
        model.embedding[1] = torch.nan
    with pytest.raises(
        RaceError, match=r"epoch 1, batch 1: the loss of member 1 is not finite.*learning_rate"
    ):
        trainer.fit()
    assert not has_checkpoint(tmp_path)


def test_errors_are_one_line(copper, tmp_path, capsys):
    out = str(tmp_path / "run")
    path = tmp_path / "config.yaml"
    config = make_config(copper)
    path.write_text("data: {train: [a.xyz]}\ntrain: {learning_rat: 1}\n")
    assert "train.learning_rat" in refusal(capsys, path, "--out", out)
    path.write_text(f"data: {{train: [{copper}]}}\nmodel: {{head: point}}\n")
    assert "needs model.head" in refusal(capsys, path, "--out", out)
    write_yaml(path, make_config(copper, train={"device": "abacus"}))
    assert "device" in refusal(capsys, path, "--out", out)
    write_yaml(path, make_config(copper, model={"elements": ["Cu"]}))
    assert "Au" in refusal(capsys, path, "--out", out)
    write_yaml(path, make_config(copper, model={"scale": [1.0]}))
    assert "model.scale" in refusal(capsys, path, "--out", out)
    write_yaml(path, config)
    assert main(["train", str(path), "--out", out]) == 0
    capsys.readouterr()
    assert "already holds a run" in refusal(capsys, path, "--out", out)
    write_yaml(path, make_config(copper, train={"batch_size": 2}))
    assert "train.batch_size" in refusal(capsys, path, "--out", out, "--resume")
    with pytest.raises(RaceError, match="not a run"):
        load_run(tmp_path / "nowhere")


def test_stress_weight_needs_stress(tmp_path, copper):
    text = copper.read_text().replace("stress=", "unused=")
    bare = tmp_path / "bare.extxyz"
    bare.write_text(text)
    with pytest.raises(RaceError, match="no stress labels"):
        prepare(make_config(bare, train={"stress_weight": 1.0}))


def test_energies_alone(copper, tmp_path):
    """QM9's case: no forces in the loss, a mean instead of a sum, one scalar target."""
    config = make_config(
        copper,
        model={"head": "point", "pooling": "mean"},
        train={"loss": "mse", "forces_weight": 0.0, "epochs": 2},
    )
    trainer = train(config, tmp_path / "run")
    assert not trainer.needs_forces and "validation/forces_rmse" not in rows_of(tmp_path / "run")[0]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_noise_does_not_choose_the_epoch(weight, copper, tmp_path):
    """Errors do; the loss of the log is the likelihood."""
    prepared = prepare(
        make_config(copper, {"n_members": 2}, {"loss": "nll_jef", "stress_weight": weight})
    )
    model = initial_model(prepared.config.model, prepared.config.constants, 0, torch.float64)
    trainer = Trainer(prepared.config, model, prepared.train, prepared.validation, tmp_path)
    scores, row = trainer.validate()
    terms = ["energy", "forces"] + ["stress"] * (weight > 0)
    for m, score in enumerate(scores):
        errors = [row[f"validation/{term}_rmse/member_{m}"] for term in terms]
        assert score == pytest.approx(np.mean(np.log(errors)))
    model.scale_noise(0.1, 0.1)
    again, narrow = trainer.validate()
    assert again == pytest.approx(scores)
    assert narrow["validation/loss"] > row["validation/loss"] + 1


def test_scores_of_an_earlier_version_are_not_compared(copper, tmp_path):
    """They were likelihoods, below any logarithm of an error."""
    prepared = prepare(make_config(copper))
    run = tmp_path / "checked"
    run.mkdir()
    model = initial_model(prepared.config.model, prepared.config.constants, 0, torch.float64)
    trainer = Trainer(prepared.config, model, prepared.train, prepared.validation, run)
    trainer.step(prepared.train.batch([0, 1, 2]))
    trainer.state.best = [-120.0]
    for kind, want in (("RMS errors", -120.0), ("likelihood", float("inf"))):
        trainer.state.scored_by = kind
        trainer.save()
        copy = initial_model(prepared.config.model, prepared.config.constants, 0, torch.float64)
        again = Trainer(prepared.config, copy, prepared.train, prepared.validation, run)
        assert again.state.best == [want] and again.state.scored_by == "RMS errors"
