"""The unmodified MONAI Label client, release 0.8.5, against the built server."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator

import nibabel
import numpy
import pytest
import requests
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from serving import LABELS, STUDIES, Server

MODEL = "pct-net-s"
WAIT_S = 300
LABEL_INFO = {"label_info": [{"name": name, "idx": k} for k, name in enumerate(LABELS, 1)]}


@pytest.fixture
def idle(client: MONAILabelClient) -> Iterator[None]:
    """No training outlives its test."""
    yield
    client.train_stop()


def wait_for_training(client: MONAILabelClient) -> dict:
    deadline = time.monotonic() + WAIT_S
    while client.train_status(check_if_running=True):
        assert time.monotonic() < deadline, client.train_status()
        time.sleep(0.2)
    return client.train_status()


def check_mask(client: MONAILabelClient, mask: str, params: dict, scan: str | pathlib.Path) -> None:
    """A label of this project on the grid of the scan."""
    assert pathlib.Path(mask).parent == pathlib.Path(client._tmpdir)
    image, label = nibabel.load(scan), nibabel.load(mask)
    assert label.shape == image.shape
    assert numpy.array_equal(label.affine, image.affine)
    values = set(numpy.unique(label.get_fdata()))
    assert values <= {0, 1, 2}
    assert params["label_names"] == dict(zip(LABELS, (1, 2), strict=True))
    assert params["latencies"]["total"] > 0


def test_auth_is_off(client: MONAILabelClient) -> None:
    assert not client.auth_enabled()


def test_info(client: MONAILabelClient) -> None:
    info = client.info()
    keys = ["name", "description", "version", "labels", "models", "trainers", "strategies", "scoring", "train_stats", "datastore"]
    assert list(info) == keys
    assert list(info["models"][MODEL]["labels"].items()) == [("liver", 1), ("spleen", 2)]
    assert info["models"][MODEL]["type"] == "segmentation"
    assert "trained" in str(info["models"][MODEL]), "it says that it has not been trained"
    for section in ("models", "trainers", "strategies", "scoring"):
        assert info[section], section
        for entry in info[section].values():
            assert isinstance(entry["description"], str)
            # An empty list crashes Slicer's table of options.
            assert [] not in entry.get("config", {}).values()


def test_next_sample(client: MONAILabelClient) -> None:
    for strategy in client.info()["strategies"]:
        sample = client.next_sample(strategy, {})
        assert sample["id"] in STUDIES or sample["id"].startswith("py"), sample
        assert pathlib.Path(sample["path"]).is_file()
        assert sample["name"] == pathlib.Path(sample["path"]).name
    with pytest.raises(MONAILabelClientException):
        client.next_sample("no-such-strategy", {})


def test_infer(client: MONAILabelClient, server: Server) -> None:
    for name in STUDIES:
        scan = server.folder / "studies" / f"{name}.nii.gz"
        mask, params = client.infer(MODEL, name, {"result_extension": ".nii.gz", "result_dtype": "uint8"})
        check_mask(client, mask, params, scan)
    mask, params = client.infer(MODEL, "", {"result_extension": ".nii.gz"}, file=server.extra)
    check_mask(client, mask, params, server.extra)
    mask, _ = client.infer(MODEL, STUDIES[0], {"result_extension": ".nrrd"})
    head = pathlib.Path(mask).read_bytes()
    assert head.startswith(b"NRRD000")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\n\n", 1)[0].split(b"\n") if b": " in line)
    assert fields[b"sizes"] == b"48 40 24"
    assert fields[b"space"] == b"left-posterior-superior"


def test_infer_refuses(client: MONAILabelClient, server: Server, tmp_path: pathlib.Path) -> None:
    for model, image in (("no-such-model", STUDIES[0]), (MODEL, "no-such-image"), (MODEL, "")):
        with pytest.raises(MONAILabelClientException) as refused:
            client.infer(model, image, {})
        assert "Status: 4" in refused.value.msg or "Status: 5" in refused.value.msg
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(pathlib.Path(server.extra).read_bytes()[:500])
    with pytest.raises(MONAILabelClientException) as refused:
        client.infer(MODEL, "", {}, file=str(broken))
    assert "Status: 422" in refused.value.msg
    assert client.info(), "the server goes on"


def test_upload_label_download(client: MONAILabelClient, server: Server, tmp_path: pathlib.Path) -> None:
    image = "py case 1.5"
    assert client.upload_image(server.extra, image_id=image, params={"note": "test"}) == {"image": image}
    fetched = requests.get(f"{server.url}/datastore/image", params={"image": image}, timeout=60)
    assert fetched.content == pathlib.Path(server.extra).read_bytes()

    completed = client.info()["datastore"]["completed"]
    assert client.save_label(image, server.label(3), params=LABEL_INFO) == {"image": image, "label": image}
    assert client.info()["datastore"]["completed"] == completed + 1
    entry = client.datastore()["objects"][image]
    assert entry["image"]["info"]["note"] == "test"
    assert entry["labels"]["final"]["info"]["client_id"] == "python-test"
    downloaded = pathlib.Path(client.download_label(image, "final"))
    assert downloaded.read_bytes() == pathlib.Path(server.label(3)).read_bytes()

    client.save_label(image, server.label(3), tag="version_1", params=LABEL_INFO)
    assert list(client.datastore()["objects"][image]["labels"]) == ["final", "version_1"]
    with pytest.raises(MONAILabelClientException):
        client.download_label("no-such-image", "final")
    with pytest.raises(MONAILabelClientException):
        client.save_label("no-such-image", server.label(3))

    smaller = tmp_path / "smaller.nii.gz"
    nibabel.save(nibabel.Nifti1Image(numpy.ones((4, 4, 4), numpy.uint8), numpy.eye(4)), smaller)
    with pytest.raises(MONAILabelClientException) as refused:
        client.save_label(image, str(smaller))
    assert "Status: 4" in refused.value.msg
    downloaded = pathlib.Path(client.download_label(image, "final"))
    assert downloaded.read_bytes() == pathlib.Path(server.label(3)).read_bytes(), "a refused label changes nothing"


def test_session(client: MONAILabelClient, server: Server) -> None:
    session = client.create_session(server.extra)
    session_id = session["session_id"]
    keys = ["name", "path", "image", "meta", "create_ts", "last_access_ts", "expiry"]
    assert list(session["session_info"]) == keys
    assert client.get_session(session_id)["expiry"] == session["session_info"]["expiry"]
    mask, params = client.infer(MODEL, "", {"result_extension": ".nii.gz"}, session_id=session_id)
    check_mask(client, mask, params, server.extra)
    client.remove_session(session_id)
    with pytest.raises(MONAILabelClientException) as gone:
        client.get_session(session_id)
    assert gone.value.status_code == 404


@pytest.mark.usefixtures("idle")
def test_train(client: MONAILabelClient, server: Server) -> None:
    """A real round: labels in, training, a new version that the next inference uses."""
    assert client.train_stop() is None
    assert not client.train_status(check_if_running=True)
    with pytest.raises(MONAILabelClientException):
        client.train_start("no-such-model", {})
    for seed, name in enumerate(STUDIES[:2]):
        client.save_label(name, server.label(seed), params=LABEL_INFO)
    _, before = client.infer(MODEL, STUDIES[2], {"result_extension": ".nii.gz"})

    task = client.train_start(MODEL, {"name": "train_01", "max_epochs": 1, "steps": 4, "seed": 5})
    assert task["request"]["model"] == MODEL
    assert client.train_status()["id"] == task["id"]
    with pytest.raises(MONAILabelClientException) as busy:
        client.train_start(MODEL, {"steps": 1})
    assert "Status: 429" in busy.value.msg
    assert client.info(), "the server answers while it trains"
    mask, params = client.infer(MODEL, STUDIES[2], {"result_extension": ".nii.gz"})
    check_mask(client, mask, params, server.folder / "studies" / f"{STUDIES[2]}.nii.gz")

    done = wait_for_training(client)
    assert done["status"] == "DONE", done
    assert any("loss" in line for line in done["details"]), done
    assert MODEL in client.info()["train_stats"]
    mask, after = client.infer(MODEL, STUDIES[2], {"result_extension": ".nii.gz"})
    check_mask(client, mask, after, server.folder / "studies" / f"{STUDIES[2]}.nii.gz")
    assert after["model_version"] == before["model_version"] + 1


@pytest.mark.usefixtures("idle")
def test_train_stop(client: MONAILabelClient, server: Server) -> None:
    client.save_label(STUDIES[0], server.label(0), params=LABEL_INFO)
    version = client.infer(MODEL, STUDIES[0], {})[1]["model_version"]
    task = client.train_start(MODEL, {"steps": 100_000})
    stopped = client.train_stop()
    assert stopped["id"] == task["id"]
    assert stopped["status"] == "STOPPED"
    assert stopped["details"][-1], "Slicer reads the last detail without looking whether there is any"
    assert not client.train_status(check_if_running=True)
    assert client.infer(MODEL, STUDIES[0], {})[1]["model_version"] == version, "a stopped round publishes nothing"
