"""The MONAI Label application of `plugin/`, in MONAI Label's own classes (0.8.5), against the built server.

Packages that this environment does not have (torch and MONAI are some gigabytes large) are stood in for: the application
uses nothing of them. The datastore, the application class and the task classes are MONAI Label's.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pathlib
import shutil
import sys
import types
from collections.abc import Iterator
from typing import Any

import nibabel
import numpy
import pytest
import requests

from serving import LABELS, ROOT, STUDIES, Server, running, torso

APP = ROOT / "plugin" / "fewlabel-app"
MODEL = "pct-net-s"
STOOD_IN = (
    "PIL", "cachetools", "dicomweb_client", "girder_client", "itk", "monai", "nrrd", "psutil", "pydantic_settings", "pydicom", "pydicom_seg", "schedule", "timeloop", "torch",
)  # fmt: skip
"""What MONAI Label imports when it starts, and this environment does not have."""


class _Anything(types.ModuleType):
    """A module, class or value that stands for whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # As a class to derive from, a value, and a decorator.
        made = type(
            name, (), {"__init__": lambda self, *args, **options: None, "__call__": lambda self, *args, **options: args[0] if args else self, "__class_getitem__": classmethod(lambda cls, item: cls)}
        )
        setattr(self, name, made)
        return made


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Offers modules of packages that are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] not in STOOD_IN:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        return _Anything(spec.name)

    def exec_module(self, module: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its own, because labels and versions of the model are left behind."""
    with running(tmp_path_factory.mktemp("site")) as server:
        yield server


@pytest.fixture(scope="module")
def application(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The application on its own copy of the studies, loaded as MONAI Label loads it."""
    folder = tmp_path_factory.mktemp("monai")
    studies = folder / "studies"
    shutil.copytree(server.folder / "studies", studies, ignore=shutil.ignore_patterns(".fewlabel"))
    finder = _StandIns()
    before, path = set(sys.modules), list(sys.path)
    sys.meta_path.append(finder)
    sys.path.insert(0, str(APP))
    try:
        spec = importlib.util.spec_from_file_location("fewlabel_monai_app", APP / "main.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        importlib.import_module("monailabel.config").settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD = False
        yield module.FewlabelApp(str(folder), str(studies), {"fewlabel": server.url})
    finally:
        sys.meta_path.remove(finder)
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if name.split(".")[0] in (*STOOD_IN, "monailabel", "lib", "fewlabel_monai_app"):
                del sys.modules[name]


def test_info(application: Any) -> None:
    info = application.info()
    assert info["labels"] == list(LABELS) and "Fewlabel" in info["name"]
    assert set(info["models"]) == {MODEL} and info["models"][MODEL]["type"] == "segmentation"
    assert info["models"][MODEL]["labels"] == {"liver": 1, "spleen": 2}
    assert set(info["trainers"]) == {MODEL} and info["trainers"][MODEL]["config"]["max_epochs"]
    assert {"random", "first"} <= set(info["strategies"])
    assert info["datastore"]["total"] == 3, "MONAI Label's own datastore"


def test_infer(application: Any, server: Server) -> None:
    result = application.infer({"model": MODEL, "image": "case_01", "result_extension": ".nii.gz", "result_dtype": "uint8"})
    proposed, scan = nibabel.load(result["file"]), nibabel.load(server.folder / "studies" / "case_01.nii.gz")
    assert proposed.shape == scan.shape and numpy.allclose(proposed.affine, scan.affine)
    assert list(result["params"]["label_names"]) == list(LABELS)
    direct = requests.post(f"{server.url}/infer/{MODEL}", params={"image": "case_01", "output": "image"}, data={"params": '{"result_extension": ".nii.gz"}'}, timeout=300)
    pathlib.Path(result["file"]).with_suffix(".direct.nii.gz").write_bytes(direct.content)
    wanted = nibabel.load(pathlib.Path(result["file"]).with_suffix(".direct.nii.gz"))
    assert numpy.array_equal(proposed.get_fdata(), wanted.get_fdata())
    saved = application.infer({"model": MODEL, "image": "case_01", "save_label": True})
    assert application.datastore().get_labels_by_image_id("case_01"), saved
    os.unlink(result["file"])


def test_next_sample(application: Any) -> None:
    assert application.next_sample({"strategy": "first"})["id"] in STUDIES


def submit(application: Any, server: Server, image: str, author: str) -> None:
    info = {"label_info": [{"name": name, "idx": value} for value, name in enumerate(LABELS, 1)], "client_id": author}
    application.datastore().save_label(image, server.label(STUDIES.index(image)), "final", info)


def test_train(application: Any, server: Server) -> None:
    """Labels go to the Fewlabel server as their authors', once; then it trains."""
    submit(application, server, "case_01", "ann")
    submit(application, server, "case 02", "ben")
    for _ in range(2):
        stats = application.train({"model": MODEL, "max_epochs": 1, "steps": 2, "device": "cuda", "gpus": "all"})
        assert stats["total_epochs"] == 1 and stats["total_time"], stats
    for image, author in (("case_01", "ann"), ("case 02", "ben")):
        found = requests.get(f"{server.url}/datastore/label/revisions", params={"image": image}, timeout=60).json()["revisions"]
        assert [entry["author"] for entry in found if not entry["deleted"]][-1:] == [author]
        assert len({entry["sha256"] for entry in found if not entry["deleted"] and entry["author"] == author}) == 1
    stored = requests.get(f"{server.url}/datastore/label", params={"label": "case_01", "tag": "final"}, timeout=60)
    folder = pathlib.Path(application.app_dir)
    (folder / "stored.nii.gz").write_bytes(stored.content)
    assert numpy.array_equal(nibabel.load(folder / "stored.nii.gz").get_fdata(), torso(0)[1])
    # The image that nobody has labelled here is what the server offers, too.
    assert application.next_sample({"strategy": "first"})["id"] == "case.03"


def test_a_stopped_training_is_ended(application: Any, server: Server) -> None:
    """MONAI Label kills the watching process; the next look at the application ends what it started."""
    answer = requests.post(f"{server.url}/train/{MODEL}", json={"max_epochs": 500, "client_id": "monai-label"}, timeout=60)
    assert answer.status_code == 200, answer.text
    application.info()
    assert requests.get(f"{server.url}/train/", timeout=60).json()["status"] == "STOPPED"


def test_somebody_elses_training_goes_on(application: Any, server: Server) -> None:
    requests.post(f"{server.url}/train/{MODEL}", json={"max_epochs": 500, "client_id": "ann"}, timeout=60)
    application.info()
    assert requests.get(f"{server.url}/train/", timeout=60).json()["status"] in ("SUBMITTED", "RUNNING")
    requests.delete(f"{server.url}/train/", timeout=60)


def test_a_server_that_is_away_says_what_to_do(application: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(Exception, match="cannot be reached .*check that it runs"):
        type(application)(str(tmp_path), str(tmp_path), {"fewlabel": "http://127.0.0.1:9"})
    (tmp_path / "series").mkdir()
    with pytest.raises(Exception, match="a series of DICOM files cannot be sent"):
        application.infer({"model": MODEL, "image": str(tmp_path / "series")})
