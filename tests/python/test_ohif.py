"""The calls of the OHIF v3 extension of MONAI Label, with its headers and bodies, against the built server."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import numpy
import pytest
import requests

from serving import LABELS, SHAPE, STUDIES, Server, running

MODEL = "pct-net-s"
ORIGIN = "http://viewer.example"
HEADERS = {"accept": "application/json, multipart/form-data", "Origin": ORIGIN}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("ohif"), "--cors-origin", ORIGIN) as server:
        yield server


def call(site: Server, method: str, path: str, **arguments: object) -> requests.Response:
    answer = requests.request(method, f"{site.url}/{path}", headers=HEADERS, timeout=300, **arguments)
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    return answer


def test_info(site: Server) -> None:
    info = call(site, "GET", "info/").json()
    assert isinstance(info["labels"], list)
    assert info["models"][MODEL]["labels"] == {name: k for k, name in enumerate(LABELS, 1)}
    for section in ("models", "trainers", "strategies"):
        assert info[section], section
    # The options table offers the values of lists, so none may be an object.
    configs = [entry.get("config", {}) for part in ("models", "trainers") for entry in info[part].values()]
    assert not [value for config in configs for value in config.values() if isinstance(value, dict)]


@pytest.mark.parametrize("compress", [False, True])
def test_infer(site: Server, compress: bool) -> None:
    params = {
        "largest_cc": False, "result_extension": ".nrrd", "result_dtype": "uint8",
        "result_compress": compress, "restore_label_idx": False,
    }
    answer = call(site, "POST", f"infer/{MODEL}?image={STUDIES[0]}&output=image", files={"params": (None, json.dumps(params))})
    assert answer.status_code == 200, answer.text
    head, data = answer.content.split(b"\n\n", 1)
    assert (b"encoding: gzip" if compress else b"encoding: raw") in head
    voxels = numpy.frombuffer(gzip.decompress(data) if compress else data, numpy.uint8)
    assert voxels.size == numpy.prod(SHAPE)
    assert voxels.max() <= len(LABELS)


def test_next_sample(site: Server) -> None:
    sample = call(site, "POST", "activelearning/first", json={}).json()
    assert sample["id"] in STUDIES


def test_train(site: Server) -> None:
    with open(site.label(0), "rb") as label:
        requests.put(f"{site.url}/datastore/label", params={"image": STUDIES[0]}, files={"label": label}, timeout=60)
    assert call(site, "GET", "train/?check_if_running=true").status_code == 404
    assert call(site, "POST", "train/", json={MODEL: {"max_epochs": 500}}).status_code == 200
    running_task = call(site, "GET", "train/?check_if_running=true")
    assert running_task.status_code == 200
    assert running_task.json()["request"]["max_epochs"] == 500
    assert call(site, "DELETE", "train/").status_code == 200
    assert call(site, "GET", "train/?check_if_running=true").status_code == 404


def test_preflight(site: Server) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    answer = requests.options(f"{site.url}/activelearning/first", headers=HEADERS | asked, timeout=60)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers


def test_other_pages_stay_out(site: Server) -> None:
    answer = requests.get(f"{site.url}/info/", headers={"Origin": "http://elsewhere.example"}, timeout=60)
    assert "access-control-allow-origin" not in answer.headers
