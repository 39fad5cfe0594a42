"""Options: what is refused and in which words, what changes them, and what explains them."""

import os
import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError

from race.cli import main
from race.config import (
    IRREPS,
    Config,
    ModelConfig,
    ModelConstants,
    RunConfig,
    read_config,
    read_run_config,
)
from race.errors import RaceError
from race.heads import FIRST_NOISE_BOUND, NOISE_BOUND
from race.options import describe, walk
from race.presets import preset

DATA = {"data": {"train": ["a.xyz"]}}


def written(tmp_path, content, name="config.yaml"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def refusal(path, *changes) -> list[str]:
    with pytest.raises(RaceError) as error:
        read_config(path, changes)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    "model, size",
    [
        (None, "medium"),
        ("small", "small"),
        ({"n_members": 4}, "medium"),
        ({"preset": "large", "n_members": 4}, "large"),
    ],
)
def test_a_model_that_is_not_written_out_has_a_size(tmp_path, model, size):
    config = read_config(written(tmp_path, DATA if model is None else {**DATA, "model": model}))
    for name, value in preset(size).items():
        assert getattr(config.model, name) == value, name
    assert config.model.n_members == (4 if isinstance(model, dict) else 1)


def test_a_model_that_is_written_out_is_taken_as_it_is(tmp_path):
    model = {"irreps_hidden": "8x0e+8x1o", "lmax": 1}
    config = read_config(written(tmp_path, {**DATA, "model": model}))
    assert config.model == ModelConfig(**model)
    assert config.model.correlation == 1


def test_every_problem_is_shown_at_once_with_key_and_remedy(tmp_path):
    path = written(
        tmp_path,
        {
            "data": {"train": [], "atomic_energies": {"Cu": "x"}},
            "model": {"r_max": -1, "n_layer": 3, "radial_mlp": [8, "a"]},
            "train": {"epochs": "many", "r_max": 3.0, "loss": "l2"},
        },
    )
    first, *lines = refusal(path)
    assert first == "8 problems"
    expected = {
        "data.train": "expected at least 1 entries; got []",
        "data.atomic_energies": "a number or a path or 'least_squares' or 'isolated'; got 'x'",
        "model.r_max": "expected more than 0.0; got -1; `race config model.r_max` explains it",
        "model.n_layer": "no such option; did you mean n_layers?",
        "model.radial_mlp[1]": "expected an integer; got 'a'",
        "train.epochs": "expected an integer; got 'many'",
        "train.r_max": "no such option; write model.r_max",
        "train.loss": "expected 'mse', 'nll_e', 'nll_jef', 'evidential' or 'eip'; got 'l2'",
    }
    for key, text in expected.items():
        (line,) = (line for line in lines if f"{path}, key {key}:" in line)
        assert text in line


@pytest.mark.parametrize(
    "key, value, limit",
    [
        ("train.seed", -1, "at least 0"),
        ("train.seed", 2**32, f"less than {2**32}"),
        ("data.split_seed", -1, "at least 0"),
        ("train.n_threads", 100000, "at most 1024"),
        ("train.learning_rate", ".nan", "a finite number"),
        ("train.learning_rate", ".inf", "a finite number"),
        ("model.lmax", 4, "at most 3"),
    ],
)
def test_numbers_out_of_range_are_one_line(tmp_path, key, value, limit):
    (line,) = refusal(written(tmp_path, DATA), f"{key}={value}")
    assert f"key {key}: cannot be used; expected {limit}" in line


def test_options_that_clash_are_all_named(tmp_path):
    model = {"head": "point", "stress_head": "equivariant", "pooling": "mean"}
    first, *lines = refusal(written(tmp_path, DATA | {"model": model}))
    assert first == "3 problems" and "train.loss nll_jef needs model.head" in lines[0]
    assert "model.stress_head" in lines[1] and "model.pooling" in lines[2]
    model = {"elements": ["Cu"], "atomic_energies": [1.0]}
    data = DATA["data"] | {"atomic_energies": {"Cu": 2.0}}
    assert "both given" in refusal(written(tmp_path, {"data": data, "model": model}))[0]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "not a config; expected sections of options; got an empty file"),
        ("- a\n- b\n", "not a config"),
        ("data: [\n", "not valid YAML"),
        ("data: {train: [a]}\ntrain: {seed: 1, seed: 2}\n", "seed is given twice"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_files_that_are_no_config(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (line,) = refusal(path)
    assert message in line and str(path) in line


def test_no_file_and_a_folder(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.yaml")[0]
    assert "is a folder" in refusal(tmp_path)[0]


def test_set_changes_the_file(tmp_path):
    path = written(tmp_path, DATA | {"model": "race-obn25", "train": {"epochs": 3}})
    changes = ["train.epochs=200", "model.n_members=4", "data.train=[b.xyz]", "train.loss=nll_jef"]
    config = read_config(path, changes)
    assert config.train.epochs == 200 and config.data.train == [tmp_path / "b.xyz"]
    assert config.model.n_members == 4 and config.model.r_max == 3.0  # of the preset
    assert "no value" in refusal(path, "train.epochs")[0]
    assert (
        "key train.epoch: no such option; did you mean epochs?"
        in (refusal(path, "train.epoch=3")[0])
    )
    assert "train.epochs has no options" in refusal(path, "train.epochs.x=3")[0]


def test_every_option_is_explained(capsys):
    for key, field in walk(Config):
        assert field.description or key in (("data",), ("model",), ("train",)), key
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    for option in describe(Config):
        assert f"\n{option.key}: {option.type}" in f"\n{text}"
    assert main(["config", "model.r_max", "train.seed"]) == 0
    text = capsys.readouterr().out
    assert "model.r_max: number > 0, Angstrom; default 5.0\n    cutoff radius" in text
    assert "train.seed" in text and "train.epochs" not in text
    assert main(["config", "train", "--markdown"]) == 0
    assert "| `train.batch_size` | integer >= 1 | `4` |" in capsys.readouterr().out
    assert main(["config", "--active", "explore"]) == 0
    assert "explore.temperature" in capsys.readouterr().out
    assert main(["config", "train.epoch"]) == 2


def test_constants_are_as_many_as_elements():
    with pytest.raises(RaceError, match=r"model.scale: wrong length; .* each of Cu Au; got \[1"):
        ModelConstants(elements=["Cu", "Au"], scale=[1.0])
    given = ModelConstants.given(ModelConfig(elements=["Cu", "Au"], sigma0=0.3))
    assert (given.sigma0, given.scale, given.atomic_energies) == (0.3, [1.0, 1.0], [0.0, 0.0])
    with pytest.raises(RaceError, match="a model needs its elements"):
        ModelConstants.given(ModelConfig())


def test_runs_of_earlier_versions_are_read(tmp_path):
    """The constants stood among the options of the model."""
    constants = ModelConstants(
        elements=["Cu"], avg_num_neighbors=12.0, atomic_energies=[-3.0], forces_noise_factor=1.2
    )
    config = RunConfig(data={"train": ["/a.xyz"]}, model={"r_max": 4.0}, constants=constants)
    content = config.model_dump(mode="json")
    assert read_run_config(written(tmp_path, content)) == config
    old = dict(content)
    old["model"] = {**content["model"], **old.pop("constants")}
    assert read_run_config(written(tmp_path, old)) == config
    # A run's config trains another run, on constants of its own
    assert read_config(written(tmp_path, content)).model == config.model
    assert read_config(written(tmp_path, old)).model.elements == ["Cu"]


def test_the_noise_of_runs_from_before_it_had_a_bound_of_its_own_ends_where_it_did(tmp_path):
    config = RunConfig(data={"train": ["/a.xyz"]}, constants=ModelConstants(elements=["Cu"]))
    content = config.model_dump(mode="json")
    assert read_run_config(written(tmp_path, content)).constants.noise_bound == NOISE_BOUND
    constants = content.pop("constants")
    del constants["noise_bound"]
    later = {**content, "constants": constants}
    first = {**content, "model": {**content["model"], **constants}}
    for old in (later, first):
        read = read_run_config(written(tmp_path, old)).constants
        assert read.noise_bound == FIRST_NOISE_BOUND < NOISE_BOUND


def test_help_and_errors_of_configs_do_without_torch(tmp_path):
    path = written(tmp_path, {"data": {}})
    for arguments, status in ((["--help"], 0), (["train", str(path)], 2), (["config"], 0)):
        code = f"import sys; sys.argv[1:] = {arguments!r}\nfrom race.cli import main\n"
        code += "try: status = main()\nexcept SystemExit as error: status = error.code\n"
        code += "print('torch' in sys.modules, status)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ
        )
        assert done.stdout.splitlines()[-1] == f"False {status}", (arguments, done)


def test_elements_by_atomic_number_and_types_that_look_like_numbers():
    data = {"train": ["a.xyz"], "atomic_energies": {29: -3.0, "Ni": -5.0}, "config_weights": {1: 2}}
    config = Config.model_validate({"data": data})
    assert config.data.atomic_energies == {"Cu": -3.0, "Ni": -5.0}
    assert config.data.config_weights == {"1": 2.0}
    for wrong in (200, 0, "Xx"):
        with pytest.raises(ValidationError, match=f"no element is called {wrong}"):
            Config.model_validate({"data": data | {"atomic_energies": {wrong: 1.0}}})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"data": {"validation": ["v.xyz"], "validation_fraction": 0.3}}, "validation_fraction"),
        ({"data": {"validation": ["v.xyz"], "split_seed": 3}}, "split_seed"),
        ({"data": {"source_key": "method"}}, "source_key"),
        ({"model": {"head": "point", "energy_aggregation": "paper"}}, "energy_aggregation"),
        ({"train": {"patience": 3}}, "patience"),
        ({"train": {"loss": "mse", "warmup_epochs": 3}}, "warmup_epochs"),
        ({"train": {"loss": "mse", "beta": 0.5}}, "beta"),
    ],
)
def test_an_option_that_another_silences_is_said(options, name):
    from race.unused import unused

    options = {**options, "data": {"train": ["a.xyz"], **options.get("data", {})}}
    if options.get("model"):
        options["train"] = {"loss": "mse"}
    (line,) = unused(Config.model_validate(options))
    assert f".{name} is not used: " in line
    used = {
        "model": {"energy_aggregation": "paper"},
        "data": {"train": ["a.xyz"], "energy_offsets": "fit", "source_key": "method"},
        "train": {"schedule": "plateau", "patience": 3, "warmup_epochs": 2, "beta": 0.5},
    }
    assert not list(
        unused(Config.model_validate(used | {"model": {"energy_aggregation": "paper"}}))
    )


def test_nothing_to_learn_is_refused():
    train = {"energy_weight": 0, "forces_weight": 0}
    with pytest.raises(ValueError, match="all 0: nothing to learn"):
        Config.model_validate({"data": {"train": ["a.xyz"]}, "train": train})


def test_noise_that_nothing_trains_is_no_default_and_is_refused():
    def config(**sections):
        return Config.model_validate({"data": {"train": ["a.xyz"]}, **sections})

    alone = {"forces_weight": 0}
    energies = config(train=alone)
    assert (energies.model.head, energies.train.loss) == ("energy", "nll_e")
    assert config().model.head == config(train={"loss": "nll_e"}).model.head == "equivariant"
    for head, loss in (("equivariant", "nll_e"), ("eip", "eip"), ("cholesky", "mse")):
        with pytest.raises(ValueError, match="leaves the noise of forces untrained"):
            config(model={"head": head}, train=alone | {"loss": loss})
    assert config(model={"head": "point"}, train=alone | {"loss": "mse"}).model.head == "point"
    # The frames of a mean over atoms have no forces; a warm start takes its run's head
    config(model={"head": "equivariant", "pooling": "mean"}, train=alone)
    assert config(train=alone | {"warm_start": "run"}).train.loss == "nll_jef"


@pytest.mark.parametrize("irreps", ["4x0e+", "", "4x0e 4x1o", "0.5x0e", "4x0g"])
def test_what_are_no_irreps_is_refused(tmp_path, irreps):
    path = written(tmp_path, {"data": {"train": ["a"]}, "model": {"irreps_hidden": irreps}})
    assert "expected irreps such as" in refusal(path)[0]
    assert IRREPS.fullmatch("16x0e + 1o+ 2 x 2e")


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "a.xyz").symlink_to("a.xyz")
    path = written(tmp_path, {"data": {"train": ["a.xyz"]}})
    assert refusal(path)[0].endswith("key data.train: is a link that leads to itself; got a.xyz")
