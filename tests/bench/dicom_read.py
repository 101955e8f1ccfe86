"""Reading a DICOM series of 512 x 512 x 300: seconds and peak memory, beside SimpleITK (GDCM) in the same run.

    cargo bench --bench dicom_read --no-run        # prints the path of the program
    tests/.venv/bin/python tests/bench/dicom_read.py PROGRAM [--slices 300] [--repeats 5]

Each reading is a process of its own, in turns, on files that are in the page cache. `stored` keeps the values in the
type of the file, `float` makes float32 HU of them, as the network needs. Peak memory is that of the process; what the
process has before it reads stands beside it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy
import pydicom
import SimpleITK
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

SIDE = 512
KINDS = ("uncompressed", "RLE", "JPEG lossless", "JPEG 2000")
DIFFERENT = 12
"""Slices whose pixels differ; they come again and again, because packing them takes long."""
READER = """
import json, pathlib, resource, sys, time
import SimpleITK
folder, kind = sys.argv[1:]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start, busy = peak(), time.perf_counter(), time.process_time()
reader = SimpleITK.ImageSeriesReader()
reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(folder))
if kind == "float":
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
image = reader.Execute()
seconds, busy, most = time.perf_counter() - start, time.process_time() - busy, peak()
total = float(SimpleITK.GetArrayViewFromImage(image).sum(dtype="float64"))
print(json.dumps({"seconds": seconds, "processor_s": busy, "before_mib": before, "peak_mib": most, "sum": total}))
"""


def planes() -> list[numpy.ndarray]:
    """A body with lungs and a spine, with the noise of a scanner, in 12 bits."""
    rng = numpy.random.default_rng(1)
    y, x = numpy.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    found = []
    for number in range(DIFFERENT):
        hu = numpy.full((SIDE, SIDE), -1000.0)
        hu[(x / 0.85) ** 2 + (y / 0.6) ** 2 < 1] = 40
        for side in (-1, 1):
            hu[((x - 0.4 * side) / 0.28) ** 2 + (y / (0.4 + 0.01 * number)) ** 2 < 1] = -820
        hu[x**2 + (y - 0.4) ** 2 < 0.01] = 450
        hu += rng.normal(0, 14, hu.shape) * (hu > -990)
        found.append((hu.clip(-1024, 3071) + 1024).astype("<u2"))
    return found


def write(folder: pathlib.Path, slices: int, kind: str, planes: list[numpy.ndarray]) -> None:
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    packed: list[pydicom.Dataset] = []
    for number in range(slices):
        if len(packed) <= number % len(planes):
            image = pydicom.Dataset()
            image.file_meta = pydicom.dataset.FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
            image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
            image.PatientName, image.PatientID, image.Modality = "Bench", "1", "CT"
            image.ImageType, image.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "AXIAL"], [1, 0, 0, 0, 1, 0]
            image.PixelSpacing, image.SliceThickness = [0.75, 0.75], 1.25
            image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = SIDE, SIDE, 1, "MONOCHROME2"
            image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
            image.RescaleIntercept, image.RescaleSlope = -1024, 1
            image.SOPInstanceUID = generate_uid()
            image.PixelData = planes[number].tobytes()
            if kind == "RLE":
                image.compress(RLELossless)
            packed.append(image)
        image = packed[number % len(planes)]
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
        image.InstanceNumber = number + 1
        image.ImagePositionPatient = [-192, -192, 1.25 * number]
        image.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    if kind.startswith("JPEG"):
        pack(folder, kind)


def pack(folder: pathlib.Path, kind: str) -> None:
    """Written again by GDCM, which packs without losses."""
    for path in folder.iterdir():
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        reader.LoadPrivateTagsOn()
        image = reader.Execute()
        writer = SimpleITK.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000" if kind == "JPEG 2000" else "JPEG")
        writer.SetFileName(str(path))
        writer.Execute(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="what cargo bench --bench dicom_read --no-run built")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    different = planes()
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write(folder, arguments.slices, kind, different)
            size = sum(path.stat().st_size for path in folder.iterdir()) >> 20
            print(f"{kind}: {arguments.slices} files, {size} MiB")
            compare(folder, arguments)


def compare(folder: pathlib.Path, arguments: argparse.Namespace) -> None:
    for kind in ("stored", "float"):
        commands = {
            "fewlabel": [arguments.program, folder, kind],
            "SimpleITK": [sys.executable, "-c", READER, folder, kind],
        }
        runs: dict[str, list[dict]] = {who: [] for who in commands}
        for _ in range(arguments.repeats):
            for who, command in commands.items():
                told = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
                runs[who].append(json.loads(told.stdout))
        assert len({run["sum"] for found in runs.values() for run in found}) == 1, "other values"
        for who, found in runs.items():
            seconds = sorted(run["seconds"] for run in found)
            peak, before = max(run["peak_mib"] for run in found), max(run["before_mib"] for run in found)
            busy = statistics.median(run["processor_s"] for run in found)
            print(
                f"  {kind:7} {who:10} {statistics.median(seconds):6.2f} s [{seconds[0]:.2f}-{seconds[-1]:.2f}], "
                f"{busy:.2f} processor s, {peak:5.0f} MiB ({before:.0f} before)"
            )


if __name__ == "__main__":
    main()
