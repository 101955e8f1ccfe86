"""The built server with its real worker, on synthetic studies."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import nibabel
import numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get("FEWLABEL_PROGRAM", ROOT / "target/release/fewlabel"))
LABELS = ("liver", "spleen")
STUDIES = ("case_01", "case 02", "case.03")
SHAPE = (48, 40, 24)
SPACING_MM = (3.0, 3.5, 6.0)
ORIGIN_MM = (-70.0, -65.0, -60.0)
"""Of the first voxel, right, anterior, superior."""


@dataclass
class Server:
    """A running server and files that fit its studies."""

    url: str
    folder: pathlib.Path
    """Holds `extra.nii.gz`, a scan that is no study, and `label_N.nii.gz` for the scan of seed N."""
    pid: int = 0

    @property
    def extra(self) -> str:
        return str(self.folder / "extra.nii.gz")

    def label(self, seed: int) -> str:
        return str(self.folder / f"label_{seed}.nii.gz")


def torso(seed: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """A body with two organs: int16 HU and uint8 labels, axes right to left, back to front, feet to head."""
    rng = numpy.random.default_rng(seed)
    grid = numpy.stack(numpy.meshgrid(*(numpy.linspace(-1, 1, n) for n in SHAPE), indexing="ij"), axis=-1)

    def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> numpy.ndarray:
        moved = numpy.asarray(centre) + rng.uniform(-0.05, 0.05, 3)
        return (((grid - moved) / radii) ** 2).sum(axis=-1) < 1

    hu = numpy.full(SHAPE, -1000.0)
    label = numpy.zeros(SHAPE, numpy.uint8)
    hu[ellipsoid((0, 0, 0), (0.9, 0.8, 3))] = 30
    for value, (centre, density) in enumerate((((-0.4, 0.1, 0.1), 90), ((0.45, -0.2, 0.2), 120)), 1):
        organ = ellipsoid(centre, (0.3, 0.35, 0.5))
        hu[organ] = density
        label[organ] = value
    return (hu + rng.normal(0, 15, SHAPE)).round().astype(numpy.int16), label


def save(path: pathlib.Path, voxels: numpy.ndarray) -> None:
    affine = numpy.diag((*SPACING_MM, 1.0))
    affine[:3, 3] = ORIGIN_MM
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def make_studies(folder: pathlib.Path) -> pathlib.Path:
    """A studies folder in the folder, and beside it what `Server` says."""
    studies = folder / "studies"
    studies.mkdir()
    names = [studies / f"{name}.nii.gz" for name in STUDIES] + [folder / "extra.nii.gz"]
    for seed, path in enumerate(names):
        scan, label = torso(seed)
        save(path, scan)
        save(folder / f"label_{seed}.nii.gz", label)
    return studies


def click_model(folder: pathlib.Path, steps: int = 120) -> pathlib.Path:
    """A model that takes clicks and has learned a little, from scans that are no studies."""
    data, model = folder / "learning", folder / "clicks"
    for name in ("imagesTr", "labelsTr"):
        (data / name).mkdir(parents=True)
    labels = {"background": 0} | {name: value for value, name in enumerate(LABELS, 1)}
    (data / "dataset.json").write_text(json.dumps({"labels": labels}))
    for seed in range(10, 14):
        scan, label = torso(seed)
        save(data / "imagesTr" / f"{seed}.nii.gz", scan)
        save(data / "labelsTr" / f"{seed}.nii.gz", label)
    # The window of these organs, so that few steps are enough.
    options = ["--clicks", "--steps", str(steps), "--val-split", "0", "--hu-window=-100,200"]
    subprocess.run([PROGRAM, "train", "--data", data, "--out", model, *options], check=True, capture_output=True)
    return model


@contextlib.contextmanager
def running(folder: pathlib.Path, *options: str) -> Iterator[Server]:
    """The server on new studies in the folder, until the end of the block; it has to stop in good order."""
    studies = make_studies(folder)
    command = [PROGRAM, "serve", "--studies", studies, "--port", "0", "--labels", ",".join(LABELS), *options]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        ready = process.stdout.readline() if process.stdout else ""
        address = re.search(r"http://[^ ,]+", ready)
        assert address, (folder / "server.log").read_text()
        yield Server(address[0], folder, process.pid)
        process.terminate()
        assert process.wait(60) == 0, (folder / "server.log").read_text()
    finally:
        process.kill()
