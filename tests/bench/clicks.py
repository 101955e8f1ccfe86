"""What clicks are worth: Dice on labelled scans after 0, 1, 2 ... clicks, each on the largest mistake that is left.

    tests/.venv/bin/python tests/bench/clicks.py --binary target/release/fewlabel --model MODEL_DIR \
        --data ../shared/data/ct/hn_oar --cases kbp_066,kbp_083 --clicks 1,2,4,8,16

MODEL_DIR is a model of `fewlabel train --clicks`. A click is the voxel deepest (in mm) in the largest connected mistake of any
structure or the background, as a reader who looks for the worst place would choose it; its class is the true one. Printed
for every number of clicks: mean Dice over structures and cases, and how many of the clicked voxels have the class that was
clicked.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import tempfile

import nibabel
import numpy
from scipy import ndimage

Click = tuple[int, tuple[int, int, int]]


def labels_of(path: pathlib.Path) -> tuple[numpy.ndarray, tuple[float, ...]]:
    """Label values `[i, j, k]` and the size of a voxel in mm."""
    image = nibabel.load(path)
    return numpy.asarray(image.dataobj).astype(numpy.uint8), image.header.get_zooms()[:3]


def worst(found: numpy.ndarray, truth: numpy.ndarray, spacing_mm: tuple[float, ...], classes: int) -> Click | None:
    """Class and voxel of the next click; none when everything is right."""
    best: tuple[int, Click] | None = None
    for value in range(classes):
        missed = (truth == value) & (found != value)
        parts, count = ndimage.label(missed)
        if count == 0:
            continue
        sizes = numpy.bincount(parts.ravel())[1:]
        if best is None or sizes.max() > best[0]:
            part = parts == sizes.argmax() + 1
            depth = ndimage.distance_transform_edt(numpy.pad(part, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
            at = numpy.unravel_index(depth.argmax(), depth.shape)
            best = (int(sizes.max()), (value, (int(at[0]), int(at[1]), int(at[2]))))
    return best and best[1]


def dice(found: numpy.ndarray, truth: numpy.ndarray, value: int) -> float | None:
    """Dice of a structure; none when the truth has none of it."""
    one, other = found == value, truth == value
    return 2 * (one & other).sum() / (one.sum() + other.sum()) if other.any() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--cases", required=True, help="names of cases that the model has not learned from, with commas")
    parser.add_argument("--clicks", default="1,2,4,8,16")
    args = parser.parse_args()
    known = json.loads((args.data / "dataset.json").read_text())["labels"]
    names = [name for _, name in sorted((int(value), name) for value, name in known.items())]
    shown = [0, *map(int, args.clicks.split(","))]
    means: dict[int, list[float]] = {count: [] for count in shown}
    followed: dict[int, list[bool]] = {count: [] for count in shown}
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "found.nii.gz"
        for case in args.cases.split(","):
            truth, spacing_mm = labels_of(args.data / "labelsTr" / f"{case}.nii.gz")
            clicks: list[Click] = []
            for count in range(shown[-1] + 1):
                said = [f"--click={'background' if value == 0 else names[value]}={i},{j},{k}" for value, (i, j, k) in clicks]
                image = args.data / "imagesTr" / f"{case}.nii.gz"
                subprocess.run([args.binary, "infer", "--model", args.model, image, "-o", out, "--json", *said], check=True, capture_output=True)
                found, _ = labels_of(out)
                out.unlink()
                if count in shown:
                    values = [dice(found, truth, value) for value in range(1, len(names))]
                    there = [value for value in values if value is not None]
                    means[count].append(sum(there) / len(there))
                    followed[count] += [bool(found[at] == value) for value, at in clicks]
                click = worst(found, truth, spacing_mm, len(names))
                if click is None:
                    break
                clicks.append(click)
    print("| clicks | mean Dice | clicked voxels as clicked |\n|---|---|---|")
    for count in shown:
        said = followed[count]
        print(f"| {count} | {sum(means[count]) / len(means[count]):.3f} | {sum(said)} of {len(said)} |")


if __name__ == "__main__":
    main()
