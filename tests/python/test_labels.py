"""Labels as clients write them, sent by `MONAILabelClient`: what the server keeps, and what it learns from."""

from __future__ import annotations

import gzip
import pathlib
from collections.abc import Iterator

import nibabel
import numpy
import pytest
import requests
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from serving import SPACING_MM, STUDIES, Server, running, save, torso

IMAGE = STUDIES[0]
SCAN, LABEL = torso(0)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("labels")) as server:
        yield server


@pytest.fixture
def sender(site: Server, tmp_path: pathlib.Path) -> MONAILabelClient:
    return MONAILabelClient(site.url, tmpdir=str(tmp_path), client_id="labels")


def learned(site: Server) -> numpy.ndarray:
    """The label of the image as training reads it, in the values of the project."""
    pairs = requests.get(f"{site.url}/datastore/", params={"output": "train"}, timeout=60).json()
    (path,) = [pair["label"] for pair in pairs if pathlib.Path(pair["image"]).name.startswith(IMAGE)]
    # A file named by its hash, without a suffix.
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(pathlib.Path(path).read_bytes()))
    return numpy.asarray(image.dataobj)


def info(*names: tuple[str, int]) -> dict:
    return {"label_info": [{"name": name, "idx": index} for name, index in names]}


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_voxel_types(site: Server, sender: MONAILabelClient, tmp_path: pathlib.Path, dtype: str, suffix: str) -> None:
    path = tmp_path / f"label{suffix}"
    save(path, LABEL.astype(dtype))
    sender.save_label(IMAGE, str(path))
    assert numpy.array_equal(learned(site), LABEL)
    assert pathlib.Path(sender.download_label(IMAGE, "final")).read_bytes() == path.read_bytes(), "the file as it came"


@pytest.mark.parametrize("value", [1.5, float("nan"), -1.0, 3.0])
def test_values_that_are_no_label(sender: MONAILabelClient, tmp_path: pathlib.Path, value: float) -> None:
    path = tmp_path / "label.nii.gz"
    voxels = LABEL.astype(numpy.float32)
    voxels[3, 3, 3] = value
    save(path, voxels)
    with pytest.raises(MONAILabelClientException) as refused:
        sender.save_label(IMAGE, str(path))
    assert "Status: 422" in refused.value.msg


def test_raw_voxels(site: Server, sender: MONAILabelClient, tmp_path: pathlib.Path) -> None:
    """What OHIF's extension would send: uint8 in the order of the image's file, without a header."""
    path = tmp_path / "label.bin"
    path.write_bytes(LABEL.astype(numpy.uint8).tobytes(order="F"))
    sender.save_label(IMAGE, str(path))
    assert numpy.array_equal(learned(site), LABEL)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MONAILabelClientException) as refused:
        sender.save_label(IMAGE, str(path))
    assert "Status: 422" in refused.value.msg


def write_segmentation(path: pathlib.Path, layers: list[numpy.ndarray], segments: list[tuple[str, int, int]]) -> None:
    """A `.seg.nrrd` as Slicer writes it: name, value and layer of each segment; layers may overlap."""
    x, y, z = SPACING_MM
    voxels = numpy.stack(layers).astype(numpy.uint8)
    fields = "".join(
        f"Segment{k}_ID:=Segment_{k}\nSegment{k}_Name:={name}\nSegment{k}_LabelValue:={value}\nSegment{k}_Layer:={layer}\n"
        for k, (name, value, layer) in enumerate(segments)
    )
    path.write_bytes(
        b"NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\n"
        + f"sizes: {' '.join(map(str, voxels.shape))}\n".encode()
        + f"space directions: none (-{x},0,0) (0,-{y},0) (0,0,{z})\n".encode()
        + b"kinds: list domain domain domain\nencoding: raw\nspace origin: (70,65,-60)\n"
        + fields.encode() + b"\n" + voxels.tobytes(order="F")
    )


def test_segments_in_layers(site: Server, sender: MONAILabelClient, tmp_path: pathlib.Path) -> None:
    """Overlapping segments are kept as they came; where they overlap, the later one is learned."""
    liver, spleen = LABEL == 1, LABEL == 2
    wide = spleen.copy()
    wide[liver.nonzero()[0].min() :, :, 10:14] = True
    path = tmp_path / "label.seg.nrrd"
    write_segmentation(path, [liver * 7, wide * 1], [("liver", 7, 0), ("spleen", 1, 1), ("background", 9, 0)])
    sender.save_label(IMAGE, str(path))
    assert numpy.array_equal(learned(site), numpy.where(wide, 2, numpy.where(liver, 1, 0)))
    kept = pathlib.Path(sender.download_label(IMAGE, "final"))
    assert kept.read_bytes() == path.read_bytes()
    assert kept.name.endswith(".seg.nrrd")


@pytest.mark.parametrize(
    ("listed", "values"),
    [
        (info(("liver", 1), ("spleen", 2)), {1: 1, 2: 2}),
        (info(("spleen", 1), ("liver", 2)), {1: 2, 2: 1}),
        # Slicer counts segments that it does not export, so that its indices are too high.
        (info(("liver", 2), ("spleen", 3)), {1: 1, 2: 2}),
        (info(("background", 1), ("spleen", 2), ("liver", 3)), {1: 2, 2: 1}),
        (info(("foreground_scribbles", 1), ("background_scribbles", 2), ("liver", 3), ("spleen", 4)), {1: 1, 2: 2}),
        ({"label_info": []}, {1: 1, 2: 2}),
        ({}, {1: 1, 2: 2}),
        # Values as some other program numbers them, with their names.
        (info(("spleen", 6), ("liver", 9)), {6: 2, 9: 1}),
    ],
    ids=["in order", "swapped", "indices too high", "background", "scribbles", "empty list", "nothing", "own values"],
)
def test_names_decide(site: Server, sender: MONAILabelClient, tmp_path: pathlib.Path, listed: dict, values: dict[int, int]) -> None:
    written, wanted = numpy.zeros_like(LABEL), numpy.zeros_like(LABEL)
    for organ, (value, meaning) in enumerate(values.items(), 1):
        written[organ == LABEL] = value
        wanted[organ == LABEL] = meaning
    path = tmp_path / "label.nii.gz"
    save(path, written)
    sender.save_label(IMAGE, str(path), params=listed)
    assert numpy.array_equal(learned(site), wanted)
    sent = requests.get(f"{site.url}/datastore/label/info", params={"label": IMAGE, "tag": "final"}, timeout=60).json()
    assert sent.get("label_info") == listed.get("label_info"), "kept as it was sent"


def test_unknown_names_are_refused(sender: MONAILabelClient, site: Server) -> None:
    with pytest.raises(MONAILabelClientException) as refused:
        sender.save_label(IMAGE, site.label(0), params=info(("pancreas", 1), ("spleen", 2)))
    assert "Status: 422" in refused.value.msg
    assert "pancreas" in refused.value.msg


def test_names_of_windows_and_with_quotes(site: Server) -> None:
    """Clients send the whole path on their machine, unescaped; only its last part may count."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="label"; filename="C:\\my data\\a "b".nii.gz"\r\n'
        b"Content-Type: application/gzip\r\n\r\n" + pathlib.Path(site.label(0)).read_bytes() + b"\r\n--b--\r\n\r\n"
    )
    answer = requests.put(
        f"{site.url}/datastore/label", params={"image": IMAGE}, data=body, timeout=60,
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 200, answer.text
    assert numpy.array_equal(learned(site), LABEL)
    assert not list(site.folder.rglob("C:*"))
