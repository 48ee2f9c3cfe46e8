"""JobSets against the published schema's fields."""

import importlib.util
from pathlib import Path

import pytest
import yaml

PATH = Path(__file__).parent.parent.parent / "launch/gke.py"
spec = importlib.util.spec_from_file_location("gke", PATH)
gke = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gke)

ARGUMENTS = ["--name=moe", "--image=img:1", "--tpu=v5e", "--topology=4x4", "--claim=shared"]

# What jobset.x-k8s.io/v1alpha2, batch/v1 and core/v1 know, of what a training run may need: a type
# (scalars), a list of one form, or fields by name. None: a map of strings.
TOLERATION = {"key": str, "operator": str, "value": str, "effect": str}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "workingDir": str,
    "env": [{"name": str, "value": str}],
    "resources": {"requests": None, "limits": None},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
POD = {
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": None,
    "tolerations": [TOLERATION],
    "containers": [CONTAINER],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
}
CODES = {"containerName": str, "operator": str, "values": [int]}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": str,
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [{"action": str, "onExitCodes": CODES}]},
    "template": {"metadata": {"annotations": None, "labels": None}, "spec": POD},
}
RULE = {
    "name": str,
    "action": str,
    "onJobFailureReasons": [str],
    "onJobFailureMessagePatterns": [str],
    "targetReplicatedJobs": [str],
}
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str, "annotations": None, "labels": None},
    "spec": {
        "failurePolicy": {"maxRestarts": int, "restartStrategy": str, "rules": [RULE]},
        "successPolicy": {"operator": str, "targetReplicatedJobs": [str]},
        "network": {"enableDNSHostnames": bool, "subdomain": str},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}


def check(value, form, path="jobset"):
    if isinstance(form, dict):
        assert isinstance(value, dict) and value.keys() <= form.keys(), path
        for name, child in value.items():
            check(child, form[name], f"{path}.{name}")
    elif isinstance(form, list):
        assert isinstance(value, list), path
        for child in value:
            check(child, form[0], f"{path}[]")
    elif form is None:
        assert all(isinstance(k, str) for k in value), path
    else:
        assert type(value) is form, path


def rendered(capsys, *more, arguments=("--config=c.py",)):
    assert gke.main([*ARGUMENTS, *more, "--dry-run", "--", *arguments]) == 0
    jobset = yaml.safe_load(capsys.readouterr().out)
    check(jobset, JOBSET)
    return jobset


def test_a_pod_a_machine_and_a_job_a_slice(capsys):
    awkward = ["--config.data.test_splits=('test',)", "a: b # c", "đỏ"]
    jobset = rendered(capsys, "--slices=2", arguments=awkward)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert slices["replicas"] == 2
    assert job["parallelism"] == job["completions"] == 4 and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["command"][:3] == ["python", "-m", "vimoe_jax.main"]
    assert [w for w in container["command"] if w in awkward] == awkward
    assert "--workdir=/shared/runs/moe" in container["command"]


def test_mistakes_end_it_and_all_else_starts_it_again(capsys):
    spec = rendered(capsys, "--max_restarts=3")["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    # Kubernetes takes a policy on exit codes only from pods that are not restarted in place.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["failurePolicy"]["maxRestarts"] == 3
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_spot_and_queue(capsys):
    jobset = rendered(capsys, "--spot", "--queue=tpus")
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpus"}


@pytest.mark.parametrize(
    ("tpu", "topology", "expected"),
    [
        ("v5e", "1x1", (1, 1)),
        ("v5e", "2x4", (1, 8)),
        ("v5e", "16x16", (64, 4)),
        ("v6e", "4x4", (4, 4)),
        ("v4", "2x2x2", (2, 4)),
        ("v5p", "2x2x1", (1, 4)),
    ],
)
def test_machines(tpu, topology, expected):
    assert gke.machines(tpu, topology) == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--topology=4x4x4"], "--topology: v5e has topologies AxB, not '4x4x4'"),
        (["--tpu=v5p"], "--topology: v5p has topologies AxBxC"),
        (["--topology=3x3"], "--topology: 3x3 is no multiple of 4 chips"),
        (["--name=Moe"], "--name: at most 40 of a-z"),
        (["--slices=0"], "--slices and --max_restarts: must be positive"),
    ],
)
def test_mistakes_are_one_line(capsys, more, message):
    assert gke.main([*ARGUMENTS, *more, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
