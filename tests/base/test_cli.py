"""Commands: how words become typed options, and what is said about those that do not."""

import dataclasses
import sys
from pathlib import Path

import pytest

from vimoe_jax.base import cli, schema, values
from vimoe_jax.base.errors import UserError


@dataclasses.dataclass(frozen=True)
class Model:
    width: int = schema.field(8, "Of the model.")
    names: dict[str, int] = schema.field({}, "By name.")


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = schema.field(0, "Of all.")
    model: Model = schema.field(Model(), "The model.")


@dataclasses.dataclass(frozen=True)
class Method:
    kind: str = schema.field("copy", "Which one.", schema.one_of("copy", "noise"))
    units: int = schema.field(-1, "How many.", schema.at_least(-1))
    noise: float = schema.field(0.5, "How much.", schema.between(0, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    workdir: Path = cli.option(values.path, "DIR", "the run's folder; it must exist")
    step: int | None = cli.option(
        values.whole, "N", "which checkpoint", schema.at_least(1), default=None
    )
    code: int = cli.option(values.whole, "N", "exit code", schema.between(0, 255), default=0)
    files: tuple[Path, ...] = cli.option(values.paths, "FILE[,FILE…]", "texts", default=())
    dtype: str = cli.option(values.one_of("float32", "bfloat16"), "NAME", "type", default="float32")
    question: str = cli.option(str, "TEXT", "what is asked", default="")
    quiet: bool = cli.flag("prints nothing")
    how: Method = cli.group(Method)
    process: int = cli.option(values.whole, "I", "which one", default=0, heading="Several")


def command(function=lambda options: 0, **more):
    return cli.Command("vimoe_jax.some", Options, function, "Does something.", **more)


def parse(*words, config=Config):
    return command(config=config).parse(["--workdir=w", *words])


def complaint(*words, config=Config):
    with pytest.raises(UserError) as e:
        parse(*words, config=config)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_words_become_typed_values():
    words = [
        "--step=12", "--code", "3", "--files=a,b,", "--dtype", "bfloat16", "--question=a = b?",
        "--quiet", "--noise=1e-1", "--units", "-1", "--process=2",
    ]  # fmt: skip
    assert parse(*words) == Options(
        argv=("--workdir=w", *words), workdir=Path("w"), step=12, code=3,
        files=(Path("a"), Path("b")), dtype="bfloat16", question="a = b?", quiet=True,
        how=Method("copy", -1, 0.1), process=2,
    )  # fmt: skip
    assert parse() == Options(argv=("--workdir=w",), workdir=Path("w"))


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().step = 3


@pytest.mark.parametrize(
    ("words", "quiet"),
    [
        ((), False), (("--quiet",), True), (("--quiet=true",), True), (("--quiet=False",), False),
        (("--quiet", "false"), False), (("--quiet", "--code=1"), True),
    ],
)  # fmt: skip
def test_flags(words, quiet):
    assert parse(*words).quiet is quiet


def test_the_last_of_two_counts():
    options = parse("--step=1", "--step", "2", "--config.seed=1", "--config.seed=2", "--workdir=v")
    assert (options.step, options.workdir) == (2, Path("v"))
    assert options.overrides == (("seed", "1"), ("seed", "2"))  # applied in this order


def test_overrides_keep_their_order_and_texts():
    options = parse("--config.model.width", "3", "--config.seed=-1", "--config.model.names.a=x=y")
    assert options.overrides == (("model.width", "3"), ("seed", "-1"), ("model.names.a", "x=y"))


@pytest.mark.parametrize("text", ["²", "٣", "1_0", "+1", "-1", "1.0", " 1", "", "1e2", "9" * 5000])
def test_whole_numbers_are_ascii_digits(text):
    assert complaint(f"--step={text}") == f"--step: must be a whole number, not {text!r}"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--step=0", "--step: must be at least 1, not '0'"),
        ("--code=256", "--code: must be between 0 and 255, not '256'"),
        ("--units=²", "--units: must be a whole number, not '²'"),
        ("--units=-2", "--units: must be at least -1, not '-2'"),
        ("--noise=much", "--noise: must be a number, not 'much'"),
        ("--noise=nan", "--noise: must be a number, not 'nan'"),
        ("--noise=1e999", "--noise: must be a finite number, not '1e999'"),
        ("--kind=coppy", "--kind: must be one of 'copy', 'noise' (did you mean 'copy'?), not"),
        ("--dtype=float3", "--dtype: must be one of float32, bfloat16 (did you mean float32?), n"),
        ("--files=,", "--files: must be a path, or several with commas between them, not ','"),
        ("--workdir=", "--workdir: must be a path, not ''"),
        ("--quiet=yes", "--quiet: must be true or false, not 'yes'"),
        ("--quiet=", "--quiet: must be true or false, not ''"),
        ("--step", "--step: needs a value, as --step=VALUE"),
        ("--config.seed", "--config.seed: needs a value, as --config.seed=VALUE"),
    ],
)
def test_wrong_values_name_the_option(word, said):
    assert complaint(word).startswith(said)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--stp=3", "--stp: no such option (did you mean --step?)"),
        ("-step=3", "-step: no such option (did you mean --step?)"),
        ("--work=x", "--work: no such option (did you mean --workdir?)"),  # no abbreviations
        ("--quie", "--quie: no such option (did you mean --quiet?)"),
        ("--model.width=3", "--model.width: no such option (did you mean --config.model.width?)"),
        ("--zzz", "--zzz: no such option"),
        ("-x", "-x: no such option"),
        ("runs/x", "runs/x: not an option; options look like --name=value"),
        ("--config.sed=1", "--config.sed: no field sed (did you mean 'seed'?)"),
        ("--config.=1", "--config.: no field "),
        ("--config.model.wdth=1", "--config.model.wdth: no field model.wdth (did you mean 'wid"),
        ("--config.seed.x=1", "--config.seed.x: seed has no fields of its own"),
    ],
)
def test_unknown_words_name_the_nearest(word, said):
    assert complaint(word).startswith(said)
    assert complaint("--code=1", word, "--step=2").startswith(said)


def test_without_a_configuration():
    said = complaint("--config.seed=1", config=None)
    assert said == "--config.seed: this command has no configuration"
    assert complaint("--seed=1", config=None) == "--seed: no such option"


def test_what_is_needed_is_explained():
    with pytest.raises(UserError, match=r"^--workdir: needed, the run's folder$"):
        command().parse(["--step=1"])


def test_a_value_that_begins_with_a_dash():
    assert parse("--question=-x").question == "-x"
    assert parse("--units", "-1").how.units == -1
    assert complaint("--question", "-x") == "--question: needs a value, as --question=VALUE"
    assert complaint("--step", "--code=1") == "--step: needs a value, as --step=VALUE"


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--stp", "--help"]])
def test_help(words, capsys):
    assert command(config=Config, more=lambda: "Fields:\n  seed").main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m vimoe_jax.some --workdir=DIR [--step=N] ")
    assert "[--quiet]" in text and "[--config.FIELD=VALUE …]" in text.partition("\n\n")[0]
    assert "\n\nDoes something.\n\n  --workdir=DIR           the run's folder; it must" in text
    assert "  --noise=N               How much (0.5 if not given)\n" in text
    assert "  --code=N                exit code (0 if not given)\n" in text
    assert "\nSeveral:\n\n  --process=I " in text
    assert "of an option given twice, the last value counts" in text
    assert text.endswith("Fields:\n  seed\n")
    assert max(map(len, text.splitlines())) <= 100


def test_help_without_a_configuration(capsys):
    assert command().main(["-h"]) == 0
    assert "config" not in capsys.readouterr().out


def test_no_words_print_the_help_too(capsys):
    assert command().main([]) == 0
    assert command(bare_code=2).main([]) == 2
    assert capsys.readouterr().out.count("usage:") == 2


def ended(monkeypatch, what, *words):
    monkeypatch.setattr(sys, "argv", ["some", *words])
    with pytest.raises(SystemExit) as e:
        what.run()
    return e.value.code


def test_run_ends_the_process(monkeypatch, capsys):
    seen = []

    def work(options):
        seen.append(options.step)
        return 7

    assert ended(monkeypatch, command(work), "--workdir=w", "--step=3") == 7
    assert ended(monkeypatch, command(work), "--workdir=w", "--step=²") == 2
    assert seen == [3]
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: --step: must be a whole number, not '²'\n")


def test_errors_of_the_work_end_alike(monkeypatch, capsys):
    def work(options):
        raise UserError("data.jsonl:3: broken")

    assert ended(monkeypatch, command(work), "--workdir=w") == 2
    assert capsys.readouterr().err == "error: data.jsonl:3: broken\n"


def test_an_interrupt(monkeypatch, capsys):
    def work(options):
        raise KeyboardInterrupt

    again = command(work, interrupted="interrupted; go on")
    assert ended(monkeypatch, again, "--workdir=w") == 130
    assert capsys.readouterr().err == "\ninterrupted; go on\n"
    monkeypatch.setattr(sys, "argv", ["some", "--workdir=w"])
    with pytest.raises(KeyboardInterrupt):
        command(work).run()
