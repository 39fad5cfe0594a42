"""Where and of what figures were measured: every results file and page says it."""

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from race.evaluate.cost import cpuinfo

ROOT = Path(__file__).parents[1]
# (vendor, family, models) -> name, and how wide AVX-512 is executed, where it is known
KNOWN = (
    ("AuthenticAMD", 23, range(0x00, 0x30), "Zen", ""),
    ("AuthenticAMD", 23, range(0x30, 0x100), "Zen 2", ""),
    ("AuthenticAMD", 25, range(0x00, 0x10), "Zen 3", ""),
    ("AuthenticAMD", 25, range(0x20, 0x60), "Zen 3", ""),
    ("AuthenticAMD", 25, range(0x10, 0x20), "Zen 4", "in halves of 256 bits"),
    ("AuthenticAMD", 25, range(0x60, 0xB0), "Zen 4", "in halves of 256 bits"),
    ("AuthenticAMD", 26, range(0x00, 0x20), "Zen 5", "512 bits wide"),
)
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")


def processor() -> str:
    """Name, family, model, vector instructions and number of cores."""
    fields = cpuinfo()
    vendor, family, model = (fields.get(k, "") for k in ("vendor_id", "cpu family", "model"))
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = set((fields.get("flags") or fields.get("Features", "")).split())
    features = [feature for feature in FEATURES if feature in flags]
    about = [f"family {family} model {model}"] if family else []
    for known_vendor, known_family, models, core, width in KNOWN:
        if vendor == known_vendor and family == str(known_family) and int(model) in models:
            about.append(core)
            if width and "avx512f" in features:
                features[features.index("avx512f")] = f"avx512f ({width})"
    about += [" ".join(features)] if features else []
    return f"{name} ({', '.join(about)}), {os.cpu_count()} cores"


def commit() -> str:
    """Of the working tree, with a + if it differs; "" without git."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def stamp() -> dict[str, str]:
    """The fields that every record of a run shares."""
    from importlib.metadata import version

    versions = {"race": version("race-potential"), "torch": version("torch"), "commit": commit()}
    return {"machine": processor(), "date": now(), "versions": versions}
