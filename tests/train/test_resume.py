"""What a run is continued with: its data by content, its own weights, one writer, and time."""

import itertools
import shutil

import pytest
import torch
import yaml

from race.cli import main
from race.errors import RaceError
from race.files import LOCK, Lock
from race.posterior.fit import fit
from race.train import trainer
from race.train.checkpoint import load_checkpoint, read_tensors, write_tensors
from race.train.optim import Schedule
from race.train.run import load_run
from race.train.training import train

from .conftest import make_config, rows_of


@pytest.fixture(scope="module")
def there(copper, tmp_path_factory):
    """A run and its data, as they are after both were copied elsewhere."""
    here, there = (tmp_path_factory.mktemp(name) for name in ("here", "there"))
    shutil.copy(copper, here / "cu3au.extxyz")
    train(make_config(here / "cu3au.extxyz"), here / "run")
    shutil.copytree(here, there, dirs_exist_ok=True)
    shutil.rmtree(here)
    return there


def test_data_is_known_by_content(there, tmp_path):
    """Continued from where the user says that the data is, under whatever name; fitted from
    where it lies beside the run.
    """
    copied = shutil.copytree(there, tmp_path / "copied")
    data = shutil.move(copied / "cu3au.extxyz", copied / "renamed.extxyz")
    train(make_config(data, train={"epochs": 3}), copied / "run", resume=True)
    _, config, summary = load_run(copied / "run")
    assert config.data.train == [data] and list(summary["training"]["files"]) == [str(data)]
    assert len(rows_of(copied / "run")) == 3
    fit("llpr", [there / "run"], tmp_path / "llpr", {"members": 2})
    assert load_run(tmp_path / "llpr")[0].n_members == 2


def test_data_that_changed_is_refused(there, tmp_path):
    copied = shutil.copytree(there, tmp_path / "copied")
    data = copied / "cu3au.extxyz"
    data.write_text(data.read_text().replace("Cu", "Ag", 1))
    before = (copied / "run" / "config.yaml").read_text()
    for call in (
        lambda: train(make_config(data, train={"epochs": 3}), copied / "run", resume=True),
        lambda: fit("llpr", [copied / "run"], tmp_path / "out", {}),
    ):
        with pytest.raises(RaceError, match=r"cu3au.extxyz: the data has changed since.*sha256"):
            call()
    assert (copied / "run" / "config.yaml").read_text() == before
    data.unlink()
    with pytest.raises(RaceError, match="no such file, nor one of its content"):
        fit("llpr", [copied / "run"], tmp_path / "out", {})


def test_a_warm_start_goes_on_without_its_source(there, copper, tmp_path):
    source = shutil.copytree(there / "run", tmp_path / "source")
    options = {"epochs": 1, "warm_start": source}
    train(make_config(copper, train=options), tmp_path / "run")
    other = shutil.move(source, tmp_path / "gone")
    train(make_config(copper, train=options | {"epochs": 2}), tmp_path / "run", resume=True)
    assert len(rows_of(tmp_path / "run")) == 2
    shutil.copytree(other, source)
    (source / "model.safetensors").write_bytes(b"others")
    with pytest.raises(RaceError, match="has other weights than the run started from"):
        train(make_config(copper, train=options | {"epochs": 3}), tmp_path / "run", resume=True)


def test_one_writer(copper, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with Lock(run), pytest.raises(RaceError, match="another process is writing this folder"):
        train(make_config(copper), run, resume=True)
    train(make_config(copper, train={"epochs": 1}), run)
    assert not (run / LOCK).exists()
    with Lock(run), pytest.raises(RaceError, match="another process is writing this folder"):
        train(make_config(copper, train={"epochs": 2}), run, resume=True)
    with Lock(tmp_path), pytest.raises(RaceError, match="another process"):
        fit("ensemble", [run], tmp_path, {})


def test_refusals_leave_no_folder(copper, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    config = make_config(copper, model={"elements": ["Cu"]})
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    assert main(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    assert "Au" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_one_line(there, copper, tmp_path):
    copied = shutil.copytree(there, tmp_path / "copied")
    config = make_config(copied / "cu3au.extxyz", train={"epochs": 3})
    for name in ("optimizer.pt", "state.json", "last.safetensors"):
        path = copied / "run" / "checkpoint" / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(RaceError, match="damaged|not a safetensors file"):
            train(config, copied / "run", resume=True)
        path.write_bytes(content)


# ---- time ----------------------------------------------------------------------------------------


def test_a_run_whose_model_was_edited_is_refused(there, tmp_path):
    """Another cutoff fits the same weights, and would give other numbers without a word."""
    run = tmp_path / "run"
    shutil.copytree(there / "run", run)
    text = (run / "config.yaml").read_text()
    for was, now, message in (
        ("r_max: 3.5", "r_max: 4.5", "model.r_max: is not what the weights .*3.5; got 4.5"),
        ("envelope_p: 6", "envelope_p: 5", "model.envelope_p: .* expected 6; got 5"),
    ):
        assert was in text
        (run / "config.yaml").write_text(text.replace(was, now))
        with pytest.raises(RaceError, match=message):
            load_run(run)
    # Weights of earlier versions do not say what they are of
    weights = run / "model.safetensors"
    write_tensors(weights, read_tensors(weights))
    load_run(run)


def test_schedule_of_a_time():
    """A cosine of the time that has passed; a rise of 100 steps, or a tenth of the time."""
    options = make_config("x", train={"learning_rate": 0.1}).train
    schedule = Schedule(options, None)
    assert schedule.rate(100, 0.0) == pytest.approx(0.1)
    assert schedule.rate(5000, 0.5) == pytest.approx(0.1 * 0.505)
    assert schedule.rate(5000, 1.0) == pytest.approx(0.001)
    assert schedule.rate(0, 0.0) == pytest.approx(0.1 / 101)
    few = 0.5 * (1 + torch.cos(torch.tensor(0.1 * torch.pi)).item())
    assert schedule.rate(3, 0.1) == pytest.approx(0.1 * (0.01 + 0.99 * few))


def test_training_for_a_time_ends_with_it_and_goes_on(copper, tmp_path, monkeypatch):
    """The rate falls to 1 % when the time is over; the seconds of all sittings count. The
    clock ticks 20 ms whenever it is read.
    """
    ticks = itertools.count()
    monkeypatch.setattr(trainer.time, "monotonic", lambda: 0.02 * next(ticks))
    config = make_config(copper, train={"minutes": 0.05, "epochs": None})
    train(config, tmp_path / "run")
    state = load_checkpoint(tmp_path / "run")[2]
    rates = [float(row["learning_rate"]) for row in rows_of(tmp_path / "run")]
    assert 3.0 <= state["seconds"] < 3.3 and len(rates) > 5
    assert rates[-1] < 0.012 * config.train.learning_rate and rates[-1] < rates[3]
    weights = read_tensors(tmp_path / "run" / "checkpoint" / "last.safetensors")
    train(config, tmp_path / "run", resume=True)  # nothing left of the time
    again = read_tensors(tmp_path / "run" / "checkpoint" / "last.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    longer = make_config(copper, train={"minutes": 0.07, "epochs": None})
    train(longer, tmp_path / "run", resume=True)
    after = load_checkpoint(tmp_path / "run")[2]
    assert after["step"] > state["step"] and 4.2 <= after["seconds"] < 4.5


def test_minutes_or_epochs(copper):
    with pytest.raises(ValueError, match="train.minutes and train.epochs are both given"):
        make_config(copper, train={"minutes": 1.0})
    assert make_config(copper, train={"epochs": None}).train.minutes == 50.0
    for given in ({"epochs": 7}, {"epochs": None, "minutes": 1.0}):
        options = make_config(copper, train=given).train
        assert (options.epochs, options.minutes) == (given["epochs"], given.get("minutes"))


def test_beta2_is_adams(copper, tmp_path):
    trained = train(make_config(copper, train={"epochs": 1, "beta2": 0.9}), tmp_path / "run")
    assert trained.optimizer.param_groups[0]["betas"] == (0.9, 0.9)


def test_a_checkpoint_with_other_groups_of_parameters_is_refused(copper, tmp_path, monkeypatch):
    """As those are that were written before a factor on a learning rate was known."""
    with monkeypatch.context() as before:
        before.setattr("race.train.optim.rate_factor", lambda name, parameter: 1.0)
        train(make_config(copper), tmp_path / "run")
    with pytest.raises(RaceError, match=r"other groups of parameters.*train\.warm_start"):
        train(make_config(copper, train={"epochs": 3}), tmp_path / "run", resume=True)


def test_a_finished_run_is_not_begun_anew(there, tmp_path):
    """Its checkpoint may have been taken away to save space."""
    copied = shutil.copytree(there, tmp_path / "copied")
    shutil.rmtree(copied / "run" / "checkpoint")
    before = (copied / "run" / "model.safetensors").read_bytes()
    longer = make_config(copied / "cu3au.extxyz", train={"epochs": 3})
    with pytest.raises(RaceError, match=r"finished run without its checkpoint.*train.warm_start"):
        train(longer, copied / "run", resume=True)
    assert (copied / "run" / "model.safetensors").read_bytes() == before
