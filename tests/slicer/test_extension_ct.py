"""The whole extension against the built server on real CT: fetched, drawn, edited by Slicer's own code, submitted, and the same on the server."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

import nibabel
import numpy
import pytest
import requests
import slicer
import slicer.util

from extension_panel import Module
from extension_views import SliceView, can_draw, compose, ras_of
from serving import PROGRAM, ROOT

NAMES = ("brainstem", "spinal_cord", "parotid_right", "parotid_left", "esophagus", "larynx", "mandible")
CASES = ("kbp_004", "kbp_013")


def data() -> pathlib.Path:
    return pathlib.Path(os.environ.get("FEWLABEL_SHARED", ROOT.parent / "shared")) / "data/ct/hn_oar"


@contextlib.contextmanager
def serving(folder: pathlib.Path) -> Iterator[str]:
    studies = folder / "studies"
    studies.mkdir()
    for case in CASES:
        shutil.copy(data() / f"imagesTr/{case}.nii.gz", studies)
    command = [PROGRAM, "serve", "--studies", studies, "--port", "0", "--labels", ",".join(NAMES)]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        ready = process.stdout.readline() if process.stdout else ""
        address = re.search(r"http://[^ ,]+", ready)
        assert address, (folder / "server.log").read_text()
        yield address[0]
    finally:
        process.kill()
        process.wait()


def close_to(pixels: numpy.ndarray, color: tuple[int, ...]) -> numpy.ndarray:
    """Where outlines have the colour of a segment."""
    return (numpy.abs(pixels.astype(int) - color) < 40).all(axis=-1)


def views_show_what_was_drawn(module: Module, at: tuple[int, int, int], folder: pathlib.Path) -> None:
    """Slicer's own views: the segmentation in the colours of the project, and a proposal beside it as outlines only."""
    mandible = module.session.schema.of_name("mandible")
    assert mandible
    views = [SliceView(name, orientation, module.scene.volume_node, (380, 300), 1.8) for name, orientation in (("Red", "Axial"), ("Green", "Coronal"))]
    for view in views:
        view.look_at(ras_of(module, at))
    axial = views[0].pixels()
    assert close_to(axial, mandible.color).sum() > 50
    compose(module, views, folder / "editing.png")

    display = module.scene.segmentation_node.GetDisplayNode()
    display.SetVisibility(False)
    assert not close_to(views[0].pixels(), mandible.color).any()
    drawing = module.scene.copy()
    module.scene.offer(drawing.flat(module.session.schema).voxels, drawing.ijk_to_ras, module.session.schema)
    outlines = views[0].pixels()
    changed = (outlines != axial).any(axis=-1)
    assert close_to(outlines, mandible.color).sum() > 50 and changed.sum() > 50, "the inside is not filled"
    module.scene.drop_offer()
    display.SetVisibility(True)
    assert numpy.array_equal(views[0].pixels(), axial)
    for view in views:
        view.close()


@pytest.mark.skipif(not data().is_dir(), reason=f"there is no real CT at {data()}")
def test_real_ct(module: Module, tmp_path: pathlib.Path) -> None:
    with serving(tmp_path) as url:
        module.connect(url)
        # The model was never trained, so nothing is proposed.
        module.click("nextButton")
        case = module.session.case
        assert case, module.said()
        scan = nibabel.load(data() / f"imagesTr/{case.image}.nii.gz")
        assert numpy.array_equal(slicer.util.arrayFromVolume(module.scene.volume_node), numpy.asarray(scan.dataobj).T)
        assert numpy.allclose(module.scene.copy().ijk_to_ras, scan.affine, atol=1e-3)

        label = numpy.asarray(nibabel.load(data() / f"labelsTr/{case.image}.nii.gz").dataobj).T.astype(numpy.uint8)
        for value, name in enumerate(NAMES, 1):
            module.draw(name, label == value)
        present = [name for value, name in enumerate(NAMES, 1) if (label == value).any()]
        # A stroke over the mandible's middle, into whatever lies there.
        at = tuple(int(numpy.median(index)) for index in numpy.nonzero(label == 7))
        stroke = tuple(slice(max(index - 3, 0), index + 4) for index in at)
        module.paint("mandible", stroke)
        label[stroke] = 7
        assert module.ui.submitButton.enabled
        if can_draw():
            views_show_what_was_drawn(module, at, tmp_path)
        module.click("submitButton")
        if module.session.question:
            assert set(NAMES) - set(present), module.session.question
            module.answer("Submit")
        assert "is submitted" in module.said(), module.said()

        answer = requests.get(f"{url}/datastore/label", params={"label": case.image, "tag": "final"}, timeout=60)
        assert answer.status_code == 200
        path = tmp_path / "stored.nrrd"
        path.write_bytes(answer.content)
        stored = slicer.util.loadVolume(str(path), {"labelmap": True, "show": False})
        assert numpy.array_equal(slicer.util.arrayFromVolume(stored), label)
        history = requests.get(f"{url}/datastore/label/revisions", params={"image": case.image}, timeout=60).json()["revisions"]
        assert history[-1]["author"] == "ann" and history[-1]["annotated"] == list(NAMES)
        assert history[-1]["provenance"]["tool"] == "Fewlabel for 3D Slicer"
