"""Check what the wheel and the sdist in a folder hold; ``make dist-check`` runs it.

python scripts/check_dist.py dist
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sae_lens_hierarchical"


def main() -> None:
    """Exit with what is wrong, if anything."""
    (folder,) = map(Path, sys.argv[1:])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        in_sdist = {
            member.name.partition("/")[2]
            for member in archive.getmembers()
            if member.isfile()
        }
    unwanted = {
        name
        for name in in_sdist - sources
        if name.startswith((".ci", ".github", "docs/", "notebooks/"))
        or name.endswith((".png", ".csv", ".parquet"))
    }
    faults = {
        "not in the wheel": sources - in_wheel,
        "not of the package, but in the wheel": in_wheel - sources,
        "not in the sdist": sources - in_sdist,
        "too much in the sdist": unwanted,
    }
    lines = [f"{fault}: {sorted(names)}" for fault, names in faults.items() if names]
    if lines:
        sys.exit("\n".join(lines))
    print(f"{wheel.name} and {sdist.name} hold what they should")


if __name__ == "__main__":
    main()
