"""The training step compiled for a machine that is not there; nothing runs.

    python -m vimoe_jax.main --config=configs/moe_10b.py --plan --topology=v5p:8x8x4 [--out=F.json]

TPUs' compiler comes with libtpu (requirements-plan.txt) and needs no TPU. Without a GPU, programs
for GPUs are compiled for as many CPU devices: what is split and sent is the same, the memory and
its traffic are an approximation. No array of the model's size is ever made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vimoe_jax.config import Config
    from vimoe_jax.plan.report import Plan


def main(config: Config, topology: str = "", out: str = "") -> int:
    """Prints the plan, and writes it as JSON if `out` names a file.

    Returns:
      1 if the step does not fit into the machine's memory, else 0.

    Raises:
      UserError: the topology, the mesh or the batch do not go together, a part is not installed, or
        `out` cannot be written.
    """
    from vimoe_jax.base.files import write_json
    from vimoe_jax.plan import report

    found = make(config, topology)
    print(report.text(found), flush=True)
    if out:
        write_json(out, report.to_dict(found))
    return 0 if found.fits else 1


def make(config: Config, topology: str = "", *, others: bool = True) -> Plan:
    """Compiles the step for a machine and reads what it would do there.

    Args:
      config: whose step.
      topology: "v5p:8x8x4", "h100:8"; "" for the devices at hand.
      others: whether to estimate other settings too.

    Raises:
      UserError: as `main`.
    """
    from vimoe_jax.plan import planner

    return planner.make(config, topology, others=others)
