#!/usr/bin/env python3
"""Cross-validation of `fewlabel train` on a labelled folder, with the program itself and the standard library alone.

    tests/bench/hn_oar_folds.py --binary target/release/fewlabel --data ../shared/data/ct/hn_oar \
        --folds 0,1,2 --seeds 1 --train-args "--steps 3000 --ema 0.99" --json OUT.json

Fold k holds out the cases 2k and 2k+1 in the order of their names; training sees a folder without them and chooses
nothing on them. Every fold and seed is trained with `fewlabel train`, applied with `fewlabel infer` and judged with
`fewlabel evaluate`. Printed: Dice per structure and the mean, processor and wall time of training; with --json also the
loss curve.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def case_names(data: Path) -> list[str]:
    """Names of the labelled cases, sorted."""
    suffix = ".nii.gz"
    images = {path.name.removesuffix(suffix) for path in (data / "imagesTr").glob(f"*{suffix}")}
    labels = {path.name.removesuffix(suffix) for path in (data / "labelsTr").glob(f"*{suffix}")}
    return sorted(images & labels)


def split(names: list[str], fold: int) -> tuple[list[str], list[str]]:
    """Cases to learn from and cases that are held out in a fold."""
    held_out = names[2 * fold : 2 * fold + 2]
    if len(held_out) < 2:
        raise SystemExit(f"there is no fold {fold} of {len(names)} cases")
    return [name for name in names if name not in held_out], held_out


def subset(data: Path, names: list[str], folder: Path, annotated: dict[str, list[int]] | None = None) -> Path:
    """A dataset of some cases: links to the files and a dataset.json that knows no others."""
    known = json.loads((data / "dataset.json").read_text())
    entries = {Path(entry["label"]).name.removesuffix(".nii.gz"): entry for entry in known.get("training", [])}
    training = []
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
        for name in names:
            (folder / kind / f"{name}.nii.gz").symlink_to((data / kind / f"{name}.nii.gz").resolve())
    for name in names:
        entry = dict(entries.get(name, {}), image=f"./imagesTr/{name}.nii.gz", label=f"./labelsTr/{name}.nii.gz")
        if annotated is not None:
            entry["annotated_labels"] = annotated[name]
        training.append(entry)
    (folder / "dataset.json").write_text(json.dumps({"labels": known["labels"], "training": training}))
    return folder


def run(command: list[object]) -> tuple[str, float, float]:
    """Standard output of a command, its processor seconds and its wall seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(str(part) for part in command)}\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, processor, time.time() - start


def curve(model: Path) -> list[dict]:
    """Mean loss of each twentieth of the run."""
    lines = [json.loads(line) for line in (model / "training.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    size = max(1, len(steps) // 20)
    parts = [steps[n : n + size] for n in range(0, len(steps), size)]
    return [
        {"step": part[-1]["step"], "loss": sum(line["loss"] for line in part) / len(part), "waiting": part[-1]["waiting"]}
        for part in parts
    ]


def judge(binary: Path, model: Path, data: Path, names: list[str], folder: Path, infer_args: list[str]) -> dict[str, float | None]:
    """Mean Dice per structure of a model on cases."""
    folder.mkdir()
    images = [data / "imagesTr" / f"{name}.nii.gz" for name in names]
    run([binary, "infer", "--model", model, *images, "-o", folder / "found", "--json", *infer_args])
    reference = subset(data, names, folder / "reference")
    out, _, _ = run(
        [binary, "evaluate", "--reference", reference / "labelsTr", "--prediction", folder / "found",
         "--labels", data / "dataset.json", "--json"]
    )
    return json.loads(out)["mean_per_structure"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folds", default="0,1,2")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--train-args", default="", help="further options of fewlabel train, as one string")
    parser.add_argument("--infer-args", default="", help="further options of fewlabel infer, as one string")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything here")
    args = parser.parse_args()
    names = case_names(args.data)
    results = []
    for fold in map(int, args.folds.split(",")):
        learning, held_out = split(names, fold)
        for seed in map(int, args.seeds.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder)
                seen = subset(args.data, learning, work / "learning")
                model = work / "model"
                command = [args.binary, "train", "--data", seen, "--out", model, "--seed", seed, "--val-split", "0"]
                _, processor, wall = run([*command, *shlex.split(args.train_args)])
                dice = judge(args.binary, model, args.data, held_out, work / "judged", shlex.split(args.infer_args))
                known = [value for value in dice.values() if value is not None]
                results.append(
                    {
                        "fold": fold, "seed": seed, "held_out": held_out, "dice": dice, "mean": sum(known) / max(1, len(known)),
                        "processor_s": processor, "wall_s": wall, "curve": curve(model),
                    }
                )
            last = results[-1]
            listed = " ".join(f"{name} {value or 0.0:.3f}" for name, value in last["dice"].items())
            print(f"fold {fold} seed {seed}: mean {last['mean']:.4f} ({listed}); {processor:.0f} processor s, {wall:.0f} s", flush=True)
    mean = sum(result["mean"] for result in results) / len(results)
    structures = results[0]["dice"]
    per_class = {name: sum(result["dice"].get(name) or 0.0 for result in results) / len(results) for name in structures}
    print(f"mean of {len(results)}: {mean:.4f}; " + " ".join(f"{name} {value:.3f}" for name, value in per_class.items()))
    if args.json:
        report = {"train_args": args.train_args, "infer_args": args.infer_args, "mean": mean, "dice": per_class, "runs": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("RUST_BACKTRACE", "0")
    sys.exit(main())
