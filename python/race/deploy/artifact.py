"""The artifact NAME.race.pt: a TorchScript archive with metadata.json, selftest.json and a
trailer that seals it.

The trailer is the ZIP archive comment `race-artifact/N sha256:<64 hex>`, the digest being
that of every byte before those 64 digits. Verification is librace's
(cpp/include/race/artifact.h), the same for Python and LAMMPS.
"""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import race._race
from race.errors import RaceError

FORMAT_VERSION = 4
TRAILER = f"race-artifact/{FORMAT_VERSION} sha256:"
_DIGITS = 64


def seal(archive: bytes) -> bytes:
    """A zip archive without comment -> the same with the trailer."""
    if archive[-22:-18] != b"PK\x05\x06" or archive[-2:] != b"\0\0":
        raise ValueError("expected a zip archive without a comment")
    body = archive[:-2] + (len(TRAILER) + _DIGITS).to_bytes(2, "little") + TRAILER.encode()
    return body + hashlib.sha256(body).hexdigest().encode()


def read_metadata(path: str | Path) -> tuple[dict[str, Any], str]:
    """Verifies an artifact and reads metadata.json, without loading the model.

    Returns:
        The metadata (race.deploy.export.metadata_of lists the fields) and the artifact's sha256.

    Raises:
        RaceError: not an artifact, truncated, damaged, or of another format version.
    """
    digest = race._race.read_artifact(str(path)).sha256
    with zipfile.ZipFile(path) as archive:
        name = next(
            (name for name in archive.namelist() if name.endswith("/extra/metadata.json")), None
        )
        if name is None:
            raise RaceError(
                "no metadata.json in the artifact", where=path, remedy="export the model again"
            )
        return json.loads(archive.read(name)), digest


def to_json(data: Any) -> str:
    """JSON as librace reads it: UTF-8, no NaN."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False)
