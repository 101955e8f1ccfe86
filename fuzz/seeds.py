"""Seeds for the fuzz targets, from the test data of this project.

    python3 fuzz/seeds.py ../shared/data/dicom

Small files of every kind go to `fuzz/corpus/TARGET`, whole small series as one input for `series`. They hold real
images: the folder is ignored by git and stays on this machine.
"""

from __future__ import annotations

import argparse
import pathlib

HERE = pathlib.Path(__file__).parent
SEPARATOR = b"\n~~file~~\n"
"""As in `src/lib.rs`."""
LARGEST_FILE = 20_000
LARGEST_LABEL = 60_000
LARGEST_SERIES = 40_000
"""Bytes. Longer inputs are slow, and say nothing more."""
FILES = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, help="the folder with MANIFEST.md")
    data: pathlib.Path = parser.parse_args().data
    for target in ("preflight", "series", "segmentation"):
        (HERE / "corpus" / target).mkdir(parents=True, exist_ok=True)
    for folder in sorted(path for path in data.rglob("*") if path.is_dir()):
        name = "_".join(folder.relative_to(data).parts)
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        small = [path for path in files if path.stat().st_size <= LARGEST_FILE]
        # Some files of a series say what the others say.
        for path in {*small[:1], *small[len(small) // 2 :][:1], *small[-1:]}:
            (HERE / "corpus/preflight" / f"{name}_{path.name}").write_bytes(path.read_bytes())
        for path in files:
            if path.stat().st_size <= LARGEST_LABEL and is_label(path):
                (HERE / "corpus/segmentation" / f"{name}_{path.name}").write_bytes(path.read_bytes())
        series, size = [], 0
        for path in small:
            size += path.stat().st_size
            if len(series) == FILES or size > LARGEST_SERIES:
                break
            series.append(path.read_bytes())
        if series:
            (HERE / "corpus" / "series" / name).write_bytes(SEPARATOR.join(series))
    for target in ("preflight", "series", "segmentation"):
        count = len(list((HERE / "corpus" / target).iterdir()))
        print(f"{target}: {count} seeds")


def is_label(path: pathlib.Path) -> bool:
    """Whether a file names the class of a Segmentation object or an RT Structure Set."""
    start = path.read_bytes()[:4096]
    return any(uid in start for uid in (b"5.1.4.1.1.66.4", b"5.1.4.1.1.66.7", b"5.1.4.1.1.481.3"))


if __name__ == "__main__":
    main()
