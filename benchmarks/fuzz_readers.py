"""Damaged corpora and pictures through the readers, for as long as wanted: each must come out as rows and rejects, and
as nothing else.

python benchmarks/fuzz_readers.py [--seconds 300] [--seed 0] [--keep FOLDER]

Small real files of every format are flipped, cut, spliced and repeated; half of the time what is inside a gzip, a tar
header or a PNG chunk, with the checksum made right again, so that the damage is not found at the door. A finding is
printed with its traceback and kept below --keep, and makes the exit code 1. The last line of stdout is one JSON record.
The tests use the same mutations, for seconds."""

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from record import print_record

from scalselect_ray.testing.damage import corpora, file_outcome, mutated, picture_outcome, pictures


@dataclass
class Tally:
    """What came out."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    findings: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    dice, tally = random.Random(options.seed), Tally()
    files = corpora()
    seeds = {**files, **pictures()}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < started + options.seconds:
            name = dice.choice(sorted(seeds))
            content = mutated(name, seeds[name], dice)
            begun = time.monotonic()
            try:
                outcome = file_outcome(Path(folder), name, content) if name in files else picture_outcome(content)
            except Exception:
                outcome = "FINDING"
                tally.findings += 1
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{tally.findings:03d}-{name}").write_bytes(content)
                print(f"{name}: {traceback.format_exc()}", file=sys.stderr)
            tally.outcomes[f"{name}: {outcome}"] += 1
            tally.slowest = max(tally.slowest, (time.monotonic() - begun, name))
    print_record(
        "fuzz_readers",
        ("pyarrow", "pillow", "numpy"),
        seed=options.seed,
        seconds=options.seconds,
        inputs=sum(tally.outcomes.values()),
        findings=tally.findings,
        slowest_s=round(tally.slowest[0], 3),
        slowest=tally.slowest[1],
        outcomes=dict(sorted(tally.outcomes.items())),
    )
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
