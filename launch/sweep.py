"""Runs a launcher once for each line of a file: a sweep over configs and overrides.

    python launch/sweep.py --file=SWEEP [--only=NAME,…] [--keep_going] [--dry-run] -- LAUNCHER …

A line of SWEEP is a name and what it adds to the launcher's command line:

    rate-1e-3  --config.optim.learning_rate=1e-3
    rate-3e-4  --config.optim.learning_rate=3e-4

Each line becomes `LAUNCHER --name=NAME … -- … ADDED`: the launcher's own words and arguments come
from its command line here. Empty lines and lines that begin with # are left out. On Slurm one job
array holds all lines: `launch/slurm.sh --sweep=SWEEP`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the first exit code that is not 0, or 0."""
    argv = list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    o, launcher = _parser().parse_args(argv[:split]), argv[split + 1 :]
    try:
        runs = read(Path(o.file))
        if o.list:
            for name, added in runs.items():
                print(f"{name}\t{shlex.join(added)}")
            return 0
        if not launcher:
            raise ValueError("which launcher? (for example … -- python launch/local.py -- …)")
        wanted = [name for name in o.only.split(",") if name]
        if unknown := set(wanted) - runs.keys():
            raise ValueError(f"--only: {o.file} has no run {sorted(unknown)[0]!r}")
    except (OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    first = 0
    for name, added in runs.items():
        if wanted and name not in wanted:
            continue
        command = compose(launcher, name, added, dry_run=o.dry_run)
        print(f"sweep: {shlex.join(command)}", file=sys.stderr, flush=True)
        code = subprocess.run(command).returncode
        first = first or code
        if code and not o.keep_going:
            break
    return first


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", required=True)
    parser.add_argument("--only", default="", help="names of runs, all if not given")
    parser.add_argument("--keep_going", action="store_true", help="after a run that failed")
    parser.add_argument("--list", action="store_true", help="names and quoted words, no more")
    parser.add_argument("--dry-run", action="store_true", help="only what the launcher would run")
    return parser


def read(path: Path) -> dict[str, list[str]]:
    """Runs by name: what each adds.

    Raises:
      ValueError: a line without a name, or a name twice.
    """
    runs: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as e:
            raise ValueError(f"{path}:{number}: {e}") from None
        if not words:
            continue
        name, *added = words
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
            raise ValueError(f"{path}:{number}: not a name (a-z, 0-9 and -, 40 at most): {name!r}")
        if name in runs:
            raise ValueError(f"{path}:{number}: a second {name!r}")
        runs[name] = added
    if not runs:
        raise ValueError(f"{path}: no runs")
    return runs


def compose(launcher: Sequence[str], name: str, added: Sequence[str], *, dry_run: bool) -> list:
    """The launcher's command of one run."""
    split = launcher.index("--") if "--" in launcher else len(launcher)
    own = [*launcher[:split], f"--name={name}", *(["--dry-run"] if dry_run else [])]
    return [*own, "--", *launcher[split + 1 :], *added]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
