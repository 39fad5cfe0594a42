"""The LAMMPS commands of a model that was trained on top of a baseline: pair_style hybrid/overlay
adds up the two.
"""

from collections.abc import Sequence

from race.config import BaselineOptions


def hybrid_lines(options: BaselineOptions, artifact: object, elements: Sequence[str]) -> list[str]:
    """The commands that replace pair_style and pair_coeff of the model alone; empty if the
    baseline has no LAMMPS commands.

    Args:
        options: the baseline; its `elements` are those of the LAMMPS types.
        artifact: path of the model.
        elements: of the model.
    """
    lines, coefficients = [], []
    words = [line.split() for line in options.lammps]
    style = next((own[1] for own in words if own[:1] == ["pair_style"]), "")
    alone = style != "hybrid/overlay"  # else its pair_coeff name their style already
    for own in words:
        if own[:1] == ["pair_style"]:
            lines.append(f"pair_style hybrid/overlay race {artifact} {' '.join(own[2 - alone :])}")
            types = [symbol if symbol in elements else "NULL" for symbol in options.elements]
            lines.append(f"pair_coeff * * race {' '.join(types)}")
        elif own[:1] == ["pair_coeff"] and alone:
            coefficients.append(" ".join([*own[:3], style, *own[3:]]))
        elif own[:1] == ["pair_modify"] and alone:
            coefficients.append(" ".join([own[0], "pair", style, *own[1:]]))
        elif own:
            coefficients.append(" ".join(own))
    return lines + coefficients
