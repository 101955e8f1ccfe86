#!/usr/bin/env python3
"""What pretraining is worth with few labels: the same code, steps and seeds from pretrained and from random weights.

    tests/bench/volf_vs_scratch.py --binary target/release/fewlabel --data ../shared/data/ct/hn_oar \
        --pretrained MODEL_DIR --labels 1,2,5 --seeds 1,2,3 --steps 1000 --json OUT.json

The last `--held-out` cases in the order of their names judge; of the others, k are drawn by the seed and learned from, the
same ones for both arms: `--init MODEL_DIR`, and `--init MODEL_DIR --from-scratch`. The weights of steps --early and --steps
are judged with `fewlabel infer` and `fewlabel evaluate`; nothing is chosen on the cases that judge. Each point is a run
of its own with the schedule of that many steps. Printed per k and number of steps: mean Dice of both arms, and the mean
difference with its 95 % percentile bootstrap interval over seeds and cases, in all and per structure.
"""

import argparse
import json
import os
import random
import shlex
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hn_oar_folds import case_names, run, subset

ARMS = {"pretrained": [], "scratch": ["--from-scratch"]}
RESAMPLES = 10_000


def judge(binary: Path, model: Path, data: Path, names: list[str], folder: Path) -> dict[str, dict[str, float | None]]:
    """Dice per case and structure."""
    folder.mkdir()
    images = [data / "imagesTr" / f"{name}.nii.gz" for name in names]
    run([binary, "infer", "--model", model, *images, "-o", folder / "found", "--json"])
    reference = subset(data, names, folder / "reference")
    out, _, _ = run(
        [binary, "evaluate", "--reference", reference / "labelsTr", "--prediction", folder / "found",
         "--labels", data / "dataset.json", "--json"]
    )
    return json.loads(out)["cases"]


def draw(pool: list[str], k: int, seed: int) -> list[str]:
    """The cases to learn from."""
    return sorted(random.Random(f"{seed}").sample(pool, k))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def interval(groups: list[list[float]], rng: random.Random) -> list[float]:
    """95 % percentile bootstrap of the mean of all values: groups (seeds) are drawn, then values (cases) of each."""
    groups = [group for group in groups if group]
    if not groups:
        return [float("nan")] * 2
    means = []
    for _ in range(RESAMPLES):
        drawn = [rng.choice(group) for group in rng.choices(groups, k=len(groups)) for _ in group]
        means.append(mean(drawn))
    means.sort()
    return [means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]]


def compare(runs: list[dict], structure: str | None, rng: random.Random) -> dict:
    """Both arms and their difference, for one structure or the mean over structures of each case."""

    def value(case: dict[str, float | None]) -> float | None:
        if structure is not None:
            return case.get(structure)
        known = [dice for dice in case.values() if dice is not None]
        return mean(known) if known else None

    differences, arms = [], {arm: [] for arm in ARMS}
    for one in runs:
        group = []
        for case, found in one["pretrained"].items():
            a, b = value(found), value(one["scratch"][case])
            if a is not None and b is not None:
                group.append(a - b)
                arms["pretrained"].append(a)
                arms["scratch"].append(b)
        differences.append(group)
    flat = [value for group in differences for value in group]
    return {arm: mean(found) for arm, found in arms.items()} | {"difference": mean(flat), "ci95": interval(differences, rng)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, required=True)
    parser.add_argument("--labels", default="1,2,5")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--early", default="200", help="further numbers of steps, for the early part of the curve; may be empty")
    parser.add_argument("--held-out", type=int, default=4, metavar="N")
    parser.add_argument("--train-args", default="", help="further options of fewlabel train for both arms, as one string")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, which share the cores")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    names = case_names(args.data)
    pool, held_out = names[: -args.held_out], names[-args.held_out :]
    points = sorted({int(steps) for steps in args.early.split(",") if steps} | {args.steps})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["RAYON_NUM_THREADS"] = str(max(1, cores // args.jobs))

    def learn(k: int, steps: int, seed: int, arm: str) -> dict[str, dict[str, float | None]]:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            seen = subset(args.data, draw(pool, k, seed), work / "learning")
            command = [args.binary, "train", "--data", seen, "--out", work / "model", "--init", args.pretrained]
            command += [*ARMS[arm], "--steps", steps, "--seed", seed, "--val-split", "0"]
            run([*command, *shlex.split(args.train_args)])
            return judge(args.binary, work / "model", args.data, held_out, work / "judged")

    seeds = [int(seed) for seed in args.seeds.split(",")]
    results, workers = [], ThreadPoolExecutor(args.jobs)
    for k in map(int, args.labels.split(",")):
        for steps in points:
            found = [{arm: workers.submit(learn, k, steps, seed, arm) for arm in ARMS} for seed in seeds]
            runs = [
                {"seed": seed, "learned_from": draw(pool, k, seed)} | {arm: judged.result() for arm, judged in arms.items()}
                for seed, arms in zip(seeds, found, strict=True)
            ]
            rng = random.Random(f"{k} {steps}")
            structures = list(next(iter(runs[0]["scratch"].values())))
            overall = compare(runs, None, rng)
            per_structure = {name: compare(runs, name, rng) for name in structures}
            results.append({"labels": k, "steps": steps, "mean": overall, "structures": per_structure, "runs": runs})
            for name, found in [("mean", overall), *per_structure.items()]:
                low, high = found["ci95"]
                print(
                    f"k={k} steps={steps} {name}: pretrained {found['pretrained']:.3f}, scratch {found['scratch']:.3f}, "
                    f"difference {found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]",
                    flush=True,
                )
            if args.json:
                args.json.write_text(json.dumps({"held_out": held_out, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
