"""The unmodified Slicer plugin of the wheel monailabel 0.8.5: every action that the server has something for."""

from __future__ import annotations

import json
import pathlib
import time

import numpy
import pytest
import requests
import SimpleITK
import slicer
import slicer.util

import ctk
import qt
from panel import Panel
from serving import LABELS, STUDIES, Server, torso

MODEL = "pct-net-s"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin on another machine than the server: it does not see the server's files."""
    import MONAILabel

    exists = MONAILabel.os.path.exists
    monkeypatch.setattr(MONAILabel.os.path, "exists", lambda path: "studies" not in str(path) and exists(path))


def reference(seed: int) -> numpy.ndarray:
    """The label of a study, [z, y, x]."""
    return torso(seed)[1].T


def stored_label(server: Server, image: str, tag: str, folder: pathlib.Path) -> numpy.ndarray:
    """What the server keeps, [z, y, x]."""
    answer = requests.get(f"{server.url}/datastore/label", params={"label": image, "tag": tag}, timeout=60)
    assert answer.status_code == 200, answer.text
    path = folder / ("stored" + objects(server)[image]["labels"][tag]["ext"])
    path.write_bytes(answer.content)
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))


def objects(server: Server) -> dict:
    return requests.get(f"{server.url}/datastore/", params={"output": "all"}, timeout=60).json()["objects"]


def labelled(server: Server, count: int) -> None:
    """At least so many studies have a final label."""
    for seed, name in enumerate(STUDIES[:count]):
        with open(server.label(seed), "rb") as label:
            answer = requests.put(f"{server.url}/datastore/label", params={"image": name}, files={"label": label}, timeout=60)
        assert answer.status_code == 200, answer.text


def test_connect(panel: Panel, tmp_path: pathlib.Path) -> None:
    panel.connect()
    assert panel.texts("appComboBox")[0].startswith("Fewlabel")
    assert panel.texts("segmentationModelSelector") == [MODEL]
    strategies = panel.texts("strategyBox")
    assert strategies[:4] == ["auto", "random", "first", "last"] and "clasp" in strategies
    assert panel.texts("trainerBox") == [MODEL]
    assert panel.texts("labelComboBox") == list(LABELS)
    assert panel.ui.nextSampleButton.enabled
    # The model does not take clicks, so that their group is not offered; strokes need no model.
    assert panel.ui.segmentationCollapsibleButton.visible
    assert not panel.ui.deepgrowCollapsibleButton.visible
    assert panel.ui.scribblesCollapsibleButton.visible
    panel.picture(tmp_path / "connected.png")


def test_no_server(panel: Panel) -> None:
    panel.ui.serverComboBox.setCurrentText("http://127.0.0.1:9")
    panel.ui.fetchServerInfoButton.click()
    assert "Failed to fetch models" in panel.errors()[0]
    assert not qt.faults


def test_options(panel: Panel) -> None:
    """Every value of the table comes back in its type; an empty list or a wrong type would raise here."""
    panel.connect()
    assert panel.texts("optionsSection") == ["infer", "train", "activelearning", "scoring"]
    infer = panel.table()
    assert infer["largest_cc"] is False
    assert infer["device"], "a list for a box, never empty"
    panel.edit("largest_cc", True)
    assert panel.widget.getParamsFromConfig("infer", MODEL)["largest_cc"] is True

    panel.ui.optionsSection.setCurrentIndex(1)
    assert panel.texts("optionsName") == [MODEL]
    before = panel.widget.info["trainers"][MODEL]["config"]
    types = {key: type(value[0] if isinstance(value, list) else value) for key, value in before.items()}
    panel.edit("max_epochs", "7")
    params = panel.widget.getParamsFromConfig("train", MODEL)
    assert params["max_epochs"] == 7
    assert {key: type(value) for key, value in params.items()} == types
    for section in (2, 3, 0):
        panel.ui.optionsSection.setCurrentIndex(section)
    panel.assert_well()


@pytest.mark.parametrize("remote", [False, True], ids=["shared folder", "download"])
def test_next_sample(panel: Panel, remote: bool, request: pytest.FixtureRequest) -> None:
    if remote:
        request.getfixturevalue("elsewhere")
    panel.set("autoRunSegmentationOnNextSample", 0)
    panel.connect()
    panel.ui.strategyBox.setCurrentText("first")
    panel.click("nextSampleButton")
    image = panel.widget.current_sample["id"]
    assert numpy.array_equal(panel.scan(), torso(STUDIES.index(image))[0].T)
    assert panel.segments() == list(LABELS)
    assert panel.ui.segmentationButton.enabled
    assert panel.ui.saveLabelButton.enabled
    # Slicer's cache is by file name: without a checksum it may show another scan of that name.
    assert panel.widget.current_sample["checksum"].startswith("SHA256:")


def test_segmentation(panel: Panel, server: Server) -> None:
    """The voxels in the segments are those that the server answered, label by label."""
    panel.connect()
    panel.ui.strategyBox.setCurrentText("last")
    panel.click("nextSampleButton")
    # The plugin's default: it segments a new sample at once.
    assert panel.segments() == list(LABELS)
    panel.click("segmentationButton")
    image = panel.widget.current_sample["id"]
    answer = requests.post(
        f"{server.url}/infer/{MODEL}", params={"image": image, "output": "image"},
        data={"params": '{"result_extension": ".nrrd", "result_dtype": "uint8"}'}, timeout=300,
    )
    voxels = numpy.frombuffer(answer.content.split(b"\n\n", 1)[1], numpy.uint8).reshape(panel.scan().shape)
    for value, name in enumerate(LABELS, 1):
        assert numpy.array_equal(panel.mask(name), voxels == value), name


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_submit(panel: Panel, server: Server, suffix: str, tmp_path: pathlib.Path) -> None:
    panel.set("fileExtension", suffix)
    # For `.seg.nrrd` the plugin sends the segmentation itself instead of a label map.
    panel.set("allowOverlappingSegments", int(suffix == ".seg.nrrd"))
    panel.set("autoRunSegmentationOnNextSample", 0)
    panel.connect()
    panel.ui.strategyBox.setCurrentText("random")
    panel.click("nextSampleButton")
    image = panel.widget.current_sample["id"]
    wanted = reference(STUDIES.index(image))
    for value, name in enumerate(LABELS, 1):
        panel.draw(name, wanted == value)
    completed = panel.widget.info["datastore"]["completed"]
    panel.click("saveLabelButton")
    assert panel.widget.info["datastore"]["completed"] == completed + 1
    info = objects(server)[image]["labels"]["final"]["info"]
    assert [entry["name"] for entry in info["label_info"]] == list(LABELS)
    assert info["client_id"] == "user-xyz"
    assert numpy.array_equal(stored_label(server, image, "final", tmp_path), wanted)
    requests.delete(f"{server.url}/datastore/label", params={"id": image, "tag": "final"}, timeout=60)


def test_submit_with_background(panel: Panel, server: Server, tmp_path: pathlib.Path) -> None:
    """The plugin leaves out such segments, but counts them: the indices that it sends are too high."""
    panel.set("autoRunSegmentationOnNextSample", 0)
    panel.connect()
    panel.ui.strategyBox.setCurrentText("first")
    panel.click("nextSampleButton")
    image = panel.widget.current_sample["id"]
    wanted = reference(STUDIES.index(image))
    segmentation = panel.widget._segmentNode.GetSegmentation()
    segmentation.SetSegmentIndex(segmentation.AddEmptySegment("background", "background"), 0)
    for value, name in enumerate(("background", *LABELS)):
        panel.draw(name, wanted == value)
    panel.click("saveLabelButton")
    info = objects(server)[image]["labels"]["final"]["info"]
    assert info["label_info"] == [{"name": name, "idx": k} for k, name in enumerate(LABELS, 2)]
    pairs = requests.get(f"{server.url}/datastore/", params={"output": "train"}, timeout=60).json()
    (path,) = [pair["label"] for pair in pairs if pathlib.Path(pair["image"]).name.startswith(image)]
    # A file named by its hash, without a suffix.
    learned = tmp_path / "learned.nii.gz"
    learned.write_bytes(pathlib.Path(path).read_bytes())
    assert numpy.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(learned)), wanted)
    requests.delete(f"{server.url}/datastore/label", params={"id": image, "tag": "final"}, timeout=60)


def test_submit_is_refused(panel: Panel, server: Server) -> None:
    """A structure that the project does not have: the plugin shows which there are, and nothing is kept."""
    panel.set("autoRunSegmentationOnNextSample", 0)
    panel.connect()
    panel.click("nextSampleButton")
    segmentation = panel.widget._segmentNode.GetSegmentation()
    segmentation.GetNthSegment(1).SetName("pancreas")
    panel.draw(LABELS[0], panel.scan() > 60)
    panel.ui.saveLabelButton.click()
    panel.settle()
    (text,) = panel.errors()
    assert "Failed to save Label" in text
    assert "pancreas" in text
    assert LABELS[1] in text
    assert "final" not in objects(server)[panel.widget.current_sample["id"]]["labels"]
    assert panel.segments() == [LABELS[0], "pancreas"], "what was drawn is still there"


def test_original_label(panel: Panel, server: Server, tmp_path: pathlib.Path) -> None:
    """The proposal that the server kept is shown with the scan."""
    for name in STUDIES:
        answer = requests.post(
            f"{server.url}/infer/{MODEL}", params={"image": name, "output": "json"},
            data={"params": '{"result_extension": ".nii.gz", "save_label": true}'}, timeout=300,
        )
        assert answer.status_code == 200, answer.text
    panel.set("autoRunSegmentationOnNextSample", 0)
    panel.connect()
    panel.click("nextSampleButton")
    kept = stored_label(server, panel.widget.current_sample["id"], "original", tmp_path)
    assert kept.any()
    for value, name in enumerate(LABELS, 1):
        assert numpy.array_equal(panel.mask(name), kept == value), name


def test_nothing_left(panel: Panel, server: Server) -> None:
    labelled(server, len(STUDIES))
    panel.connect()
    panel.ui.nextSampleButton.click()
    assert any("Unlabeled samples or images not found" in text for text in panel.errors()), panel.errors()
    assert not qt.faults
    for name in STUDIES:
        requests.delete(f"{server.url}/datastore/label", params={"id": name, "tag": "final"}, timeout=60)


def test_train_and_stop(panel: Panel, server: Server, tmp_path: pathlib.Path) -> None:
    labelled(server, 2)
    panel.connect()
    panel.ui.optionsSection.setCurrentIndex(1)
    panel.edit("max_epochs", "500")
    panel.click("trainingButton")
    assert not panel.ui.trainingButton.enabled
    assert panel.ui.stopTrainingButton.enabled
    request = requests.get(f"{server.url}/train/", timeout=60).json()["request"]
    assert request["max_epochs"] == 500
    assert request["client_id"] == "user-xyz"
    panel.widget.monitorTraining()
    panel.picture(tmp_path / "training.png")

    ctk.ctkMessageBox.answer = qt.QMessageBox.Cancel
    panel.click("stopTrainingButton")
    assert requests.get(f"{server.url}/train/", timeout=60).json()["status"] == "RUNNING", "asked, and not confirmed"
    ctk.ctkMessageBox.answer = qt.QMessageBox.Ok
    panel.click("stopTrainingButton")
    assert requests.get(f"{server.url}/train/", timeout=60).json()["status"] == "STOPPED"
    panel.wait_for_training()
    assert panel.ui.trainingButton.enabled
    assert not panel.ui.stopTrainingButton.enabled


def test_train_to_the_end(panel: Panel, server: Server) -> None:
    labelled(server, 2)
    panel.connect()
    panel.ui.optionsSection.setCurrentIndex(1)
    panel.edit("max_epochs", "1")
    # The panel sends whatever stands in the configuration; this makes the epoch short.
    panel.widget.info["trainers"][MODEL]["config"]["steps"] = 2
    panel.click("trainingButton")
    panel.wait_for_training()
    assert requests.get(f"{server.url}/train/", timeout=60).json()["status"] == "DONE"
    assert panel.ui.trainingButton.enabled
    assert panel.ui.trainingProgressBar.value == 100


def test_versions(panel: Panel, server: Server) -> None:
    """The options of the unmodified plugin hold the versions of the model in a box, and the chosen one proposes."""
    labelled(server, 2)
    answer = requests.post(f"{server.url}/train/{MODEL}", params={"run_sync": True}, json={"max_epochs": 1, "steps": 2}, timeout=300)
    assert answer.status_code == 200, answer.text
    models = requests.get(f"{server.url}/models/", timeout=60).json()["models"]
    (versions,) = [model["versions"] for model in models if model["name"] == MODEL]
    assert len(versions) > 1
    panel.set("autoRunSegmentationOnNextSample", 0)
    panel.connect()
    panel.ui.strategyBox.setCurrentText("first")
    panel.click("nextSampleButton")
    offered = panel.table()["version"]
    live = next(entry["version"] for entry in versions if entry["live"])
    assert offered[0] == f"live ({live})"
    assert {int(text.split()[0]) for text in offered[1:]} == {entry["version"] for entry in versions if not entry["live"]}
    image, found = panel.widget.current_sample["id"], {}
    for text in (offered[0], offered[-1]):
        panel.edit("version", text)
        assert panel.widget.getParamsFromConfig("infer", MODEL)["version"] == text
        panel.click("segmentationButton")
        number = live if text.startswith("live") else int(text.split()[0])
        params = {"result_extension": ".nrrd", "result_dtype": "uint8", "version": number}
        answer = requests.post(f"{server.url}/infer/{MODEL}", params={"image": image, "output": "image"}, data={"params": json.dumps(params)}, timeout=300)
        found[text] = numpy.frombuffer(answer.content.split(b"\n\n", 1)[1], numpy.uint8).reshape(panel.scan().shape)
        for value, name in enumerate(LABELS, 1):
            assert numpy.array_equal(panel.mask(name), found[text] == value), (text, name)
    assert not numpy.array_equal(*found.values()), "the first version has learned nothing, the live one a little"


def test_submit_trains_and_goes_on(panel: Panel, server: Server) -> None:
    """The two settings for who labels without a pause: train after each submit, and fetch the next sample."""
    for name in STUDIES:
        requests.delete(f"{server.url}/datastore/label", params={"id": name, "tag": "final"}, timeout=60)
    for setting, value in (("autoUpdateModelV2", 1), ("autoFetchNextSample", 1), ("autoRunSegmentationOnNextSample", 0)):
        panel.set(setting, value)
    panel.connect()
    panel.ui.strategyBox.setCurrentText("first")
    panel.click("nextSampleButton")
    first = panel.widget.current_sample["id"]
    panel.draw(LABELS[0], reference(STUDIES.index(first)) == 1)
    panel.click("saveLabelButton")
    assert "final" in objects(server)[first]["labels"]
    assert requests.get(f"{server.url}/train/?check_if_running=true", timeout=60).status_code == 200
    second = panel.widget.current_sample["id"]
    assert second != first
    assert numpy.array_equal(panel.scan(), torso(STUDIES.index(second))[0].T)
    panel.click("stopTrainingButton")
    panel.wait_for_training()


def load_extra(panel: Panel, server: Server, name: str) -> None:
    """A scan that the clinician opened and the server does not know."""
    panel.connect()
    slicer.util.loadVolume(server.extra, {"name": name})
    panel.settle()
    assert panel.widget.current_sample["session"] is True
    assert panel.ui.uploadImageButton.enabled


def test_session(panel: Panel, server: Server) -> None:
    load_extra(panel, server, "local scan")
    panel.click("segmentationButton")
    session = panel.widget.current_sample["session_id"]
    assert requests.get(f"{server.url}/session/{session}", timeout=60).status_code == 200
    assert panel.segments() == list(LABELS)
    panel.click("segmentationButton")
    assert panel.widget.current_sample["session_id"] == session, "the session is used again"
    assert "local scan" not in objects(server), "a session is not an upload"
    requests.delete(f"{server.url}/session/{session}", timeout=60)


def test_session_that_ended(panel: Panel, server: Server) -> None:
    load_extra(panel, server, "another local scan")
    panel.click("segmentationButton")
    session = panel.widget.current_sample["session_id"]
    requests.delete(f"{server.url}/session/{session}", timeout=60)
    panel.ui.segmentationButton.click()
    panel.settle()
    (text,) = panel.errors()
    assert "Failed to run inference" in text
    assert f"Session ({session}) Not Found" in text
    assert not qt.faults


def test_upload_and_submit(panel: Panel, server: Server, tmp_path: pathlib.Path) -> None:
    name = f"slicer upload {time.time_ns()}"
    load_extra(panel, server, name)
    panel.click("uploadImageButton")
    assert name in objects(server)
    assert any("will be sent to remote" in text for text in ctk.ctkMessageBox.asked)
    assert not panel.ui.uploadImageButton.enabled
    for value, label in enumerate(LABELS, 1):
        panel.draw(label, reference(3) == value)
    panel.click("saveLabelButton")
    assert numpy.array_equal(stored_label(server, name, "final", tmp_path), reference(3))
    requests.delete(f"{server.url}/datastore/image", params={"id": name}, timeout=60)


def test_submit_local(panel: Panel, server: Server, tmp_path: pathlib.Path) -> None:
    """Submitting a local scan uploads it first."""
    name = f"slicer submit {time.time_ns()}"
    load_extra(panel, server, name)
    panel.draw(LABELS[1], reference(3) == 2)
    panel.click("saveLabelButton")
    assert set(numpy.unique(stored_label(server, name, "final", tmp_path))) == {0, 2}
    requests.delete(f"{server.url}/datastore/image", params={"id": name}, timeout=60)
