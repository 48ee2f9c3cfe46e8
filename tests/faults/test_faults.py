"""A few of the kills and damages that the scripts beside this file do many of."""

import pytest

from tests.faults import damage, kill, runs


@pytest.fixture(scope="module")
def env(viscenes_dir, tmp_path_factory):
    return runs.environment(viscenes_dir, tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_at_random_moments(env, tmp_path):
    counts = kill.kill_often(tmp_path, env, count=2, seed=3)
    assert not counts.faults
    assert counts.kills == 2 and counts.finished


def test_damaged_at_random_places(tmp_path):
    counts = damage.damage_often(tmp_path, count=4, seed=0)
    assert counts.total() == 16
    assert sum(n for (_, step), n in counts.items() if step == 1) >= 12


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_second_run_in_the_same_workdir_is_refused(env, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "first.log"
    first = runs.start(workdir, env, log)
    try:
        kill.wait(first, lambda: (workdir / "config.json").exists(), 120)
        second = runs.start(workdir, env, tmp_path / "second.log")
        assert second.wait() == 2
        said = (tmp_path / "second.log").read_text()
        assert f"{workdir}: in use by process {first.pid} on" in said
        assert len(said.strip().splitlines()) == 1
    finally:
        first.kill()
        first.wait()
    runs.finish(workdir, env)  # what the dead process held is free
