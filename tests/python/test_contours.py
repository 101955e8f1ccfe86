"""Contours on voxels of 1 mm: a label becomes an RT Structure Set on a DICOMweb server, and labels again, here and in plastimatch.

Dice of every structure is at least 0.99. Outlines run between the pixels, so that a reader that goes by the centres of
pixels finds every voxel; one that rounds the points first (rt-utils, platipy) does not, whatever it reads.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable

import nibabel
import numpy
import pytest
import SimpleITK
from monailabel.client.client import MONAILabelClient
from scipy import ndimage

from pacs import Archive, fewlabel, serving, write_series
from serving import ROOT

REAL = pathlib.Path(os.environ.get("FEWLABEL_SHARED", ROOT.parent / "shared")) / "data/ct"
GOAL = 0.99
SHAPE = (60, 150, 170)


def phantom() -> tuple[numpy.ndarray, list[str]]:
    """A lobed organ, a winding vessel, a thin tube, and a hollow organ with something in its middle."""
    z, y, x = numpy.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]].astype(float)
    labels = numpy.zeros(SHAPE, numpy.uint8)
    lobes = 0.15 * numpy.sin(x / 5) * numpy.cos(y / 7)
    labels[((z - 30) / 24) ** 2 + ((y - 60) / 40) ** 2 + ((x - 60) / 45) ** 2 + lobes < 1] = 1
    labels[(y - 115 - 10 * numpy.sin(z / 9)) ** 2 + (x - 120) ** 2 < 81] = 2
    from_middle = numpy.sqrt((y - 40) ** 2 + (x - 130) ** 2 + (1.2 * (z - 30)) ** 2)
    labels[(from_middle < 24) & (from_middle > 14)] = 3
    labels[from_middle < 5] = 4
    labels[(y - 75) ** 2 + (x - 12) ** 2 < 9] = 5
    return labels, ["liver", "aorta", "stomach", "tumour", "esophagus"]


def patient() -> tuple[numpy.ndarray, list[str]]:
    """66 mm of a labelled abdomen of 3 mm, each structure smoothed and sampled at 1 mm."""
    names = json.loads((REAL / "abdomen/dataset.json").read_text())["labels"]
    image = nibabel.as_closest_canonical(nibabel.load(REAL / "abdomen/labelsTr/ts_a.nii.gz"))
    coarse = numpy.asarray(image.dataobj).astype(int).T[80:102]
    best = numpy.full([3 * n for n in coarse.shape], 0.5, numpy.float32)
    labels = numpy.zeros(best.shape, numpy.uint8)
    for value in range(1, len(names)):
        soft = ndimage.gaussian_filter((coarse == value).astype(numpy.float32), 0.7)
        inside = ndimage.zoom(soft, 3, order=1, grid_mode=True, mode="nearest")
        labels[inside > best] = value
        numpy.maximum(best, inside, out=best)
    return labels, [names[str(value)] for value in range(1, len(names))]


CASES = {"phantom": phantom, "patient": patient}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A label, the contours that it became on a DICOMweb server, and what became of these here."""
    if request.param == "patient" and not REAL.is_dir():
        pytest.skip(f"there is no {REAL}")
    folder = tmp_path_factory.mktemp(request.param)
    labels, names = CASES[request.param]()
    series, contours, again = folder / "series", folder / "contours.dcm", folder / "again.nrrd"
    uid = write_series(series, numpy.zeros(labels.shape, numpy.int16), (1.0, 1.0, 1.0))
    archive = Archive(series)
    options = ["--labels", ",".join(names), "--store-as", "rtstruct", "--poll-s", "1"]
    with serving(archive) as pacs, fewlabel(folder, pacs, *options) as (url, log):
        affine = numpy.diag((-1.0, -1.0, 1.0, 1.0))
        affine[:3, 3] = (70, 80, -60)
        drawn = folder / "drawn.nii.gz"
        nibabel.save(nibabel.Nifti1Image(labels.T, affine), drawn)
        client = MONAILabelClient(url, tmpdir=str(folder), client_id="contours")
        client.save_label(uid, str(drawn), "final", {})
        for _ in range(600):
            if archive.stored:
                break
            time.sleep(0.1)
        assert archive.stored, log.read_text()
        contours.write_bytes(archive.stored[0])
        client.save_label(uid, str(contours), "again", {})
        with urllib.request.urlopen(f"{url}/datastore/label/map?image={uid}&tag=again", timeout=60) as answer:
            again.write_bytes(answer.read())
    return {"labels": labels, "names": names, "series": series, "contours": contours, "again": again}


def test_read_here(case: dict) -> None:
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case["again"])))
    compare("here", case, lambda value: found == value)


@pytest.mark.skipif(shutil.which("plastimatch") is None, reason="plastimatch is not installed (Debian: plastimatch)")
def test_read_by_plastimatch(case: dict, tmp_path: pathlib.Path) -> None:
    command = ["plastimatch", "convert", "--input", case["contours"], "--referenced-ct", case["series"]]
    subprocess.run([*command, "--output-prefix", tmp_path, "--prefix-format", "nii.gz"], check=True, capture_output=True)

    def found(value: int) -> numpy.ndarray:
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / f"{case['names'][value - 1]}.nii.gz"))) > 0

    compare("plastimatch", case, found)


def compare(who: str, case: dict, found: Callable[[int], numpy.ndarray]) -> None:
    for value, name in enumerate(case["names"], 1):
        expected = case["labels"] == value
        assert expected.any(), name
        inside = found(value)
        dice = 2 * (inside & expected).sum() / (inside.sum() + expected.sum())
        print(f"{who}: {name}, {expected.sum()} voxels, Dice {dice:.5f}")
        assert dice >= GOAL, name
