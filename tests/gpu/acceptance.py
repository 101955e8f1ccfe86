"""What the GPU computes beside what the CPU computes, and how fast beside PyTorch. Started by tests/gpu/run.

Correctness: the published outputs (fixtures) in each precision; the crate's own GPU tests (when a test binary is given); a
model that is trained on the GPU, and the Dice of its labels from CPU and GPU. Speed: `fewlabel bench`, and PyTorch on the same
GPU. Every check prints one line; the last line counts, and the exit status is 0 when nothing failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Norm-relative distance to the published outputs. Float32 products are TF32 on tensor units.
BOUNDS = {"f32": 1e-3, "bf16": 1e-2, "f16": 1e-2}
# How far the mean Dice may move with device and precision.
DICE_BOUND = 0.001
STRUCTURES = {"large": (9, 24, 22, 200), "small": (5, 10, 9, 400)}


class Counts:
    """Passed, failed, skipped."""

    def __init__(self) -> None:
        self.passed = self.failed = self.skipped = 0

    def check(self, name: str, good: bool, told: str) -> None:
        self.passed, self.failed = self.passed + good, self.failed + (not good)
        print(f"{'passed' if good else 'FAILED'}: {name}: {told}", flush=True)

    def skip(self, reason: str) -> None:
        self.skipped += 1
        print(f"skipped: {reason}", flush=True)


def call(*command: object, env: dict | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env={**os.environ, **(env or {})})


def reason(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in done.stderr.strip().splitlines() if line]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit status {done.returncode}"])[-1]


def usable(binary: str, device: str) -> tuple[list[str], str]:
    """The precisions that the device computes in, and what it is or why it is none."""
    precisions, told = [], ""
    for precision in BOUNDS:
        done = call(binary, "bench", "--device", device, "--network", "pct-net-s", "--patch", "16,32,32", "--work", "forward",
                    "--repeats", 1, "--precision", precision, "--json")
        if done.returncode == 0:
            precisions.append(precision)
            told = json.loads(done.stdout)["description"]
        elif precision == "f32":
            return [], reason(done)
        else:
            print(f"no {precision}: {reason(done)}", flush=True)
    return precisions, told


def fixtures(counts: Counts, binary: str, device: str, precisions: list[str], folder: Path, quick: bool) -> None:
    cases = sorted(folder.glob("*.pt"))[: 1 if quick else None]
    if not cases:
        counts.skip(f"published outputs: there are none in {folder} (FEWLABEL_SHARED names the folder above fixtures)")
    for case in cases:
        for precision in precisions:
            with tempfile.TemporaryDirectory() as scratch:
                done = call(binary, "convert", case, "--config", case.with_suffix(".json"), "-o", f"{scratch}/model", "--verify",
                            case.with_suffix(".safetensors"), "--device", device, "--precision", precision)
            away = [float(line.split()[-1]) for line in done.stdout.splitlines() if "relative error" in line]
            # Four scales, and on a GPU the finest once more as inference computes it.
            good = done.returncode == 0 and len(away) == (4 if device == "cpu" else 5) and max(away) <= BOUNDS[precision]
            told = f"relative errors {away}, at most {BOUNDS[precision]}" if away else reason(done)
            counts.check(f"{case.stem} in {precision}", good, told)


def own_tests(counts: Counts, tests: str) -> None:
    """The crate's tests that compare each kernel with the CPU's, in a test binary that was built for this GPU."""
    done = call(tests, "gpu_", "--test-threads", 1)
    lines = [line for line in done.stdout.splitlines() if line.startswith("test ")]
    for line in lines:
        if line.startswith("test result"):
            counts.check("the crate's GPU tests", done.returncode == 0, line)
        elif not line.endswith("ok"):
            print(f"  {line}", flush=True)
    if not lines:
        counts.check("the crate's GPU tests", False, reason(done))


def write_nifti(path: Path, shape: tuple[int, int, int], values: list[int]) -> None:
    """Values `[z, y, x]` as signed 16-bit NIfTI-1, 2 x 1.5 x 1.5 mm."""
    d, h, w = shape
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, w, h, d, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1.5, 1.5, 2, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    header[123] = 2
    struct.pack_into("<2h", header, 252, 0, 1)
    for row, vector in enumerate([(1.5, 0, 0, 0), (0, 1.5, 0, 0), (0, 0, 2, 0)]):
        struct.pack_into("<4f", header, 280 + 16 * row, *vector)
    header[344:348] = b"n+1\0"
    path.write_bytes(bytes(header) + struct.pack(f"<{d * h * w}h", *values))


def synthetic_case(seed: int, shape: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    """A body with two structures at random places, in HU, and their labels."""
    draw = random.Random(seed)
    d, h, w = shape
    centres = {
        name: (draw.uniform(0.35, 0.65) * d, draw.uniform(0.3, 0.7) * h, draw.uniform(0.2, 0.4) * w + (k % 2) * 0.4 * w)
        for k, name in enumerate(STRUCTURES)
    }
    image, label = [], []
    noise = [int(draw.gauss(0, 25)) for _ in range(4099)]
    for z in range(d):
        for y in range(h):
            for x in range(w):
                value, hu = 0, 20
                for k, (name, (rz, ry, rx, bright)) in enumerate(STRUCTURES.items(), 1):
                    cz, cy, cx = centres[name]
                    if ((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1:
                        value, hu = k, bright
                u, v = (2 * y / h - 1) / 0.85, (2 * x / w - 1) / 0.95
                hu = hu if value or u * u + v * v < 1 else -1000
                image.append(hu + noise[(z * 977 + y * 131 + x) % len(noise)])
                label.append(value)
    return image, label


def dice_unchanged(counts: Counts, binary: str, device: str, precisions: list[str], quick: bool) -> None:
    """A model trained on the device; its labels of unseen scans from the CPU and from the device."""
    shape, cases, steps = ((24, 64, 64), 5, 40) if quick else ((40, 96, 96), 10, 400)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        for name in ("imagesTr", "labelsTr", "unseen", "reference"):
            (data / name).mkdir()
        training = []
        for n in range(cases):
            unseen = n >= cases - 2
            image, label = synthetic_case(n, shape)
            images, labels = ("unseen", "reference") if unseen else ("imagesTr", "labelsTr")
            write_nifti(data / images / f"case_{n}.nii", shape, image)
            write_nifti(data / labels / f"case_{n}.nii", shape, label)
            if not unseen:
                training.append({"image": f"imagesTr/case_{n}.nii", "label": f"labelsTr/case_{n}.nii"})
        names = {"0": "background"} | {str(k): name for k, name in enumerate(STRUCTURES, 1)}
        (data / "dataset.json").write_text(json.dumps({"labels": names, "training": training}))
        trained = [("f32", "model")] + ([("bf16", "model_bf16")] if "bf16" in precisions else [])
        for precision, model in trained:
            done = call(binary, "train", "--data", data, "--out", data / model, "--steps", steps, "--device", device, "--precision",
                        precision, "--seed", 3)
            told = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else [reason(done)]
            counts.check(f"training in {precision}", done.returncode == 0, " ".join(told))
            if done.returncode != 0:
                return
        scans = sorted((data / "unseen").iterdir())
        dice = {}
        ways = [("cpu", "f32")] + [(device, precision) for precision in precisions]
        for model in [model for _, model in trained]:
            for where, precision in ways:
                out = data / f"{model}_{where}_{precision}".replace(":", "_")
                done = call(binary, "infer", "--model", data / model, *scans, "-o", out, "--device", where, "--precision", precision)
                if done.returncode != 0:
                    counts.check(f"labels on {where} in {precision}", False, reason(done))
                    continue
                told = call(binary, "evaluate", "--reference", data / "reference", "--prediction", out, "--labels", data / "dataset.json",
                            "--json")
                if told.returncode != 0:
                    counts.check(f"labels on {where} in {precision}", False, reason(told))
                    continue
                dice[where, precision] = json.loads(told.stdout)["mean"]
            base = dice.get(("cpu", "f32"))
            for (where, precision), mean in dice.items():
                if where != "cpu" and base is not None:
                    counts.check(f"Dice of {model} in {precision}", abs(mean - base) <= DICE_BOUND, f"{mean:.4f}, on the CPU {base:.4f}")


def table(binary: str, device: str, precisions: list[str], torch: str | None, quick: bool, counts: Counts) -> dict:
    """Prints the table; returns its rows."""
    size = ["--network", "pct-net-s", "--patch", "16,32,32", "--volume", "24,64,64"] if quick else ["--patch", "64,128,128"]
    rows: dict = {}
    for precision in precisions:
        done = call(binary, "bench", "--device", device, "--precision", precision, "--work", "all" if precision != "f16" else "volume",
                    "--repeats", 1 if quick else 3, "--json", *size)
        if done.returncode != 0:
            counts.check(f"bench in {precision}", False, reason(done))
            continue
        told = json.loads(done.stdout)
        if told.get("first_inference"):
            start = told["first_inference"]
            print(f"first inference in {precision}: {start['cold_seconds']:.2f} s cold, {start['warm_seconds']:.2f} s with kept kernels")
        for row in told["results"]:
            work = {"forward": "forward", "training step": "step", "whole scan": "volume"}[row["work"]]
            stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in (row["stages"] or {}).items())
            rows[work, f"fewlabel {precision}"] = row["median_seconds"]
            print(f"| {work} | fewlabel {precision} | {row['median_seconds']:.4f} s | {row['tflops']:.2f} TFLOP/s | {row['gb_per_s']:.0f} GB/s | "
                  f"{100 * row['roofline_share']:.1f} % | {row['device_memory_mib_so_far']} MiB | {stages} |", flush=True)
    for work in ("forward", "step", "volume") if torch else ():
        for runtime in ("eager", "tf32", "autocast", "compiled"):
            done = call(torch, HERE / "torch_gpu.py", runtime, work, "--device", "cpu" if quick else device.split(":")[0],
                        "--repeats", 1 if quick else 3, *size)
            if done.returncode != 0:
                print(f"| {work} | PyTorch {runtime} | not measured: {reason(done)} |", flush=True)
                continue
            told = json.loads(done.stdout.splitlines()[-1])
            rows[work, f"PyTorch {runtime}"] = told["median_seconds"]
            print(f"| {work} | PyTorch {runtime} | {told['median_seconds']:.4f} s | | | | {told['device_memory_mib']} MiB | |", flush=True)
    for work in ("forward", "step", "volume"):
        ours = [seconds for (w, name), seconds in rows.items() if w == work and name.startswith("fewlabel")]
        theirs = [seconds for (w, name), seconds in rows.items() if w == work and name.startswith("PyTorch")]
        if ours and theirs:
            print(f"{work}: {min(ours) / min(theirs):.2f} of the best PyTorch time", flush=True)
    return {f"{work} {name}": seconds for (work, name), seconds in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(HERE.parent.parent / "target/release/fewlabel"))
    parser.add_argument("--tests", help="test binary of the library, built with the same features")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", choices=["check", "bench"])
    parser.add_argument("--torch", help="Python with torch for the GPU; without it there is no comparison")
    parser.add_argument("--quick", action="store_true", help="small sizes: for a try without a GPU")
    parser.add_argument("--json", type=Path, help="write the table's seconds here")
    args = parser.parse_args()
    shared = Path(os.environ.get("FEWLABEL_SHARED", HERE.parent.parent.parent / "shared"))
    counts = Counts()
    for file in filter(None, [args.binary, args.tests]):
        if not (os.path.isfile(file) and os.access(file, os.X_OK)):
            sys.exit(f"there is no program {file}; nothing is built here: bring one that was built with --features cuda (its folder is "
                     "target/release, that of the test binary target/release/deps) and name it with --binary or --tests")
    precisions, told = usable(args.binary, args.device)
    if not precisions:
        # Without a GPU there is nothing to check; a GPU that cannot be used is a failure.
        if "there is no NVIDIA driver" in told or "there is no Vulkan device" in told:
            counts.skip(f"everything: {told}")
            sys.exit(0)
        counts.check(f"the device {args.device}", False, told)
        sys.exit(1)
    if args.device == "cpu":
        precisions = ["f32"]  # what it trains and compares in
    print(f"{told}: {', '.join(precisions)}", flush=True)
    if args.only != "bench":
        fixtures(counts, args.binary, args.device, precisions, shared / "fixtures/pctnet", args.quick)
        if args.tests:
            own_tests(counts, args.tests)
        dice_unchanged(counts, args.binary, args.device, precisions, args.quick)
    if args.only != "check":
        rows = table(args.binary, args.device, precisions, args.torch, args.quick, counts)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
    print(f"{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped")
    sys.exit(counts.failed > 0)


if __name__ == "__main__":
    main()
