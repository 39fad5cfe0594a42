"""Whatever a user gets wrong ends LAMMPS with one line that names it: no crash, no hang, on
any number of ranks.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from race.deploy.artifact import FORMAT_VERSION

from .conftest import ELEMENTS
from .harness import write_data
from .systems import boron_nitride

INPUT = """
units metal
atom_style atomic
read_data bn.data
plugin load {plugin}
{commands}
run 0
"""

# Runs each case in one LAMMPS after another in one process, as a user of the Python
# module would, and prints what it raised.
CASES_IN_ONE_PROCESS = """
import json, sys
from lammps import lammps
cases = json.load(open(sys.argv[1]))
raised = {}
for name, text in cases.items():
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    try:
        lmp.commands_string(text)
        raised[name] = ""
    except Exception as error:
        raised[name] = str(error)
    lmp.close()
print("RAISED " + json.dumps(raised))
"""

DAMAGE = {
    "bit flip": (lambda b: b[:5000] + bytes([b[5000] ^ 4]) + b[5001:], "damaged artifact (sha256"),
    "truncated": (lambda b: b[:-100], "truncated"),
    "cut in half": (lambda b: b[: len(b) // 2], "truncated"),
    "another version": (
        lambda b: b.replace(f"race-artifact/{FORMAT_VERSION} ".encode(), b"race-artifact/0 "),
        "race-artifact/0",
    ),
    "text": (lambda b: b"not a model\n", "not a RACE artifact"),
    "empty": (lambda b: b"", "empty file"),
}


def one_error(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("ERROR")]
    assert len(lines) == 1, output
    return lines[0]


@pytest.fixture
def bn(lammps_run) -> Path:
    write_data(lammps_run.folder / "bn.data", boron_nitride((1, 1, 1)), ELEMENTS)
    return lammps_run.folder


@pytest.mark.parametrize("damage", ["bit flip", "truncated", "another version"])
def test_bad_artifact_on_two_ranks(lammps_run, bn, artifact, damage):
    spoil, expected = DAMAGE[damage]
    (bn / "bad.race.pt").write_bytes(spoil(artifact.read_bytes()))
    commands = "pair_style race bad.race.pt\npair_coeff * * B N O"
    finished = lammps_run.run(INPUT.format(plugin=lammps_run.plugin, commands=commands), ranks=2)
    assert not finished.hung and finished.status != 0
    line = one_error(finished.output)
    assert "bad.race.pt" in line and expected in line


@pytest.mark.parametrize(
    "commands, expected",
    [
        ("pair_style race nowhere.race.pt\npair_coeff * * B N O", "nowhere.race.pt: cannot open"),
        (
            "pair_style race {artifact}\npair_coeff * * B Si O",
            "atom type 2: expected an element of model",
        ),
        ("pair_style race {artifact}\npair_coeff * * B N", "expected 3 element names"),
        (
            "pair_style race {artifact}\npair_coeff * * B N O\nset atom 2 x 0 y 0 z 0\nset atom 1 "
            "x 0 y 0 z 0",
            "at the same place",
        ),
    ],
    ids=["missing file", "wrong element", "too few elements", "atoms at one place"],
)
def test_mistakes_on_two_ranks(lammps_run, bn, artifact, commands, expected):
    finished = lammps_run.run(
        INPUT.format(plugin=lammps_run.plugin, commands=commands.format(artifact=artifact)), ranks=2
    )
    assert not finished.hung and finished.status != 0, finished.output
    lines = finished.errors()
    assert lines and all(expected in line for line in lines), finished.output


def test_mistakes_in_one_process(lammps_run, bn, artifact, artifacts):
    """Every other mistake; each in a fresh LAMMPS in one process, so the plugin also
    survives being loaded again.
    """
    good = f"pair_style race {artifact}\npair_coeff * * B N O"
    uncalibrated = artifacts("uncalibrated", scale=[0.3, 0.5, 0.41])
    point = artifacts("point", n_members=1, head="point")
    cases = {
        "right": (good, ""),
        "no model": ("pair_style race\npair_coeff * * B N O", "no model"),
        "two models": (f"pair_style race {artifact}\npair_coeff * * {artifact} B N O", "has read"),
        "keyword": (
            f"pair_style race {artifact} divice cpu",
            "expected a keyword of device, dtype, uq, lead, core, memory, sha256, got di",
        ),
        "device": (
            f"pair_style race {artifact} device tpu",
            "expected cpu, cuda or cuda:N, got tpu",
        ),
        "device number": (
            f"pair_style race {artifact} device cuda:x",
            "expected cpu, cuda or cuda:N, got cuda:x",
        ),
        "dtype": (
            f"pair_style race {artifact} dtype float16",
            "expected float32 or float64, got float16",
        ),
        "uq": (f"pair_style race {artifact} uq always", "expected every N, got always"),
        "halo": (f"pair_style race {artifact} halo extended", "expected exchange, got extended"),
        "lead": (f"pair_style race {artifact} lead 0", "distilled or a member from 1, got 0"),
        "no leader": (f"pair_style race {artifact} lead 2", "lead 2: the file carries no such"),
        "missing value": (f"pair_style race {artifact} device", "missing argument"),
        "pin in pair_style": (
            f"pair_style race {artifact} sha256 00000000",
            "expected sha256 00000000",
        ),
        "pin in pair_coeff": (f"{good} sha256 0123456789", "expected sha256 0123456789"),
        "one pair": (f"pair_style race {artifact}\npair_coeff 1 2 B N O", "must start with * *"),
        "only NULL": (
            f"pair_style race {artifact}\npair_coeff * * NULL NULL NULL",
            "at least one element",
        ),
        "column": (f"{good}\ncompute u all race/atom force", "expected force/std"),
        "no probability": (f"{good}\ncompute u all race/atom interval", "missing argument"),
        "probability": (f"{good}\ncompute u all race/atom interval 95", "between 0 and 1"),
        "uncalibrated": (
            f"pair_style race {uncalibrated}\npair_coeff * * B N O\ncompute u all race/atom "
            "interval 0.9",
            "the model is not calibrated for it",
        ),
        "nothing to tell": (
            f"pair_style race {point}\npair_coeff * * B N O\ncompute u all race/atom force/std",
            "head point and no stress_head; expected an ensemble or a head with a force covariance",
        ),
        "no bald": (
            f"pair_style race {point}\npair_coeff * * B N O\ncompute u all race/atom bald",
            "expected a head with a force covariance",
        ),
        "global": (f"{good}\ncompute u all race entropy", "got entropy"),
        "group": (f"{good}\ngroup b type 1\ncompute u b race energy/std", "expected group all"),
        "no pair": (
            "pair_style zero 3.0\npair_coeff * *\ncompute u all race energy/std",
            "expected one pair_style race",
        ),
    }
    cases |= {
        name: (f"pair_style race {name.replace(' ', '_')}.race.pt", expected)
        for name, (_, expected) in DAMAGE.items()
    }
    for name, (spoil, _) in DAMAGE.items():
        (bn / f"{name.replace(' ', '_')}.race.pt").write_bytes(spoil(artifact.read_bytes()))
    texts = {
        name: INPUT.format(plugin=lammps_run.plugin, commands=commands)
        for name, (commands, _) in cases.items()
    }
    texts["lj"] = INPUT.format(plugin=lammps_run.plugin, commands=good).replace(
        "units metal", "units lj"
    )
    (bn / "cases.json").write_text(json.dumps(texts))

    finished = lammps_run.execute([sys.executable, "-c", CASES_IN_ONE_PROCESS, "cases.json"])
    assert finished.status == 0 and not finished.hung, finished.output
    raised = json.loads(finished.output.split("RAISED ")[1])
    expected = {name: text for name, (_, text) in cases.items()} | {
        "lj": "expected units metal, real, si or electron, got lj"
    }

    def is_right(said: str, wanted: str) -> bool:
        return wanted.lower() in said.lower() and bool(wanted) == bool(said)

    wrong = {
        name: raised[name] for name, text in expected.items() if not is_right(raised[name], text)
    }
    assert not wrong, json.dumps(wrong, indent=1)


def test_refuses_another_lammps(lammps_run, bn, artifact):
    """A plugin whose stamp says 29 Aug 2024, as one compiled for that version would."""
    here, another = (number.to_bytes(4, "little") for number in (20250722, 20240829))
    library = lammps_run.plugin.read_bytes()
    assert here in library
    stamped = bn / "anotherplugin.so"
    stamped.write_bytes(library.replace(here, another))
    commands = f"pair_style race {artifact}\npair_coeff * * B N O"
    finished = lammps_run.run(INPUT.format(plugin=stamped, commands=commands), ranks=2)
    assert not finished.hung and finished.status != 0
    line = one_error(finished.output)
    assert "20240829" in line and "20250722" in line


def test_error_lines_have_no_path_of_the_build(lammps_run, bn, artifact):
    commands = f"pair_style race {artifact} divice cpu"
    finished = lammps_run.run(INPUT.format(plugin=lammps_run.plugin, commands=commands))
    (line,) = [line for line in finished.output.splitlines() if line.startswith("ERROR")]
    # A compiler cache may name files relative to the build's folder.
    assert re.search(r"\((\.\./)*lammps_plugin/pair_settings\.cpp:", finished.output), line
