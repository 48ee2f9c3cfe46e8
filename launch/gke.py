"""Runs one training run on TPU slices of a GKE cluster, as a JobSet.

    python launch/gke.py --name=NAME --image=IMAGE --tpu=v5e --topology=4x4 [--slices=1]
        --claim=CLAIM [--namespace=default] [--queue=QUEUE] [--spot] [--max_restarts=10]
        [--dry-run] -- --config=FILE …

What follows `--` goes to vimoe_jax.main. CLAIM is a PersistentVolumeClaim that all pods may write;
it is mounted at /shared, and the run lies in /shared/runs/NAME. --dry-run prints the JobSet instead
of handing it to kubectl.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

# GKE's name of each TPU, and the chips of a machine of a slice of several machines.
TPUS = {
    "v4": ("tpu-v4-podslice", 4),
    "v5e": ("tpu-v5-lite-podslice", 4),
    "v5p": ("tpu-v5p-slice", 4),
    "v6e": ("tpu-v6e-slice", 4),
}
_FLAT = ("v5e", "v6e")  # two dimensions; one machine may hold up to eight chips


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    argv = list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    o = _parser().parse_args(argv[:split])
    try:
        jobset = render(o, argv[split + 1 :])
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    text = to_yaml(jobset)
    command = ["kubectl", "--namespace", o.namespace, "apply", "--filename", "-"]
    if o.dry_run:
        print(f"# {shlex.join(command)} <<'EOF'\n{text}# EOF")
        return 0
    return subprocess.run(command, input=text, text=True).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("name", "image", "topology", "claim"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tpu", required=True, choices=list(TPUS))
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--queue", default="", help="a Kueue LocalQueue")
    parser.add_argument("--spot", action="store_true")
    parser.add_argument("--max_restarts", type=int, default=10)
    parser.add_argument("--dry-run", action="store_true")
    return parser


def render(o: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """The JobSet: one job a slice, one pod a machine.

    Raises:
      ValueError: a name or topology that GKE does not take.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", o.name):
        raise ValueError(
            f"--name: at most 40 of a-z, 0-9 and -, beginning with a letter, not {o.name!r}"
        )
    if o.slices < 1 or o.max_restarts < 0:
        raise ValueError("--slices and --max_restarts: must be positive")
    hosts, chips = machines(o.tpu, o.topology)
    metadata: dict[str, Any] = {
        "name": o.name,
        # A slice's pods go to one node pool, and no other run's pods with them.
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    if o.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": o.queue}
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod's end is all pods' end: the JobSet starts all again
        "template": {"spec": _pod(o, arguments, chips)},
    }
    # Exit code 2 is a mistake in the configuration: no restart mends it.
    job["podFailurePolicy"] = {
        "rules": [
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": "train", "operator": "In", "values": [2]},
            }
        ]
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": o.max_restarts,
                "rules": [
                    {
                        "name": "mistakes",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "successPolicy": {"operator": "All"},
            "replicatedJobs": [
                {"name": "slice", "replicas": o.slices, "template": {"spec": job}},
            ],
        },
    }


def machines(tpu: str, topology: str) -> tuple[int, int]:
    """How many machines a slice has, and how many chips each.

    Raises:
      ValueError: not a topology.
    """
    dimensions = 2 if tpu in _FLAT else 3
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), topology):
        shape = "x".join("ABC"[:dimensions])
        raise ValueError(f"--topology: {tpu} has topologies {shape}, not {topology!r}")
    chips = math.prod(int(n) for n in topology.split("x"))
    each = TPUS[tpu][1]
    if tpu in _FLAT and chips <= 8:  # 1x1, 2x2, 2x4: one machine of so many chips
        return 1, chips
    if chips % each:
        raise ValueError(f"--topology: {topology} is no multiple of {each} chips, a machine's")
    return chips // each, each


def _pod(o: argparse.Namespace, arguments: Sequence[str], chips: int) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": TPUS[o.tpu][0],
        "cloud.google.com/gke-tpu-topology": o.topology,
    }
    if o.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    own = [f"--workdir=/shared/runs/{o.name}", "--stopped_code=75"]  # stopped is not done
    command = ["python", "-m", "vimoe_jax.main", *arguments, *own]
    container = {
        "name": "train",
        "image": o.image,
        "command": command,
        "workingDir": "/shared",
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "resources": {"requests": {"google.com/tpu": chips}, "limits": {"google.com/tpu": chips}},
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,  # to save a checkpoint after SIGTERM
        "nodeSelector": selector,
        "tolerations": [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": o.claim}}],
    }


def to_yaml(value: Any, indent: int = 0) -> str:
    """Dicts, lists and scalars as block-style YAML; strings as JSON has them, which YAML reads."""
    pad = "  " * indent
    if isinstance(value, dict):
        lines = [f"{pad}{_key(k)}:{_child(v, indent + 1)}" for k, v in value.items()]
    else:
        lines = []
        for item in value:
            if isinstance(item, dict):
                text = to_yaml(item, indent + 1)
                lines.append(f"{pad}- {text[len(pad) + 2 :]}")
            else:
                lines.append(f"{pad}- {json.dumps(item, ensure_ascii=False)}\n")
    return "".join(lines)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z][\w./-]*", name) else json.dumps(name)


def _child(value: Any, indent: int) -> str:
    if isinstance(value, dict | list) and value:
        return "\n" + to_yaml(value, indent)
    return f" {json.dumps(value, ensure_ascii=False)}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
