"""A part of the damaged models in every run of the suite; `make torture` has them all."""

import shutil

from ..harness import write_data
from ..systems import boron_nitride
from . import model_files
from .runner import Case, Outcome, refused, run_block

# Ends the worker among the parents of this shell with a segmentation fault.
CRASH = """
pid=$$
while ! grep -q worker.py /proc/$pid/cmdline; do
  pid=$(sed -n "s/^PPid:[^0-9]*//p" /proc/$pid/status)
done
kill -SEGV $pid
sleep 5
"""


def test_damaged_models(tmp_path, plugin, small_artifact):
    cases = model_files.cases(small_artifact, tmp_path, plugin, n_truncations=8, n_flips=12)
    tally = run_block("model files", cases, tmp_path)
    assert tally.tried == len(cases) == 56 and tally.good == tally.tried, "\n".join(
        [str(tally), *tally.trouble]
    )
    assert not (tmp_path / model_files.MARKER).exists()


def test_what_was_only_sealed_again_loads(tmp_path, plugin, small_artifact):
    (tmp_path / "same.race.pt").write_bytes(model_files.same(small_artifact.read_bytes()))
    shutil.copy(small_artifact, tmp_path / "plain.race.pt")
    inputs = [
        model_files.INPUT.format(plugin=plugin, file=tmp_path / f"{name}.race.pt")
        for name in ("same", "plain")
    ]
    tally = run_block(
        "loads",
        [Case(text, text, lambda outcome: outcome.error or "") for text in inputs],
        tmp_path,
    )
    assert tally.good == 2, tally.trouble


def test_runner_sees_crashes_hangs_and_what_is_not_refused(tmp_path):
    """The watchdog itself: three inputs that do what none may do, between two that do what
    they should.
    """
    write_data(tmp_path / "bn.data", boron_nitride((1, 1, 1)), ["B", "N"])
    (tmp_path / "crash.sh").write_text(CRASH)
    good = "units metal\nread_data bn.data\npair_style zero 3.0\npair_coeff * *\nrun 0"
    cases = [
        Case("right", good, lambda outcome: "" if outcome.energy == 0 else "energy"),
        Case("crash", f"{good}\nshell sh crash.sh", refused()),
        Case("hang", "shell sleep 60", refused()),
        Case("taken", good, refused()),
        Case("other words", "pair_style nonsense", refused("astonishing")),
        Case("refused", "pair_style nonsense", refused("nonsense")),
    ]
    tally = run_block("runner", cases, tmp_path, seconds=12.0)
    assert (tally.tried, tally.good, tally.crashes, tally.hangs, tally.wrong) == (6, 2, 1, 1, 2), (
        tally.trouble
    )
    assert Outcome(error="x") and "hang" in tally.trouble[1]
