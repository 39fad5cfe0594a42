"""Extended xyz, frame by frame: each line of the file belongs to a frame, or the file is
refused.

ASE parses each frame. ASE alone stops at a blank line between frames, drops columns that
`Properties` does not name, and takes the last of two equal keys. It keeps a header word in
another spelling as a remark, so that a crystal becomes a molecule. Here
the frames are counted, and the header is put into the standard's words (the standard:
https://github.com/libAtoms/extxyz) before ASE sees it.
"""

import difflib
import io
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np
from ase.data import atomic_numbers
from ase.io.extxyz import read_xyz

from race.data.labels import is_label, six_stress
from race.data.notes import Notes
from race.data.textfile import open_text
from race.errors import RaceError

# The standard's words, by what they are in lower case.
HEADER = {"lattice": "Lattice", "properties": "Properties", "pbc": "pbc"}
COLUMNS = {"species": "species", "pos": "pos", "z": "Z", "move_mask": "move_mask"}
# Words of other codes for the same things. Their order or meaning differs from code to code:
# they are refused where the standard's word is absent and they matter.
CELL_WORDS = {"cell", "box", "unit_cell", "unitcell", "lattice_vectors", "lattice_vector"}
CELL_WORDS |= {"cell_vectors", "latvec", "supercell", "lattice_parameters", "abc"}
PBC_WORDS = {"periodic", "periodicity", "boundary", "bc", "boundary_conditions", "is_periodic"}
PBC_WORDS |= {"periodic_boundary_conditions", "periodic_boundary", "pbcs"}

TRUE = {"t", "true", ".true.", "1", "yes", "y", "on", "p", "pp", "periodic"}
FALSE = {"f", "false", ".false.", "0", "no", "n", "off", "s", "m", "none", "open", "free"}
FALSE |= {"nonperiodic", "non-periodic", "isolated", "fixed"}
FALSE |= {a + b for a in "fsm" for b in "fsm"}  # LAMMPS's boundary

QUOTED = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|\{[^}]*\}|\[[^\]]*\]'
PAIR = re.compile(rf"(?P<key>[^\s=,\"'{{}}\[\]]+)\s*=\s*(?P<value>{QUOTED}|\S*)|{QUOTED}|\S+")


def extxyz_frames(path: Path, notes: Notes) -> Iterator[ase.Atoms | RaceError]:
    """Every frame, in order; in place of one that cannot be read, the error that says why.

    Raises:
        RaceError: text between the frames, which leaves open where the next one starts.
    """
    frame, line_number = 0, 0
    with open_text(path) as stream:
        while line := stream.readline():
            line_number += 1
            if not line.strip():
                continue
            where = f"{path}, frame {frame}"
            n_atoms = _n_atoms(line, f"{where}, line {line_number}", frame)
            first = line_number
            # As many as there are: a damaged number may announce more than any file has
            lines = [*itertools.islice(iter(stream.readline, ""), n_atoms + 1)]
            line_number += len(lines)
            if len(lines) < n_atoms + 1 or (n_atoms and not lines[-1].strip()):
                have = max(0, sum(bool(text.strip()) for text in lines[1:]))
                yield RaceError(
                    "the file ends inside this frame"
                    if len(lines) < n_atoms + 1
                    else "a blank line among its atoms",
                    where=f"{where}, line {line_number}",
                    expected=f"{n_atoms} atoms, as line {first} says",
                    got=f"{have}",
                    remedy="cut this frame off, or let the program that writes it finish",
                )
                if len(lines) < n_atoms + 1:
                    return
            else:
                try:
                    yield _frame(n_atoms, lines, where, first, notes, frame)
                except RaceError as error:
                    yield error
            frame += 1


def _n_atoms(line: str, where: str, frame: int) -> int:
    words = line.lstrip("\ufeff").split()  # a byte order mark may stand inside joined files
    if len(words) == 1 and words[0].isascii() and words[0].isdigit() and len(words[0]) < 16:
        return int(words[0])
    raise RaceError(
        "not the start of a frame",
        where=where,
        expected="a number of atoms alone on the line",
        got=repr(line.strip()[:40]),
        remedy="the frame before has more lines than it announces, or this is no extended xyz"
        if frame
        else "is this extended xyz?",
    )


def _frame(
    n_atoms: int, lines: list[str], where: str, first: int, notes: Notes, frame: int
) -> ase.Atoms:
    """One frame; `first` is the file's line with the number of atoms."""
    header = lines[0].strip()
    pairs = _pairs(header, where)
    spelled = _header_words(pairs, where, notes, frame)
    columns = _columns(spelled.get("Properties"), where, notes, frame)
    _check_rows(lines[1:], columns, "Properties" in spelled, where, first + 2, notes, frame)
    if "Lattice" not in spelled and "pbc" not in spelled:
        notes.add("no Lattice and no pbc: read as molecules in vacuum", frame)
    if columns is not None:
        spelled["Properties"] = ":".join(f"{name}:{kind}:{n}" for name, kind, n in columns)
    missing = _check_matrices(pairs, where)
    text = f"{n_atoms}\n{_respelled(header, spelled, missing)}\n" + "".join(
        text if text.endswith("\n") else text + "\n" for text in lines[1:]
    )
    try:
        return next(read_xyz(io.StringIO(text), index=0))
    except Exception as error:  # ASE's parser raises anything, from KeyError to AssertionError
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RaceError(f"not readable ({what})", where=f"{where}, from line {first}") from error


def _pairs(header: str, where: str) -> dict[str, str]:
    """key -> value as written, quotes included."""
    values: dict[str, list[str]] = defaultdict(list)
    for match in PAIR.finditer(header):
        if match["key"] is not None:
            values[match["key"]].append(match["value"])
            if match["value"][:1] in ('"', "{", "[") and len(match["value"]) > 1:
                if match["value"][-1] not in ('"', "}", "]"):
                    raise RaceError(
                        f"{match['key']}: the quote is not closed",
                        where=where,
                        got=match["value"][:40],
                    )
        elif match[0].endswith(":") and is_label(match[0][:-1]):
            raise RaceError(
                f"{match[0]} is no entry of the header",
                where=where,
                expected=f"{match[0][:-1]}=VALUE",
                got=header[match.start() : match.start() + 40],
            )
    for key, given in values.items():
        if len({_bare(value) for value in given}) > 1:
            raise RaceError(
                f"{key} stands twice in the header, with different values",
                where=where,
                got=" and ".join(given)[:80],
            )
    return {key: given[0] for key, given in values.items()}


def _bare(value: str) -> str:
    return " ".join(value.strip("\"'{}[]").split())


def _header_words(pairs: dict[str, str], where: str, notes: Notes, frame: int) -> dict[str, str]:
    """The standard's words of a header -> their values, a pbc as three letters.

    Raises:
        RaceError: a word that seems to mean one of them, or a value that is none.
    """
    found: dict[str, tuple[str, str]] = {}
    for key, value in pairs.items():
        word = HEADER.get(key.lower())
        if word is None:
            continue
        if word in found and _bare(found[word][1]).lower() != _bare(value).lower():
            raise RaceError(
                f"{found[word][0]} and {key} differ",
                where=where,
                got=f"{found[word][1]} and {value}",
                remedy=f"keep one {word}=",
            )
        if key != word:
            notes.add(f"{key}= is read as {word}=", frame)
        found[word] = (key, value)
    spelled = {word: _bare(value) for word, (_, value) in found.items()}
    if "Lattice" in spelled:
        spelled["Lattice"] = _lattice(spelled["Lattice"], where)
    if "pbc" in spelled:
        pbc = parse_pbc(spelled["pbc"])
        if pbc is None:
            raise RaceError(
                f"{found['pbc'][0]} is not understood",
                where=where,
                expected="T or F for each of the three cell vectors",
                got=found["pbc"][1],
            )
        spelled["pbc"] = " ".join("T" if periodic else "F" for periodic in pbc)
    for key, value in pairs.items():
        if key.lower() not in HEADER and (word := _meant(key, value, spelled)):
            raise RaceError(
                f"{key}= is no word of extended xyz",
                where=where,
                got=f"{key}={value[:40]}",
                remedy=f"did you mean {word}=? rename it, or delete it if it means nothing",
            )
    return spelled


def _lattice(value: str, where: str) -> str:
    words = value.replace(",", " ").split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 9:
        raise RaceError(
            "Lattice is not understood",
            where=where,
            expected='nine numbers, "ax ay az bx by bz cx cy cz"',
            got=value[:60],
        )
    return " ".join(words)


def parse_pbc(value: str) -> list[bool] | None:
    """Periodicity of three cell vectors from what codes write: "T T F", "1 1 0", "p p f",
    "xy", TTF, none, ...; None if it is not understood.
    """
    words = re.findall(r"[^\s,;\[\](){}\"']+", value.lower())
    if len(words) == 1 and words[0] not in TRUE | FALSE:
        word = words[0]
        if len(word) == len(set(word)) and set(word) <= set("xyz"):
            return [axis in word for axis in "xyz"]
        words = list(word)
        if len(words) != 3 or not {*words} <= set("tf10psm"):
            return None
    if len(words) == 1:
        words *= 3
    if len(words) != 3 or not all(word in TRUE | FALSE for word in words):
        return None
    return [word in TRUE for word in words]


def _meant(key: str, value: str, spelled: dict[str, str]) -> str | None:
    """The absent word of the standard that a key seems to mean."""
    name = key.lower()
    numbers = re.findall(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?", _bare(value))
    if "Lattice" not in spelled and name in CELL_WORDS and len(numbers) in (3, 6, 9):
        return "Lattice"
    if name in PBC_WORDS and (meant := parse_pbc(_bare(value))) is not None:
        if "pbc" in spelled:
            taken = [word == "T" for word in spelled["pbc"].split()]
        else:
            taken = ["Lattice" in spelled] * 3
        return None if meant == taken else "pbc"
    absent = {word.lower(): word for word in HEADER.values() if word not in spelled}
    # To a word as short as pbc only its own letters are near: PCB, bpc.
    if "pbc" in absent and sorted(name) == sorted("pbc"):
        return "pbc"
    near = difflib.get_close_matches(name, absent.keys() - {"pbc"}, n=1, cutoff=0.8)
    return absent[near[0]] if near else None


Columns = list[tuple[str, str, int]]


def _columns(properties: str | None, where: str, notes: Notes, frame: int) -> Columns | None:
    """(name, type, width) of each column; None if the header does not say."""
    if properties is None:
        return None
    fields = properties.split(":")
    kinds, widths = [kind.upper() for kind in fields[1::3]], fields[2::3]
    if (
        len(fields) % 3
        or not {*kinds} <= {*"RISL"}
        or not all(width.isdigit() and int(width) for width in widths)
    ):
        raise RaceError(
            "Properties is not understood",
            where=where,
            expected="NAME:TYPE:COLUMNS, TYPE one of R I S L, e.g. species:S:1:pos:R:3",
            got=properties[:80],
        )
    columns = []
    for name, kind, width in zip(fields[::3], kinds, map(int, widths), strict=True):
        standard = COLUMNS.get(name.lower(), name)
        if standard != name:
            notes.add(f"column {name} is read as {standard}", frame)
        columns.append((standard, kind, width))
    names = [name for name, *_ in columns]
    if len(set(names)) < len(names):
        raise RaceError("Properties names a column twice", where=where, got=properties[:80])
    width_of = {name: width for name, _, width in columns}
    for role, accepted, width in (
        ("elements", ("species", "symbols", "Z", "numbers"), 1),
        ("positions", ("pos", "positions"), 3),
    ):
        if not any(width_of.get(name) == width for name in accepted):
            raise RaceError(
                f"Properties names no {role}",
                where=where,
                expected=f"a column {accepted[0]}, {width} wide",
                got=properties[:80],
            )
    return columns


def _check_rows(
    rows: list[str],
    columns: Columns | None,
    declared: bool,
    where: str,
    first: int,
    notes: Notes,
    frame: int,
) -> None:
    """Every row as wide as the header says, and elements that exist."""
    columns = columns or [("species", "S", 1), ("pos", "R", 3)]
    width = sum(n for *_, n in columns)
    place = 0
    for name, _, n in columns:
        if name in ("species", "symbols"):
            break
        place += n
    else:
        place = -1
    respelled = set()
    for k, row in enumerate(rows):
        words = row.split()
        if len(words) != width:
            if len(words) > width and not declared:
                notes.add("no Properties: columns after x y z are not read", frame)
            else:
                raise RaceError(
                    "a row has too few columns" if len(words) < width else "a row is too wide",
                    where=f"{where}, line {first + k}",
                    expected=f"{width}, as "
                    + ("Properties says" if declared else "plain xyz has: element x y z"),
                    got=f"{len(words)}: {row.strip()[:60]!r}",
                )
        if place >= 0 and words[place].capitalize() not in atomic_numbers:
            raise RaceError(
                "not a chemical element",
                where=f"{where}, line {first + k}",
                got=repr(words[place]),
                remedy="give element symbols, or name a column of atomic numbers Z:I:1",
            )
        if place >= 0 and not words[place].istitle():
            respelled.add(words[place])
    for word in sorted(respelled):  # an alpha carbon is no calcium
        notes.add(f"{word} is read as {word.capitalize()}", frame)


def _check_matrices(pairs: dict[str, str], where: str) -> set[str]:
    """The keys `stress` and `virial`, of which ASE takes nine numbers only: those that hold
    no number (nan, none), and so are missing.
    """
    missing = set()
    for key in {"stress", "virial"} & pairs.keys():
        words = _bare(pairs[key]).replace(",", " ").split()
        if all(word.lower() in ("nan", "none", "null") for word in words):
            missing.add(key)
        elif len(words) != 9:
            raise RaceError(
                f"{key} has {len(words)} numbers",
                where=where,
                expected="nine, row by row",
                got=_bare(pairs[key])[:80],
                remedy="codes differ in the order of six (xx yy zz, then yz xz xy or xy yz zx): "
                "write the matrix, or name another key",
            )
        else:
            try:
                matrix = np.array(words, dtype=np.float64)
            except ValueError:
                continue  # which `normalize` refuses
            if np.isfinite(matrix).all():
                six_stress(matrix, key, where)  # ASE would keep one of two unlike halves
    return missing


def _respelled(header: str, spelled: dict[str, str], missing: set[str]) -> str:
    """The header with the standard's words as `spelled` has them, without those `missing`."""

    def drop(match: re.Match[str]) -> str:
        key = match["key"] or ""
        return "" if key.lower() in HEADER or key in missing else match[0]

    rest = PAIR.sub(drop, header)
    words = " ".join(f'{word}="{value}"' for word, value in spelled.items())
    # A comment line without words stays one
    return f"{words} {rest.strip()}".strip() if spelled or missing else header
