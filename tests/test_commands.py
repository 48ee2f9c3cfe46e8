"""Every command of the package: the same contract for its options."""

import ast
import dataclasses
import importlib
import sys
from pathlib import Path

import pytest

from vimoe_jax.base import cli
from vimoe_jax.base.errors import UserError

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vimoe_jax"
SEVERAL = "coordinator num_processes process_id initialization_timeout"


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a command is known to take: names of options, with spaces between them."""

    needed: dict[str, str]
    optional: str
    integers: str = ""
    flags: str = ""
    configured: bool = True
    bare_code: int = 0


COMMANDS = {
    "main": Expected(
        {"config": "c.py"},
        f"workdir stopped_code plan topology out {SEVERAL}",
        integers="stopped_code num_processes process_id initialization_timeout",
        flags="plan",
        bare_code=2,
    ),
    "evaluate": Expected(
        {"workdir": "w"},
        f"split step dataset source {SEVERAL}",
        integers="step num_processes process_id initialization_timeout",
    ),
    "generate": Expected({"workdir": "w"}, "image question step", integers="step"),
    "upcycle": Expected(
        {"source": "s", "config": "c.py", "workdir": "w"},
        "step fresh_optimizer method router_init noise drop_fraction shared_units samples",
        integers="step shared_units samples",
        flags="fresh_optimizer",
    ),
    "hf.load": Expected(
        {"source": "s", "workdir": "w"}, "image_size dtype", integers="image_size", bare_code=2
    ),
    "hf.export": Expected(
        {"workdir": "w", "out": "o"}, "step dtype push", integers="step", configured=False
    ),
    "data.prepare": Expected(
        {"dataset": "jsonl"},
        "data_dir source variant max_bad annotations_only drop_leaked tokenizer",
        integers="max_bad",
        flags="annotations_only drop_leaked",
        configured=False,
    ),
    "data.tokenizer": Expected(
        {"input": "a,b", "vocab_size": "9", "out": "m"}, "", "vocab_size", configured=False
    ),
    "evaluate.report": Expected({"workdir": "w"}, "grid", configured=False, bare_code=2),
}
# These start the same command as a module named above.
ROOMS = {"answer": "generate", "report": "evaluate.report", "text.tokenizers": "data.tokenizer"}

every = pytest.mark.parametrize("name", COMMANDS)


def command(name) -> cli.Command:
    path = f"vimoe_jax.{name}"
    is_room = (PACKAGE / name.replace(".", "/") / "__main__.py").exists()
    return importlib.import_module(f"{path}.__main__" if is_room else path).COMMAND


def given(name, **changes):
    return [f"--{n}={value}" for n, value in (COMMANDS[name].needed | changes).items()]


@pytest.fixture
def refusal(monkeypatch, capsys, tmp_path):
    """Runs a command as a process would, up to its work; gives its one line of stderr."""

    def work(options):
        raise AssertionError(f"the command began to work: {options}")

    def run(name, *words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as e:
            dataclasses.replace(command(name), function=work).run()
        out, err = capsys.readouterr()
        assert e.value.code == 2 and out == "" and err.count("\n") == 1, err
        assert list(tmp_path.iterdir()) == []
        assert err.startswith("error: ")
        return err.removeprefix("error: ").rstrip("\n")

    return run


def test_every_module_that_can_be_started_is_a_command_of_this_table():
    found = set()
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        guards = [n for n in tree.body if isinstance(n, ast.If) and "__name__" in ast.dump(n.test)]
        if guards:
            name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
            found.add(name.removesuffix(".__main__"))
            assert [ast.unparse(line) for line in guards[0].body] == ["COMMAND.run()"], file
    assert found == {*COMMANDS, *ROOMS}
    for room, name in ROOMS.items():
        assert command(room) is command(name)


@every
def test_help_names_every_option(name, capsys):
    expected = COMMANDS[name]
    names = [*expected.needed, *expected.optional.split()]
    for word in ("--help", "-h"):
        assert command(name).main([word]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: python -m vimoe_jax.{name} ")
        listed = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
        listed = [word.partition("=")[0].removeprefix("--") for word in listed]
        fields = ["config.FIELD"] if expected.configured else []
        assert sorted(listed) == sorted([*names, *fields])
    usage = text.partition("\n\n")[0]
    for needed in expected.needed:
        assert f" --{needed}=" in usage
    assert command(name).main([]) == expected.bare_code
    assert capsys.readouterr().out == text


def test_help_of_main_lists_the_fields_of_the_configuration(capsys):
    command("main").main(["--help"])
    text = capsys.readouterr().out
    assert "\n  train.steps = " in text and "\n  model.decoder.moe.num_experts = " in text


@every
def test_what_is_needed_is_enough(name):
    options = command(name).parse(given(name))
    assert options.overrides == () and options.argv == tuple(given(name))


@every
def test_an_unknown_option_names_the_nearest(name, refusal):
    for known in COMMANDS[name].needed:
        wrong = known[:-2] + known[-1]
        said = refusal(name, *given(name), f"--{wrong}=x")
        assert said == f"--{wrong}: no such option (did you mean --{known}?)"
    assert refusal(name, *given(name), "stray") == (
        "stray: not an option; options look like --name=value"
    )


@pytest.mark.parametrize(
    ("name", "option"), [(n, o) for n, e in COMMANDS.items() for o in e.integers.split()]
)
def test_integers_are_ascii_digits(name, option, refusal):
    for text in ("²", "٣", "1.5", "1_0", "x", ""):
        said = refusal(name, *given(name, **{option: text}))
        assert said == f"--{option}: must be a whole number, not {text!r}"
    options = command(name).parse(given(name, **{option: "7"}))
    assert getattr(options if hasattr(options, option) else options.how, option) == 7


@pytest.mark.parametrize(
    ("name", "flag"), [(n, f) for n, e in COMMANDS.items() for f in e.flags.split()]
)
def test_flags(name, flag, refusal):
    for words, value in (([], False), ([f"--{flag}"], True), ([f"--{flag}=false"], False)):
        assert getattr(command(name).parse([*given(name), *words]), flag) is value
    assert refusal(name, *given(name), f"--{flag}=1") == (
        f"--{flag}: must be true or false, not '1'"
    )


@every
def test_fields_of_the_configuration(name, refusal):
    said = refusal(name, *given(name), "--config.nonsense=1")
    if not COMMANDS[name].configured:
        assert said == "--config.nonsense: this command has no configuration"
        return
    assert said.startswith("--config.nonsense: no field nonsense")
    said = refusal(name, *given(name), "--config.train.stps=1")
    assert said == "--config.train.stps: no field train.stps (did you mean 'steps'?)"
    words = ["--config.train.steps=3", "--config.seed", "1"]
    options = command(name).parse([*given(name), *words])
    assert options.overrides == (("train.steps", "3"), ("seed", "1"))


@every
def test_what_is_missing_is_named(name, refusal):
    needed = COMMANDS[name].needed
    for missing in needed:
        words = [f"--{n}={value}" for n, value in needed.items() if n != missing]
        # Without any words there is only help.
        words = words or [f"--{COMMANDS[name].optional.split()[0]}=x"]
        assert refusal(name, *words).startswith(f"--{missing}: needed, ")
        assert refusal(name, *words, f"--{missing}") == (
            f"--{missing}: needs a value, as --{missing}=VALUE"
        )


@every
def test_both_ways_of_writing_a_value(name):
    apart = [word for both in COMMANDS[name].needed.items() for word in (f"--{both[0]}", both[1])]
    one, other = command(name).parse(given(name)), command(name).parse(apart)
    assert dataclasses.replace(other, argv=one.argv) == one


def test_what_the_command_finds_wrong_is_a_user_error():
    with pytest.raises(UserError, match=r"^--config: no such file: c\.py$"):
        command("main").main(given("main"))
