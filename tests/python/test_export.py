"""An export, opened by the class that the real MONAI Label server keeps its studies with."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator

import nibabel
import pytest
import requests
from monailabel.client.client import MONAILabelClient

from serving import LABELS, PROGRAM, Server, running

SEG = "case.03"
INFO = {"label_info": [{"name": name, "idx": k} for k, name in enumerate(LABELS, 1)], "comment": "Ünïcode"}


@pytest.fixture(scope="module")
def local_datastore() -> Iterator[type]:
    """`LocalDatastore` of the release; the helper module that it imports needs torch, and two functions are used."""

    def file_ext(name: str) -> str:
        return "".join(suffix for suffix in pathlib.Path(name).suffixes if len(suffix) <= 10)

    def remove_file(path: str) -> None:
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.unlink(path)

    name = "monailabel.utils.others.generic"
    stub = types.ModuleType(name)
    stub.file_ext, stub.remove_file = file_ext, remove_file  # type: ignore[attr-defined]
    before = sys.modules.get(name)
    sys.modules[name] = stub
    from monailabel.datastore.local import LocalDatastore

    yield LocalDatastore
    if before is None:
        del sys.modules[name]
    else:
        sys.modules[name] = before


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, pathlib.Path]]:
    """A server with labels of several tags, and its export."""
    folder = tmp_path_factory.mktemp("export")
    with running(folder) as server:
        client = MONAILabelClient(server.url, tmpdir=str(folder), client_id="python-test")
        client.save_label("case_01", server.label(0), params=INFO)
        client.save_label("case_01", server.label(0), tag="version_2", params={"segmentationMeta": {"status": "ok"}})
        client.save_label("case 02", server.label(1), tag="original", params={"model": "m"})
        # A .seg.nrrd keeps its suffix.
        segments = folder / "segments.seg.nrrd"
        write_seg_nrrd(segments, server.label(2))
        client.save_label(SEG, str(segments), params={"client_id": "python-test"})
        client.upload_image(server.extra, image_id="uploaded.1", params={"source": "pacs"})
        answer = requests.put(
            f"{server.url}/datastore/image/info",
            params={"image": "case_01"},
            files={"info": (None, json.dumps({"patient": "p1"}))},
        )
        assert answer.status_code == 200, answer.text
        out = folder / "out"
        export(folder, out)
        yield server, out


def write_seg_nrrd(path: pathlib.Path, label: str) -> None:
    import numpy
    import SimpleITK

    image = SimpleITK.Cast(SimpleITK.ReadImage(label), SimpleITK.sitkUInt8)
    for k, name in enumerate(LABELS):
        for key, value in (
            ("ID", name),
            ("Name", name),
            ("LabelValue", str(k + 1)),
            ("Layer", "0"),
            ("Extent", " ".join(f"0 {size - 1}" for size in image.GetSize())),
        ):
            image.SetMetaData(f"Segment{k}_{key}", value)
    assert numpy.any(SimpleITK.GetArrayFromImage(image))
    SimpleITK.WriteImage(image, str(path), True)


def export(folder: pathlib.Path, out: pathlib.Path, *options: str) -> None:
    data = folder / "studies" / ".fewlabel"
    subprocess.run([PROGRAM, "export", "--data", data, "--out", out, *options], check=True)


def sha256(path: str | pathlib.Path) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def opened(local_datastore: type, folder: pathlib.Path):  # noqa: ANN201 - a type of another package
    return local_datastore(str(folder), extensions=("*.nii.gz", "*.nii", "*.nrrd"), auto_reload=False)


def test_the_real_datastore_sees_the_same(site: tuple[Server, pathlib.Path], local_datastore: type) -> None:
    server, out = site
    index = (out / "datastore_v2.json").read_bytes()
    store = opened(local_datastore, out)
    assert (out / "datastore_v2.json").read_bytes() == index, "nothing had to be reconciled"
    ours = requests.get(f"{server.url}/datastore/", params={"output": "all"}).json()
    assert store.json() == ours
    assert store.status() == requests.get(f"{server.url}/datastore/").json()
    assert store.list_images() == list(ours["objects"])
    for image, entry in ours["objects"].items():
        answer = requests.get(f"{server.url}/datastore/image", params={"image": image})
        assert hashlib.sha256(answer.content).hexdigest() == sha256(store.get_image_uri(image)), image
        assert store.get_image_info(image) == {**entry["image"]["info"], "path": store.get_image_uri(image)}
        assert list(store.get_labels_by_image_id(image)) == list(entry["labels"])
        for tag, label in entry["labels"].items():
            answer = requests.get(f"{server.url}/datastore/label", params={"label": image, "tag": tag})
            assert hashlib.sha256(answer.content).hexdigest() == sha256(store.get_label_uri(image, tag)), (image, tag)
            assert label["info"] == store.get_label_info(image, tag)
    assert store.get_label_uri(SEG, "final").endswith("labels/final/case.03.seg.nrrd")
    assert store.get_label_info("case_01", "final")["comment"] == "Ünïcode"


def test_the_real_datastore_goes_on_with_it(
    site: tuple[Server, pathlib.Path], local_datastore: type, tmp_path: pathlib.Path
) -> None:
    server, out = site
    mine = tmp_path / "mine"
    shutil.copytree(out, mine)
    store = opened(local_datastore, mine)
    store.save_label("case 02", server.label(1), "final", {"by": "theirs"})
    store.update_image_info("case 02", {"seen": True})
    again = opened(local_datastore, mine)
    assert again.get_label_info("case 02", "final")["by"] == "theirs"
    # And we take it back, with what they added.
    data = server.folder / "studies" / ".fewlabel"
    done = subprocess.run([PROGRAM, "import", "--data", data, mine], check=True, capture_output=True, text=True)
    assert "1 new revisions of labels" in done.stdout, done.stdout
    info = requests.get(f"{server.url}/datastore/label/info", params={"label": "case 02", "tag": "final"}).json()
    assert info == again.get_label_info("case 02", "final")


def test_the_msd_layout_is_whole(site: tuple[Server, pathlib.Path], tmp_path: pathlib.Path) -> None:
    server, _ = site
    out = tmp_path / "msd"
    export(server.folder, out, "--format", "msd")
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["numTraining"] == len(dataset["training"]) > 0
    for case in dataset["training"]:
        image, label = (nibabel.load(out / case[key]) for key in ("image", "label"))
        assert image.shape == label.shape
        assert abs(image.affine - label.affine).max() < 1e-3
        assert set(label.get_fdata().ravel()) <= set(map(int, dataset["labels"]))
    for image in dataset["test"]:
        nibabel.load(out / image)
