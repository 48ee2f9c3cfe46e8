"""The launchers without their platforms: what they would run, and what they refuse."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
AWKWARD = "--config.data.test_splits=('test', 'validation')"

VM = ["tpu_vm.sh", "run", "--name=n", "--project=p", "--zone=z"]
XPK = [
    "xpk.sh", "--name=n", "--cluster=c", "--project=p", "--zone=z", "--tpu_type=v5litepod-16",
    "--image=i", "--storage=s", "--mount=/m",
]  # fmt: skip
SLURM = ["slurm.sh", "--name=n", "--nodes=2", "--gpus=4"]


def call(script, *words, code=0):
    shell = script.endswith(".sh")
    line = ["bash" if shell else sys.executable, str(ROOT / "launch" / script), *words]
    # Nothing of a platform is on this path: what ran instead of being shown would fail.
    env = os.environ | {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(line, capture_output=True, text=True, env=env)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed: only bash has read it")
    subprocess.run([checker, script], check=True)


# Each platform's client: takes what the launcher hands it to a "machine" of this folder.
CLIENTS = {
    "gcloud": 'for w; do case $w in --command=*) exec bash -c "${w#--command=}";; esac; done',
    "xpk": 'for w; do case $w in --command=*) exec bash -c "${w#--command=}";; esac; done',
    "sbatch": "exec bash",
    "srun": 'shift; exec "$@"',
    "scontrol": "echo requeued >>scontrol",
    "mountpoint": "exit 0",
    "python": 'printf "%s\\0" "$@" >words.part; mv words.part words; exit "${CODE:-0}"',
}


@pytest.fixture
def machine(tmp_path):
    """A machine's home with clients in `bin` and a checkout whose Python writes its words down."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in CLIENTS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "vimoe/.venv/bin").mkdir(parents=True)
    (tmp_path / "vimoe/.venv/bin/python").symlink_to(folder / "python")
    return tmp_path


def launch(machine, line, *words, **variables):
    script, *own = line
    env = os.environ | {"PATH": f"{machine}/bin:/usr/bin:/bin"} | variables
    command = ["bash", str(ROOT / "launch" / script), *own, "--", *words]
    return subprocess.run(command, cwd=machine, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("line", [VM, XPK, [*SLURM, "--python=python"]], ids=lambda line: line[0])
def test_arguments_survive_every_shell_on_the_way(machine, line):
    done = launch(machine, line, "--config=a b.py", AWKWARD)
    assert done.returncode == 0, done.stderr
    found = machine / ("vimoe/words" if line is VM else "words")
    end = time.monotonic() + 20
    while not found.exists() and time.monotonic() < end:
        time.sleep(0.02)
    words = found.read_text().split("\0")
    assert words[:2] == ["-m", "vimoe_jax.main"]
    assert AWKWARD in words and "--config=a b.py" in words and "--stopped_code=75" in words
    assert any(word.startswith("--workdir=") and word.endswith("/n") for word in words)


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (75, True), (1, True)])
def test_slurm_requeues_what_can_still_succeed(machine, code, again):
    done = launch(machine, [*SLURM, "--python=python"], "--config=c.py", CODE=str(code))
    assert done.returncode == code
    assert (machine / "scontrol").exists() == again


def test_tpu_vm_names_the_slice_in_every_action():
    def shown(action, *words):
        return call("tpu_vm.sh", action, *VM[2:], "--dry-run", *words)

    create = shown("create", "--type=v5litepod-16", "--runtime=v2-alpha-tpuv5-lite", "--spot")
    assert shlex.split(create) == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "n", "--project=p", "--zone=z",
        "--node-id=n", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    ]  # fmt: skip
    assert "describe n " in shown("state")
    assert "--worker=all" in shown("setup", "--share=10.0.0.2:/vimoe")
    assert "--worker=0" in shown("logs") and "TERM" in shown("stop")
    assert "delete n " in shown("delete") and "--force" in shown("delete")


def test_slurm_starts_one_process_a_gpu_and_asks_for_time_to_save():
    out = call(*SLURM, "--partition=gpu", "--dry-run", "--", "--config=c.py")
    first = shlex.split(out.splitlines()[0].removesuffix("<<'EOF'"))
    assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu"} <= {*first}
    assert "--signal=B:TERM@120" in first and "--requeue" in first
    assert "srun --kill-on-bad-exit=1" in out and "scontrol requeue" in out


def test_a_sweep_is_an_array_on_slurm(tmp_path):
    sweep = tmp_path / "sweep.txt"
    sweep.write_text(f'# rates\na-1  "{AWKWARD}"\n\nb --config.train.steps=5 # short\n')
    out = call(
        *SLURM, f"--sweep={sweep}", f"--python={sys.executable}", "--dry-run", "--", "--config=c"
    )
    assert "--array=0-1" in out.splitlines()[0]
    script = out.split("\n", 1)[1].rsplit("EOF\n", 1)[0].split("# One step's failure")[0]
    for index, (name, word) in enumerate([("a-1", AWKWARD), ("b", "--config.train.steps=5")]):
        head = f'{script}printf "%s\\n" "$name" "${{training[@]}}"'
        env = os.environ | {"SLURM_ARRAY_TASK_ID": str(index)}
        done = subprocess.run(["bash", "-c", head], capture_output=True, text=True, env=env)
        words = done.stdout.splitlines()
        assert words[0] == name and word in words and "--config=c" in words


def test_a_sweep_runs_any_launcher_once_a_line(tmp_path):
    sweep = tmp_path / "sweep.txt"
    sweep.write_text(f'one "{AWKWARD}"\ntwo --config.train.steps=5\n')
    local = [sys.executable, str(ROOT / "launch/local.py"), "--num_processes=2", "--"]
    out = call("sweep.py", f"--file={sweep}", "--dry-run", "--", *local, "--config=c.py")
    lines = [shlex.split(line) for line in out.splitlines()]
    assert len(lines) == 4
    assert AWKWARD in lines[0] and "--workdir=runs/one" in lines[1] and "--config=c.py" in lines[2]
    only = call("sweep.py", f"--file={sweep}", "--only=two", "--dry-run", "--", *local)
    assert "runs/one" not in only and "runs/two" in only


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no runs"),
        ("A --x", "sweep.txt:1: not a name"),
        ("a\n\na", "sweep.txt:3: a second 'a'"),
        ("a '", "sweep.txt:1: No closing quotation"),
    ],
)
def test_a_broken_sweep_is_one_line(tmp_path, text, message):
    (tmp_path / "sweep.txt").write_text(text)
    file = f"--file={tmp_path / 'sweep.txt'}"
    stderr = call("sweep.py", file, "--dry-run", "--", "true", code=2)
    assert message in stderr and len(stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["xpk.sh", "--name=n"], "--cluster: needed"),
        (["slurm.sh", "--", "x"], "--name: letters"),
        (["slurm.sh", "--name=n", "--gpus=many", "--", "x"], "--gpus: must be a number"),
        (["slurm.sh", "--name=n"], "which run?"),
        (["tpu_vm.sh", "fly"], "which action?"),
        (["tpu_vm.sh", "state", "--name=n"], "--project: needed"),
        (["tpu_vm.sh", "state", "--nmae=n"], "--nmae=n: no such option"),
    ],
)
def test_mistakes_are_one_line(line, message):
    stderr = call(*line, code=2)
    assert message in stderr and len(stderr.splitlines()) == 1


def test_local_shows_one_command_a_process():
    out = call(
        "local.py", "--num_processes=2", "--devices=4", "--name=n", "--dry-run", "--", AWKWARD
    )
    lines = [shlex.split(line) for line in out.splitlines()]
    assert [line[-1] for line in lines] == ["--process_id=0", "--process_id=1"]
    assert all(AWKWARD in line and "--workdir=runs/n" in line for line in lines)
    assert lines[0][0] == "XLA_FLAGS=--xla_force_host_platform_device_count=4"


def test_local_deals_out_gpus(monkeypatch):
    def places(*more, code=0):
        return call("local.py", "--num_processes=2", *more, "--dry-run", "--", "x", code=code)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first = [shlex.split(line)[0] for line in places("--gpus=2").splitlines()]
    assert first == ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    first = [shlex.split(line)[0] for line in places("--gpus=1").splitlines()]
    assert first == ["CUDA_VISIBLE_DEVICES=5", "CUDA_VISIBLE_DEVICES=GPU-7"]
    assert "4 are needed, CUDA_VISIBLE_DEVICES=5,GPU-7" in places("--gpus=2", code=2)
    assert "not both" in places("--gpus=1", "--devices=1", code=2)
