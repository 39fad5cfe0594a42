"""On PYTHONPATH, puts the sanitized build (RACE_SANITIZED, a folder with _race*.so and
raceplugin.so) in the place of the installed one.
"""

import importlib.util
import os
import sys
from pathlib import Path

import torch  # noqa: F401  its libraries come first

path = next(Path(os.environ["RACE_SANITIZED"]).glob("_race*.so"))
spec = importlib.util.spec_from_file_location("race._race", path)
sys.modules["race._race"] = module = importlib.util.module_from_spec(spec)
import race  # noqa: E402

race._race = module
spec.loader.exec_module(module)
