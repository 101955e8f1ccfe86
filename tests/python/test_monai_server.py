"""The MONAI Label application of `plugin/` in the real server of the wheel monailabel 0.8.5, over HTTP, with the built server behind it.

Its own modules and web framework are real; torch, MONAI and other packages that it only imports are stood in for (see `standins`).
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import nibabel
import numpy
import pytest
import requests
from monailabel.client.client import MONAILabelClient

from serving import LABELS, ROOT, STUDIES, Server, running, torso

MODEL = "pct-net-s"
START_S = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its own, because labels and versions of the model are left behind."""
    with running(tmp_path_factory.mktemp("site")) as server:
        yield server


@pytest.fixture(scope="module")
def monai(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `monailabel start_server` with the application, on its own copies of both."""
    folder = tmp_path_factory.mktemp("monai")
    app, studies = folder / "app", folder / "studies"
    # It makes folders beside the application, for its log for instance.
    shutil.copytree(ROOT / "plugin" / "fewlabel-app", app, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(server.folder / "studies", studies, ignore=shutil.ignore_patterns(".fewlabel"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", app, "--studies", studies, "--host", "127.0.0.1", "--port", str(port), "--conf", "fewlabel", server.url]
    environment = os.environ | {
        "PYTHONPATH": str(pathlib.Path(__file__).parent / "standins"), "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false",
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    log = folder / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(requests.ConnectionError):
                assert requests.get(f"{url}/info/", timeout=60).status_code == 200, log.read_text()
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def training(url: str) -> bool:
    return requests.get(f"{url}/train/", params={"check_if_running": True}, timeout=60).status_code == 200


def wait_for(url: str, running: bool, limit_s: float = 240) -> None:
    deadline = time.monotonic() + limit_s
    while training(url) != running:
        assert time.monotonic() < deadline, requests.get(f"{url}/logs/", timeout=60).text[-3000:]
        time.sleep(0.2)


def revisions(server: Server, image: str) -> list[dict]:
    return requests.get(f"{server.url}/datastore/label/revisions", params={"image": image}, timeout=60).json()["revisions"]


def test_a_client_of_monai_label(monai: str, server: Server, tmp_path: pathlib.Path) -> None:
    """The whole loop of a site that keeps its MONAI Label, by its own Python client."""
    client = MONAILabelClient(monai, tmpdir=str(tmp_path), client_id="ann")
    info = client.info()
    assert "by MONAI Label" in info["name"] and info["labels"] == list(LABELS)
    assert list(info["models"]) == [MODEL] and list(info["trainers"]) == [MODEL] and "random" in info["strategies"]

    image = client.next_sample("first", {"client_id": "ann"})["id"]
    assert image in STUDIES
    file, params = client.infer(MODEL, image, {"result_extension": ".nii.gz", "result_dtype": "uint8"})
    proposed, scan = nibabel.load(file), nibabel.load(server.folder / "studies" / f"{image}.nii.gz")
    assert proposed.shape == scan.shape and numpy.allclose(proposed.affine, scan.affine)
    assert list(params["label_names"]) == list(LABELS)
    answer = requests.post(f"{server.url}/infer/{MODEL}", params={"image": image, "output": "image"}, data={"params": '{"result_extension": ".nii.gz"}'}, timeout=300)
    (tmp_path / "direct.nii.gz").write_bytes(answer.content)
    assert numpy.array_equal(proposed.get_fdata(), nibabel.load(tmp_path / "direct.nii.gz").get_fdata())

    label_info = [{"name": name, "idx": value} for value, name in enumerate(LABELS, 1)]
    for name in STUDIES[:2]:
        client.save_label(name, server.label(STUDIES.index(name)), "final", {"label_info": label_info, "client_id": "ann"})
    assert client.info()["datastore"]["completed"] == 2
    client.train_start(MODEL, {"max_epochs": 1, "steps": 2})
    wait_for(monai, False)
    status = client.train_status()
    assert status["status"] == "DONE", status
    for name in STUDIES[:2]:
        (revision,) = revisions(server, name)
        assert revision["author"] == "ann"
    stored = requests.get(f"{server.url}/datastore/label", params={"label": STUDIES[0], "tag": "final"}, timeout=60)
    (tmp_path / "stored.nii.gz").write_bytes(stored.content)
    assert numpy.array_equal(nibabel.load(tmp_path / "stored.nii.gz").get_fdata(), torso(0)[1])
    assert requests.get(f"{server.url}/model/info/{MODEL}", timeout=60).status_code == 200
    assert client.info()["train_stats"][MODEL]["total_epochs"] == 1


def test_a_training_is_stopped(monai: str, server: Server, tmp_path: pathlib.Path) -> None:
    """The button of the clients kills the process that watches; the next look at the server ends the training itself."""
    client = MONAILabelClient(monai, tmpdir=str(tmp_path), client_id="ann")
    client.save_label(STUDIES[0], server.label(0), "final", {"label_info": [{"name": name, "idx": value} for value, name in enumerate(LABELS, 1)], "client_id": "ann"})
    client.train_start(MODEL, {"max_epochs": 500})
    wait_for(server.url, True)
    client.train_stop()
    client.info()
    assert requests.get(f"{server.url}/train/", timeout=60).json()["status"] == "STOPPED"
    assert not training(monai)
