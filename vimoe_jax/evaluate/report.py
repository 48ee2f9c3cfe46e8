"""The report."""

from pathlib import Path


def write_report(workdir: Path) -> Path:
    """Not yet."""
    return workdir / "report.html"
