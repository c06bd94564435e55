"""Attacks and faults with random seeds, and a table of what held: a longer run than the tests have time for.

    python tests/torture --seed 0 --minutes 20 --only kills,zips

Each class of attacks gets its share of the minutes and makes trials until that is used up or it has made enough of them.
A trial follows from class, seed and number alone (but for the moments at which the machine does things), so that
`--only zips --seed 0 --number 17` makes that one again, says all that its commands said, and leaves its folder."""
import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median

for name in ("OMP", "OPENBLAS", "MKL"): os.environ[f"{name}_NUM_THREADS"] = "1"  # a process with threads cannot be forked
os.environ["TQDM_DISABLE"] = "1"  # bars are for terminals
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import faults  # noqa: E402
import hostile  # noqa: E402
from made import Made  # noqa: E402
from trial import Failed, Skipped, Trial, shown  # noqa: E402


@dataclass
class Class:
    "A kind of attack."
    name: str
    attack: Callable[[Trial], None]
    weight: float  # of its share of the time
    most: int      # trials


CLASSES = [Class("bundles", hostile.bundles, 2, 500), Class("descriptions", hostile.descriptions, 2, 500),
           Class("controls", hostile.controls, 1, 60), Class("zips", hostile.zips, 2, 300),
           Class("annotations", hostile.annotations, 1, 100), Class("images", hostile.images, 2, 30),
           Class("kills", faults.kills, 4, 200), Class("together", faults.together, 2, 60), Class("disk", faults.disk, 2, 100),
           Class("taken", faults.taken, 1, 44), Class("sigint", faults.sigint, 2, 150)]


def warm() -> None:
    "Import everything once: a trial is a forked child of this process and begins at once."
    for path in sorted((ROOT / "course_lib").glob("[!_]*.py")):
        if path.stem not in ("notebooks", "figures"): import_module(f"course_lib.{path.stem}")
    for name in ("torch.utils.tensorboard", "torchmetrics.detection"): import_module(name)


def attempt(one: Class, seed: int, number: int, root: Path, made: Made) -> tuple[str, str, Trial]:
    "Make a trial: ('held' | 'failed' | 'skipped', why, the trial)."
    folder = Path(tempfile.mkdtemp(prefix=f"{one.name}-{number}-", dir=root))
    trial = Trial(one.name, seed, number, folder, made)
    try: one.attack(trial)
    except Failed as why: return "failed", str(why), trial
    except Skipped as why: return "skipped", str(why), trial
    return "held", "", trial


def torture(one: Class, args, seconds: float, root: Path, made: Made) -> Counter:
    "Trials of a class until its time is up; print its row, what was skipped, and a line for each failure."
    began, counts, lines, notes, skips = time.monotonic(), Counter(), [], [], set()
    numbers = range(min(one.most, args.trials or one.most)) if args.number is None else [args.number]
    for number in numbers:
        if counts and time.monotonic() - began > seconds: break
        kind, why, trial = attempt(one, args.seed, number, root, made)
        counts.update([kind, "tried"])
        notes += trial.notes
        if kind == "failed": lines.append(f"  {trial.kind}: {why}\n    again: python tests/torture --only {one.name} --seed {args.seed} --number {number}")
        if kind == "skipped": skips.add(why)
        if args.number is None: shutil.rmtree(trial.folder.parent, ignore_errors=True)
        else: told(trial)
    row = "".join(f"{counts[name]:>8}" for name in ("tried", "held", "failed", "skipped"))
    print(f"{one.name:<13}{row}{time.monotonic() - began:>8.0f} s")
    if notes: print(f"  median {median(notes):.2f} s, longest {max(notes):.2f} s until it had stopped")
    for why in sorted(skips): print(f"  skipped: {why}")
    for line in lines: print(line)
    sys.stdout.flush()
    return counts


def told(trial: Trial) -> None:
    "All that the commands of a trial said."
    for child in trial.ran:
        print(f"  $ course {shown(child.words)}")
        for path in child.logs: print(shown_lines(path), end="")
    print(f"  left as it is: {trial.folder.parent}")


def shown_lines(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")[:5000]
    return "".join(f"    {line.encode('unicode_escape').decode()}\n" for line in text.splitlines())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    parser.add_argument("--minutes", type=float, default=20, help="for all classes together (default: 20)")
    parser.add_argument("--only", default=",".join(one.name for one in CLASSES), help="classes, joined by commas (default: %(default)s)")
    parser.add_argument("--trials", type=int, help="at most so many of each class")
    parser.add_argument("--number", type=int, help="make this trial alone, and leave its folder")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - {one.name for one in CLASSES}: parser.error(f"no class {', '.join(unknown)}")
    return args


def main() -> int:
    "1 if anything failed."
    if not hasattr(os, "fork"): sys.exit("torture: trials are forked, which this system cannot do")
    args, total = arguments(), Counter()
    chosen = [one for one in CLASSES if one.name in args.only.split(",")]
    until = time.monotonic() + 60 * args.minutes
    warm()
    print(f"{f'seed {args.seed}':<13}" + "".join(f"{name:>8}" for name in ("tried", "held", "failed", "skipped", "time")))
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        made = Made(root)
        for i, one in enumerate(chosen):
            share = one.weight / sum(other.weight for other in chosen[i:])
            total += torture(one, args, share * (until - time.monotonic()), root, made)
    finally:
        if args.number is None: shutil.rmtree(root, ignore_errors=True)
    print(f"{'all':<13}" + "".join(f"{total[name]:>8}" for name in ("tried", "held", "failed", "skipped")))
    return 1 if total["failed"] else 0


if __name__ == "__main__": sys.exit(main())
