"""Test sets at 300, 600 and 1200 K: the frames drawn at random, without those that active
learning chose as difficult.
"""

import sys
from pathlib import Path

import ase.io

data, out = Path(sys.argv[1]), Path(sys.argv[2])
for kelvin, name in (
    (300, "mixedT_not_in_train"),
    (600, "mixedT_plus_AL"),
    (1200, "mixedT_plus_AL"),
):
    frames = ase.io.read(data / f"test{kelvin}K_{name}.extxyz", index=":")
    random = [
        frame
        for frame in frames
        if frame.info.get("random_selected", "mixedT" in frame.info["source"])
    ]
    ase.io.write(out / f"{kelvin}K.extxyz", random)
    print(f"{kelvin} K: {len(random)} of {len(frames)} frames were drawn at random")
