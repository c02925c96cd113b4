"""Compile, once for an installation, the loops that its first extraction and every sandbox would otherwise wait for.

A small recording is simulated and extracted, which also shows that the installation works.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import sensorium_pipeline.models.sampling  # noqa: F401 (compiled as it is imported)


def main() -> None:
    """Simulate a plane and extract it."""
    sensorium = Path(sys.executable).with_name("sensorium")
    with TemporaryDirectory() as scratch:
        simulate = ["simulate-recording", f"{scratch}/raw", "--planes", "1", "--neurons", "5", "--size", "64", "--images", "10"]
        for command in (simulate, ["extract", f"{scratch}/raw/scans", f"{scratch}/extracted"]):
            done = subprocess.run([sensorium, *command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"The installation does not work: sensorium {command[0]} ended with\n{done.stderr}")


if __name__ == "__main__":
    main()
