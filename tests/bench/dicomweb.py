"""A project on Orthanc: the list of many series, a series that is fetched, its copy, and a result that is stored.

    tests/.venv/bin/python tests/bench/dicomweb.py [--series 1000] [--slices 300] [--repeats 5]

Orthanc runs on this machine with its DICOMweb plugin (Debian: orthanc, orthanc-dicomweb), so the network costs nothing:
what is measured is both programs on one disk.
"""

from __future__ import annotations

import argparse
import base64
import json
import pathlib
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable

import nibabel
import numpy
import pydicom
from pydicom.uid import generate_uid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))

from dicom_read import planes, write  # noqa: E402
from monailabel.client.client import MONAILabelClient  # noqa: E402
from test_dicomweb import PASSWORD, USER, Orthanc, until  # noqa: E402

from pacs import fewlabel, write_series  # noqa: E402


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=600) as answer:
        return answer.read()


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def line(what: str, seconds: list[float]) -> None:
    print(f"{what}: {statistics.median(seconds):.2f} s [{min(seconds):.2f}-{max(seconds):.2f}]", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=1000, help="small ones, for the list")
    parser.add_argument("--slices", type=int, default=300, help="of the series of 512 x 512 that is fetched")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        orthanc = Orthanc(folder)
        try:
            until(orthanc.is_ready, 60)
            measure(folder, orthanc, arguments)
        finally:
            orthanc.process.terminate()
            orthanc.process.wait(60)


def measure(folder: pathlib.Path, orthanc: Orthanc, arguments: argparse.Namespace) -> None:
    write_series(folder / "small", numpy.zeros((1, 16, 16), int), (1.0, 1.0, 1.0))
    small = pydicom.dcmread(folder / "small/0000.dcm")
    for _ in range(arguments.series):
        small.StudyInstanceUID, small.SeriesInstanceUID = generate_uid(), generate_uid()
        small.SOPInstanceUID = small.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        buffer = pydicom.filebase.DicomBytesIO()
        small.save_as(buffer, enforce_file_format=True)
        orthanc.ask("/instances", buffer.getvalue())
    large = []
    different = planes()
    for number in range(arguments.repeats):
        series = folder / f"large_{number}"
        series.mkdir()
        write(series, arguments.slices, "uncompressed", different)
        for path in series.iterdir():
            orthanc.ask("/instances", path.read_bytes())
        large.append(pydicom.dcmread(next(series.iterdir()), stop_before_pixels=True))
    url = f"http://127.0.0.1:{orthanc.port}/dicom-web"
    login = {"MONAI_LABEL_DICOMWEB_USERNAME": USER, "MONAI_LABEL_DICOMWEB_PASSWORD": PASSWORD}
    options = ["--labels", "liver,spleen", "--poll-s", "3600"]
    first = time.perf_counter()
    with fewlabel(folder, url, *options, **login) as (server, _):
        line(f"start of a new project, {arguments.series + arguments.repeats} series listed", [time.perf_counter() - first])
        assert json.loads(fetch(f"{server}/datastore/"))["total"] == arguments.series + arguments.repeats
        ask = urllib.request.Request(f"{server}/datastore/rescan", b"", method="POST")
        again = [timed(lambda: urllib.request.urlopen(ask, timeout=600).read()) for _ in range(arguments.repeats)]
        line("the list again, nothing new", again)

        def plain(header: pydicom.Dataset) -> None:
            path = f"/dicom-web/studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}"
            token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            headers = {"Authorization": f"Basic {token}", "Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
            with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{orthanc.port}{path}", headers=headers)) as answer:
                while answer.read(1 << 20):
                    pass

        line(f"WADO-RS of {arguments.slices} x 512 x 512 by urllib, thrown away", [timed(lambda h=h: plain(h)) for h in large])
        info = "{}/datastore/image/info?image={}"
        image = "{}/datastore/image?image={}"
        uids = [header.SeriesInstanceUID for header in large]
        fetched = [timed(lambda u=u: fetch(image.format(server, u))) for u in uids]
        line("the same as .nii.gz from the server: fetched, checked, kept, read, written", fetched)
        cached = [timed(lambda u=u: fetch(image.format(server, u))) for u in uids]
        line("the same again, from the copy", cached)
        assert json.loads(fetch(info.format(server, uids[0])))
        copies = sum(path.stat().st_size for path in (folder / "data/dicomweb").glob("*.zip"))
        print(f"copies: {copies >> 20} MiB")

        client = MONAILabelClient(server, tmpdir=str(folder), client_id="bench")
        shape = (512, 512, arguments.slices)
        affine = numpy.diag((-0.75, -0.75, 1.25, 1.0))
        affine[:3, 3] = (192, 192, 0)
        drawn = numpy.zeros(shape, numpy.uint8)
        drawn[100:220, 200:330, 40 : arguments.slices - 40] = 1
        drawn[320:390, 210:280, 60 : arguments.slices - 60] = 2
        nibabel.save(nibabel.Nifti1Image(drawn, affine), folder / "drawn.nii.gz")
        submitted, stored = [], []
        for number, uid in enumerate(uids, 1):
            start = time.perf_counter()
            client.save_label(uid, str(folder / "drawn.nii.gz"), "final", {})
            submitted.append(time.perf_counter() - start)
            until(lambda n=number: count(orthanc) >= n)
            stored.append(time.perf_counter() - start)
        line("a label is submitted and safe", submitted)
        line("and is on Orthanc as Segmentation object", stored)


def count(orthanc: Orthanc) -> int:
    query = {"Level": "Series", "Query": {"Modality": "SEG"}}
    return len(json.loads(orthanc.ask("/tools/find", json.dumps(query).encode())))


if __name__ == "__main__":
    main()
