"""Clicks and strokes with the unmodified client of MONAI Label, on a model that learned to take clicks."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import nibabel
import numpy
import pytest
import requests
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from serving import LABELS, SHAPE, STUDIES, Server, click_model, running, save, torso

MODEL = "pct-net-s-clicks"
EDIT, GROW = f"{MODEL}-deepedit", f"{MODEL}-deepgrow"
STROKES = ("Histogram+GraphCut", "GMM+GraphCut")
SEGMENTS = [{"name": name, "id": k} for k, name in enumerate((*LABELS, "background_scribbles", "foreground_scribbles"), 1)]
NIFTI = {"result_extension": ".nii.gz", "result_dtype": "uint8"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("interactive")
    with running(folder, "--model", str(click_model(folder))) as server:
        yield server


@pytest.fixture
def user(site: Server, tmp_path: pathlib.Path) -> MONAILabelClient:
    return MONAILabelClient(site.url, tmpdir=str(tmp_path), client_id="python-test")


def voxels(mask: str) -> numpy.ndarray:
    """[i, j, k]"""
    return numpy.asarray(nibabel.load(mask).dataobj)


def middle(seed: int, value: int) -> list[int]:
    """A voxel of the organ near its centre."""
    return [round(part.mean()) for part in numpy.nonzero(torso(seed)[1] == value)]


def strokes(path: pathlib.Path, seed: int, value: int) -> str:
    """The middle of an organ as foreground, and the rim of the image as background."""
    marks = numpy.zeros(SHAPE, numpy.uint8)
    i, j, k = middle(seed, value)
    marks[i - 2 : i + 3, j - 2 : j + 3, k] = 4
    marks[:2] = 3
    marks[10:38, 18:22, 2] = 3
    save(path, marks)
    return str(path)


def dice(found: numpy.ndarray, truth: numpy.ndarray) -> float:
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def test_listed(user: MONAILabelClient) -> None:
    models = user.info()["models"]
    types = {name: entry["type"] for name, entry in models.items()}
    assert types == {MODEL: "segmentation", EDIT: "deepedit", GROW: "deepgrow"} | dict.fromkeys(STROKES, "scribbles")
    for entry in models.values():
        assert list(entry["labels"].items()) == [(name, k) for k, name in enumerate(LABELS, 1)]
        assert entry["dimension"] == 3
    for name, key, value in zip(STROKES, ("num_bins", "num_mixtures"), (64, 20), strict=True):
        config = models[name]["config"]
        assert (config["lamda"], config["sigma"], config[key]) == (1.0, 0.1, value)


def test_deepedit(user: MONAILabelClient) -> None:
    plain, _ = user.infer(MODEL, STUDIES[0], dict(NIFTI))
    points = {name: [middle(0, value)] for value, name in enumerate(LABELS, 1)}
    mask, params = user.infer(EDIT, STUDIES[0], NIFTI | points | {"label": LABELS[0]})
    assert params["label_names"] == dict(zip(LABELS, (1, 2), strict=True))
    found = voxels(mask)
    assert found.shape == SHAPE
    for value, name in enumerate(LABELS, 1):
        assert found[tuple(points[name][0])] == value
    again, params = user.infer(EDIT, STUDIES[0], NIFTI | points | {"label": LABELS[1]})
    assert numpy.array_equal(voxels(again), found)
    assert params["windows"] == 0, "the same points again ask the network nothing"
    none, _ = user.infer(EDIT, STUDIES[0], NIFTI | {name: [] for name in LABELS})
    assert numpy.array_equal(voxels(none), voxels(plain))


def test_deepgrow(user: MONAILabelClient, site: Server) -> None:
    point = middle(3, 1)
    session = user.create_session(site.extra)["session_id"]
    sent = NIFTI | {"label": LABELS[0], "foreground": [point], "background": []}
    mask, params = user.infer(GROW, "", sent, session_id=session)
    assert params["label_names"] == {LABELS[0]: 1}
    found = voxels(mask)
    assert set(numpy.unique(found)) <= {0, 1}
    assert found[tuple(point)] == 1
    # A point outside of the organ takes its surroundings away.
    wrong = NIFTI | {"label": LABELS[1], "foreground": [point]}
    grown = voxels(user.infer(GROW, "", wrong, session_id=session)[0])
    away = voxels(user.infer(GROW, "", wrong | {"foreground": [], "background": [point]}, session_id=session)[0])
    assert away.sum() <= grown.sum()
    user.remove_session(session)


def test_points_as_ohif_sends_them(site: Server) -> None:
    """Without a label's name for Deepgrow; the viewer shows the result as the segment that is chosen there."""

    def infer(model: str, points: dict) -> numpy.ndarray:
        params = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
        form = {"params": (None, json.dumps(points | params))}
        headers = {"accept": "application/json, multipart/form-data"}
        answer = requests.post(f"{site.url}/infer/{model}?image={STUDIES[1]}&output=image", headers=headers, files=form, timeout=300)
        assert answer.status_code == 200, answer.text
        data = answer.content.split(b"\n\n", 1)[1]
        return numpy.frombuffer(data, numpy.uint8).reshape(SHAPE, order="F")

    spleen = middle(1, 2)
    unnamed = infer(GROW, {"foreground": [spleen], "background": [[0, 0, 0]]})
    assert set(numpy.unique(unnamed)) == {0, 1}
    assert unnamed[tuple(spleen)] == 1
    named = infer(GROW, {"foreground": [spleen], "background": [[0, 0, 0]], "label": LABELS[1]})
    assert numpy.array_equal(unnamed, named), "the structure that is there"
    edited = infer(EDIT, {"background": [], LABELS[1]: [spleen]})
    assert edited[tuple(spleen)] == 2


@pytest.mark.parametrize("method", STROKES)
@pytest.mark.parametrize("prior", [False, True], ids=["strokes alone", "with the model"])
def test_scribbles(user: MONAILabelClient, tmp_path: pathlib.Path, method: str, prior: bool) -> None:
    drawn = strokes(tmp_path / "strokes.nii.gz", 1, 1)
    sent = NIFTI | {"roi": [], "label_info": SEGMENTS, "selected_label_name": LABELS[0], "model_prior": prior}
    mask, params = user.infer(method, STUDIES[1], sent, label_in=drawn)
    assert params["label_names"] == {LABELS[0]: 1}
    found, marks = voxels(mask), voxels(drawn)
    assert (found[marks == 4] == 1).all()
    assert (found[marks == 3] == 0).all()
    assert dice(found == 1, torso(1)[1] == 1) > 0.85
    assert "label" not in str(user.datastore()["objects"][STUDIES[1]]["labels"]), "nothing is kept"


def test_scribbles_in_a_session(user: MONAILabelClient, site: Server, tmp_path: pathlib.Path) -> None:
    session = user.create_session(site.extra)["session_id"]
    drawn = strokes(tmp_path / "strokes.nii.gz", 3, 2)
    i, j, k = middle(3, 2)
    # As Slicer sends a box for a volume in LPS order: its ends in any order, and over the edge of the image.
    sent = NIFTI | {
        "roi": [i + 11, i - 11, j + 13, j - 13, k - 7, 90], "label_info": SEGMENTS, "selected_label_name": LABELS[1],
    }
    mask, _ = user.infer(STROKES[1], "", sent, label_in=drawn, session_id=session)
    found = voxels(mask)
    assert dice(found == 1, torso(3)[1] == 2) > 0.8
    found[i - 11 : i + 12, j - 13 : j + 14, k - 7 :] = 0
    assert not found.any(), "nothing outside of the box"
    user.remove_session(session)


def test_refused(user: MONAILabelClient, site: Server, tmp_path: pathlib.Path) -> None:
    empty = tmp_path / "empty.nii.gz"
    save(empty, numpy.zeros(SHAPE, numpy.uint8))
    drawn = strokes(tmp_path / "strokes.nii.gz", 0, 1)
    alone = {"label_info": SEGMENTS, "selected_label_name": LABELS[0], "model_prior": False}
    for model, params, label, words in (
        (EDIT, {LABELS[0]: [[48, 0, 0]]}, None, "(48, 0, 0) lies outside of the image, which has 48 x 40 x 24 voxels"),
        (GROW, {"label": LABELS[0], "foreground": [], "background": []}, None, "there are no points"),
        (GROW, {"label": "kidney", "foreground": [[1, 1, 1]]}, None, ", ".join(LABELS)),
        (STROKES[0], alone, None, "no file 'label'"),
        (STROKES[0], alone, empty, "there are no foreground strokes"),
        (STROKES[1], alone | {"roi": [60, 70, 0, 5, 0, 5]}, drawn, "lies outside of the image"),
    ):
        with pytest.raises(MONAILabelClientException) as refused:
            user.infer(model, STUDIES[0], NIFTI | params, label_in=label and str(label))
        assert "Status: 422" in refused.value.msg
        assert words in refused.value.msg
    assert user.info()["models"]
