"""The library of the unmodified MONAILabelReviewer, from the wheel monailabel 0.8.5, against the built server."""

from __future__ import annotations

import importlib.metadata
import pathlib
import sys
import types
from collections.abc import Iterator

import nibabel
import numpy
import pytest

from serving import SPACING_MM, STUDIES, Server, running

META = {"status": "approved", "level": "easy", "approvedBy": "anna", "comment": "fine", "editTime": "2026-01-02 03:04:05"}


@pytest.fixture(scope="module")
def library() -> types.ModuleType:
    for file in importlib.metadata.files("monailabel") or []:
        if file.as_posix().endswith("MONAILabelReviewerLib/__init__.py"):
            sys.path.insert(0, str(pathlib.Path(str(file.locate())).resolve().parents[1]))
            import MONAILabelReviewerLib

            return MONAILabelReviewerLib
    raise FileNotFoundError("the installed monailabel carries no Reviewer")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("reviewer")) as server:
        yield server


def write_nrrd(path: pathlib.Path, label: numpy.ndarray) -> None:
    """As Slicer writes it, on the grid of the studies."""
    x, y, z = SPACING_MM
    path.write_bytes(
        b"NRRD0004\ntype: unsigned char\ndimension: 3\nspace: left-posterior-superior\n"
        + f"sizes: {' '.join(map(str, label.shape))}\n".encode()
        + f"space directions: (-{x},0,0) (0,-{y},0) (0,0,{z})\n".encode()
        + b"kinds: domain domain domain\nencoding: raw\nspace origin: (70,65,-60)\n\n"
        + label.tobytes(order="F")
    )


def test_review(library: types.ModuleType, site: Server, tmp_path: pathlib.Path) -> None:
    """An annotator submits, a reviewer approves, corrects in a new version, and deletes that."""
    import requests

    controller = library.ImageDataController()
    assert controller.connectToMonaiServer(site.url)
    assert controller.initMetaDataProcessing()
    assert controller.getStatistics().getIdxTotalSegmented() == f"0/{len(STUDIES)}"

    image = STUDIES[0]
    info = '{"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}], "client_id": "bert"}'
    with open(site.label(0), "rb") as label:
        answer = requests.put(
            f"{site.url}/datastore/label", params={"image": image}, data={"params": info}, files={"label": label}, timeout=60
        )
    assert answer.status_code == 200, answer.text
    assert controller.initMetaDataProcessing()
    assert controller.getClientIds() == ["bert"]
    assert controller.getStatistics().getIdxTotalSegmented() == f"1/{len(STUDIES)}"

    assert controller.updateLabelInfo(image, "final", {"segmentationMeta": META})
    assert controller.initMetaDataProcessing()
    assert controller.getReviewers() == ["anna"]
    assert controller.getStatistics().getIdxTotalApproved() == f"1/{len(STUDIES)}"
    reviewed = controller.getMapIdToImageData()[image]
    assert reviewed.isApproved()
    assert reviewed.getComment() == "fine"

    voxels = nibabel.load(site.label(0)).get_fdata().astype(numpy.uint8)
    path = tmp_path / "corrected.nrrd"
    write_nrrd(path, voxels)
    for number in (1, 2):
        controller.saveLabelInMonaiServer(image, str(path), f"version_{number}", {"segmentationMeta": META})
    assert list(controller.getMapIdToImageData()[image].getVersionNames()) == ["final", "version_1", "version_2"]
    assert controller.getMapIdToImageData()[image].getLatestVersionTag() == "version_2"
    assert controller.reuqestSegmentation(image, "version_2").content == path.read_bytes()
    assert controller.reuqestSegmentation(image, "").content == pathlib.Path(site.label(0)).read_bytes()
    assert controller.deleteLabelByVersionTag(image, "version_2")
    assert controller.getMapIdToImageData()[image].getLatestVersionTag() == "version_1"
    assert requests.get(controller.getDicomDownloadUri(STUDIES[1]), timeout=60).status_code == 200

    assert not controller.updateLabelInfo("unknown", "final", {"segmentationMeta": META})
    assert controller.reuqestSegmentation("unknown", "final") is None
