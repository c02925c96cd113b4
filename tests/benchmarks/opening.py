"""How long it takes until the first frame of a recording of 100 000 pages can be read, beside tifffile and scanimage-tiff-reader.

    python tests/benchmarks/opening.py [--pages 100000] [--folder FOLDER]

Two files: one as ScanImage writes it (pages at one distance), and one whose pages lie at uneven distances, which every reader has to
walk through. Seconds of processor time, best of three; the peers count their pages, ours also checks that all are alike.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from sensorium_pipeline.recordings.scanimage import open_scanimage
from sensorium_pipeline.recordings.scanimage_writer import ScanImageWriter, WrittenField, fields_text, header_text
from sensorium_pipeline.recordings.tiff import read_page_table

FIELD = WrittenField(32, 32)


def write_scan(folder: Path, pages: int) -> Path:
    header = header_text(
        fields=[FIELD],
        channels=[1],
        planes=1,
        frames_per_volume=1,
        depths=[100],
        volume_rate=30.0,
        line_period=1e-4,
        bidirectional=True,
        pixel_size=1.0,
        volumes=pages,
    )
    with ScanImageWriter(folder, "scan", (32, 32), header, fields_text([FIELD], 1.0), pages_per_file=pages) as writer:
        for start in range(0, pages, 1000):
            stamps = np.arange(start, min(start + 1000, pages)) / 30.0
            writer.write(np.zeros((len(stamps), 32, 32), np.int16), stamps)
    return folder / "scan_00001.tif"


def write_uneven(folder: Path, pages: int) -> Path:
    path = folder / "uneven.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number in range(pages):
            text = "x" * (number % 97)
            file.write(np.zeros((16, 16), np.uint16), metadata=None, description=text, photometric="minisblack", contiguous=False)
    return path


def best(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def count_with_tifffile(path: Path) -> int:
    with tifffile.TiffFile(path) as file:
        return len(file.pages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the files are written; a temporary folder if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        scan, uneven = write_scan(Path(folder), options.pages), write_uneven(Path(folder), options.pages)
        readers: dict[str, Callable[[Path], object]] = {
            "ours": lambda path: open_scanimage([path]) if path == scan else read_page_table(path),
            "tifffile": count_with_tifffile,
        }
        try:
            from ScanImageTiffReader import ScanImageTiffReader

            readers["scanimage-tiff-reader"] = lambda path: ScanImageTiffReader(str(path)).shape()
        except ImportError:
            print("scanimage-tiff-reader is not installed")
        for path, what in ((scan, "as ScanImage writes it"), (uneven, "pages at uneven distances")):
            print(f"{options.pages} pages, {what}")
            seconds = {name: best(lambda read=read, path=path: read(path)) for name, read in readers.items()}
            for name, value in seconds.items():
                print(f"  {name:22s} {1000 * value:8.1f} ms   {value / seconds['ours']:6.1f} x ours")


if __name__ == "__main__":
    main()
