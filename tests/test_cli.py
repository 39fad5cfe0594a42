"""The command itself: how it ends, whatever a user or a shell does."""

import json
import logging
import os
import shlex
import subprocess
import sys

import pytest

from race import cli, command_completion
from race.cli import main
from race.evaluate.calibration import METHODS
from race.evaluate.command import RECALIBRATIONS


def command(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "race", *arguments], env=environment, text=True, **options
    )


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("race 0.")


def test_repeated_list_options_add_up():
    """`--ood a --ood b` is `--ood a b`, in every command: argparse would keep the last alone."""
    (commands,) = cli.make_parser(list(cli.COMMANDS))._subparsers._group_actions
    lists = {
        f"race {name} {action.option_strings[0]}": action
        for name, parser in commands.choices.items()
        for action in parser._actions
        if action.option_strings and action.nargs in ("+", "*")
    }
    assert "race evaluate --ood" in lists and len(lists) >= 8
    forgetful = [name for name, action in lists.items() if type(action).__name__ != "_ExtendAction"]
    assert not forgetful


def test_a_reader_that_leaves_does_not_end_the_work(tmp_path, monkeypatch):
    """Of stdout and stderr: what is left to do is done, and the status is 0."""
    read, write = os.pipe()
    os.close(read)
    code = "from race.cli import outlive_readers\nimport sys\n"
    code += "with outlive_readers():\n for k in range(9):\n  print(k, flush=True)\n"
    code += "  print(k, file=sys.stderr, flush=True)\nopen(sys.argv[1], 'w').write('done')"
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], stdout=write, stderr=write
    )
    os.close(write)
    assert process.returncode == 0 and (tmp_path / "x").read_text() == "done"


def test_interruption_is_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "race train: interrupted\n"


def test_errors_of_the_file_system_are_one_line(monkeypatch, capsys):
    def full(argv):
        raise OSError(28, "No space left on device", "x.json")

    monkeypatch.setattr(cli, "_run", full)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "race info: x.json: No space left on device\n"


def test_messages_of_the_library(monkeypatch, capsys):
    def talk(argv):
        logging.getLogger("race.train").info("said")
        logging.getLogger("race.data").warning("doubted")

    monkeypatch.setattr(cli, "_run", talk)
    assert main([]) == 0 and main([]) == 0  # one handler at a time
    captured = capsys.readouterr()
    assert captured.out == "said\n" * 2 and captured.err == "warning: doubted\n" * 2


def test_options_as_json(capsys):
    assert main(["config", "model.r_max", "--json"]) == 0
    (option,) = json.loads(capsys.readouterr().out)
    assert option["key"] == "model.r_max" and option["unit"] == "Angstrom"


def complete(line: str, folder) -> list[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    code = f"""{command_completion.script("bash")}
COMP_WORDS=({" ".join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}
_shtab_race race {shlex.quote(words[-1])} {shlex.quote(words[-2])}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def test_bash_completes(tmp_path):
    (tmp_path / "config.yaml").touch()
    assert complete("race ev", tmp_path) == ["evaluate"]
    assert complete("race train --res", tmp_path) == ["--resume"]
    assert complete("race train conf", tmp_path) == ["config.yaml"]
    assert complete("race evaluate run conf", tmp_path) == ["config.yaml"]
    for name in cli.COMMANDS:
        assert complete(f"race {name} --hel", tmp_path) == ["--help"], name


def imported(*arguments: str, names: set[str]) -> list[str]:
    """Which of the modules the help of a command imports."""
    code = f"import sys; from race.cli import main\ntry: main({[*arguments, '--help']!r})\n"
    code += f"except SystemExit: print(*{names!r} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("usage: race")
    return done.stderr.split()


def test_help_imports_nothing_large():
    assert imported(names={"torch", "numpy", "ase", "shtab"}) == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_imports_nothing_large(name):
    assert imported(name, names={"torch", "ase", "scipy", "matplotlib"}) == []


CODE = """
import sys
from race.cli import main
status = main(sys.argv[1:])
print(status, *{"torch", "ase"} & set(sys.modules))
"""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("data: [", "not valid YAML"),
        ("data: {train: [a.xyz]}\ntrain: {epoch: 1}", "no such option; did you mean epochs?"),
        ("data: {train: [missing.xyz]}", "missing.xyz: no such file"),
        ("data: {train: [a.yaml], validation: [missing.xyz]}", "missing.xyz: no such file"),
    ],
)
def test_a_wrong_config_is_told_at_once(tmp_path, config, message):
    """Without the seconds that torch and ASE take to import."""
    (tmp_path / "a.yaml").write_text(config)
    command = [sys.executable, "-c", CODE, "train", "a.yaml", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2"] and message in done.stderr
    assert not (tmp_path / "run").exists()


def test_choices_are_what_there_is():
    """Of options whose help must not import what they choose from."""
    assert set(RECALIBRATIONS) == set(METHODS)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train a.yaml --out ''", "argument 3: is empty; is a variable of the script unset?"),
        ("evaluate x a.xyz --batch-size 0", "--batch-size: out of range; expected 1 or more; got"),
        ("evaluate x a.xyz --bootstrap -5", "--bootstrap: out of range; expected 0 or more; got"),
        ("select --strategy random --budget 1 a.xyz -o s.xyz --batch-size -1", "--batch-size: out"),
    ],
)
def test_arguments_out_of_range_are_one_line(command, message, capsys):
    assert main(shlex.split(command)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("name", ["banana", "cuda:999"])
def test_a_device_that_there_is_not(name):
    from race.errors import RaceError
    from race.predict.device import available

    with pytest.raises(RaceError, match=f"--device: device is not available; got {name}") as error:
        available(name, "--device")
    assert "\n" not in str(error.value) and available("cpu", "--device").type == "cpu"
