"""A whole case on a DICOMweb server: Orthanc with its plugin, MONAI Label's client, and pydicom and highdicom for the result.

Orthanc is started by the test on this machine, with a folder of its own, behind a small proxy that cuts a connection when
it is told to. It is not installed by `tests/run`; on Debian: `apt-get install orthanc orthanc-dicomweb`.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import TypeVar

import highdicom
import nibabel
import numpy
import pydicom
import pytest
from monailabel.client.client import MONAILabelClient

from serving import PROGRAM, ROOT

SHARED = pathlib.Path(os.environ.get("FEWLABEL_SHARED", ROOT.parent / "shared")) / "data/dicom"
ORTHANC = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PLUGINS = glob.glob("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "fewlabel", "a-secret-of-the-test"
CASES = ("baseline", "gantry_tilt")
Found = TypeVar("Found")

pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"there is no {SHARED}"),
    pytest.mark.skipif(
        not (ORTHANC and PLUGINS),
        reason="Orthanc with its DICOMweb plugin is not installed (Debian: orthanc, orthanc-dicomweb)",
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(look: Callable[[], Found | None], seconds: float = 120) -> Found:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"it did not happen within {seconds} s")


class CuttingProxy:
    """Passes bytes on in both directions; cuts the next long answer in the middle when `cut` is set."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.cut = threading.Event()
        self.cuts = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
                for source, sink, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self.pump, args=(source, sink, answers), daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                passed += len(data)
                if answers and self.cut.is_set() and passed > 50_000:
                    self.cut.clear()
                    self.cuts += 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Orthanc:
    """A running Orthanc, asked through its own routes."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.port = free_port()
        config = {
            "Name": "fewlabel-test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "RemoteAccessAllowed": False,
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "Plugins": PLUGINS,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "storage").mkdir()
        (folder / "orthanc.json").write_text(json.dumps(config))
        self.log = folder / "orthanc.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([ORTHANC, folder / "orthanc.json"], stdout=log, stderr=log)

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"Authorization": f"Basic {login}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return bool(self.ask("/system"))
        return False

    def files(self, modality: str) -> list[pydicom.Dataset]:
        query = {"Level": "Instance", "Query": {"Modality": modality}}
        found = json.loads(self.ask("/tools/find", json.dumps(query).encode()))
        return [
            pydicom.dcmread(pydicom.filebase.DicomBytesIO(self.ask(f"/instances/{instance}/file"))) for instance in found
        ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """Orthanc with two series, the proxy before it, and a server on both."""
    folder = tmp_path_factory.mktemp("dicomweb")
    orthanc = Orthanc(folder)
    process = None
    try:
        until(orthanc.is_ready, 60)
        series = {}
        for case in CASES:
            for path in sorted((SHARED / "derived_geometry" / case).iterdir()):
                orthanc.ask("/instances", path.read_bytes())
                series[case] = pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID
        proxy = CuttingProxy(orthanc.port)
        secret = folder / "password"
        secret.write_text(f"{PASSWORD}\n")
        command = [PROGRAM, "serve", "--studies", f"http://127.0.0.1:{proxy.port}/dicom-web", "--data", folder / "data"]
        command += ["--port", "0", "--labels", "liver,spleen", "--ahead", "0", "--poll-s", "1"]
        variables = {"MONAI_LABEL_DICOMWEB_USERNAME": USER, "FEWLABEL_DICOMWEB_PASSWORD_FILE": str(secret)}
        log = folder / "server.log"
        with open(log, "w") as out:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, text=True, env={**os.environ, **variables})
        ready = process.stdout.readline() if process.stdout else ""
        address = re.search(r"http://[^ ,]+", ready)
        assert address, log.read_text()
        yield {"orthanc": orthanc, "proxy": proxy, "url": address[0], "series": series, "log": log, "folder": folder}
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        for running in (process, orthanc.process):
            if running and running.poll() is None:
                running.kill()
                running.wait(30)


def test_a_case_from_the_archive_and_back(site: dict, tmp_path: pathlib.Path) -> None:
    client = MONAILabelClient(site["url"], tmpdir=str(tmp_path), client_id="python-test")
    orthanc, proxy = site["orthanc"], site["proxy"]
    counts = counted(site["url"])
    assert (counts["total"], counts["completed"]) == (len(CASES), 0)
    assert not list((site["folder"] / "data").glob("dicomweb/*.zip")), "nothing was fetched for the list"

    # The transfer of the series is cut in the middle once.
    proxy.cut.set()
    sample = client.next_sample("first", {})
    assert proxy.cuts == 1
    uid = sample["id"]
    case = next(case for case, series in site["series"].items() if series == uid)
    slices = [pydicom.dcmread(path) for path in sorted((SHARED / "derived_geometry" / case).iterdir())]
    # The client has no way to download; Slicer does this by itself.
    image_file = tmp_path / "image.nii.gz"
    with urllib.request.urlopen(f"{site['url']}/datastore/image?image={uid}", timeout=120) as answer:
        image_file.write_bytes(answer.read())
    image = nibabel.load(image_file)
    assert image.shape[2] == len(slices)

    result, params = client.infer("pct-net-s", uid, {})
    proposal = nibabel.load(result)
    assert proposal.shape == image.shape and "liver" in params["label_names"]
    request = urllib.request.Request(f"{site['url']}/infer/pct-net-s?image={uid}&output=dicom_seg", b"", method="POST")
    with urllib.request.urlopen(request, timeout=600) as answer:
        assert answer.headers["Content-Type"] == "application/dicom"
        seg = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(pydicom.filebase.DicomBytesIO(answer.read())))
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert seg.StudyInstanceUID == slices[0].StudyInstanceUID

    # What the clinician sends.
    drawn = numpy.zeros(image.shape, numpy.uint8)
    middle = [n // 2 for n in image.shape]
    drawn[middle[0] - 9 : middle[0] + 4, middle[1] - 7 : middle[1], middle[2] - 1 : middle[2] + 1] = 1
    drawn[2:5, 3:9, 0] = 2
    label_file = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(drawn, image.affine), label_file)
    client.save_label(uid, str(label_file), "final", {})
    assert counted(site["url"])["completed"] == 1

    # It is on the server, and says there what it said here.
    (stored,) = until(lambda: orthanc.files("SEG"))
    assert stored.PatientID == slices[0].PatientID and stored.StudyInstanceUID == slices[0].StudyInstanceUID
    assert stored.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert {item.SegmentAlgorithmType for item in stored.SegmentSequence} == {"SEMIAUTOMATIC"}
    seg = highdicom.seg.Segmentation.from_dataset(stored)
    inverse = numpy.linalg.inv(numpy.diag((-1, -1, 1, 1)) @ image.affine)
    orientation = stored.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = stored.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    found = numpy.zeros_like(drawn)
    known = {slice.SOPInstanceUID for slice in slices}
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID in known
        rows, columns = numpy.nonzero(pixels)
        row, column = numpy.array(orientation[:3], float), numpy.array(orientation[3:], float)
        points = numpy.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        points = points + columns[:, None] * row * float(spacing[1]) + rows[:, None] * column * float(spacing[0])
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        assert numpy.abs(index - index.round()).max() < 0.02
        found[tuple(index.round().astype(int).T)] = number
    assert (found == drawn).all()

    # The next sample is another one, and the label comes back.
    assert client.next_sample("first", {})["id"] != uid
    info = until(lambda: about(site["url"], uid).get("dicomweb"))
    assert info["state"] == "stored" and info["SOPInstanceUID"] == stored.SOPInstanceUID
    again = client.download_label(uid, "final")
    assert (numpy.asarray(nibabel.load(again).dataobj) == drawn).all()
    told = site["log"].read_text()
    assert PASSWORD not in told and str(slices[0].PatientName) not in told


def counted(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/datastore/", timeout=60) as answer:
        return json.load(answer)


def about(url: str, uid: str) -> dict:
    with urllib.request.urlopen(f"{url}/datastore/label/info?label={uid}&tag=final", timeout=60) as answer:
        return json.load(answer)


def test_a_new_series_is_noticed(site: dict) -> None:
    for path in sorted((SHARED / "derived_geometry" / "oblique").iterdir()):
        site["orthanc"].ask("/instances", path.read_bytes())
    until(lambda: counted(site["url"])["total"] == len(CASES) + 1)


def test_a_viewer_behind_the_server(site: dict) -> None:
    uid = site["series"]["baseline"]
    url = f"{site['url']}/proxy/dicom/qido/series?SeriesInstanceUID={uid}"
    request = urllib.request.Request(url, headers={"Accept": "application/dicom+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("application/dicom+json")
        (found,) = json.load(answer)
    assert found["0020000E"]["Value"] == [uid]
