"""Commands: their options declared once, and one way to parse, to explain and to end.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options(cli.Options):
        workdir: Path = cli.option(values.path, "DIR", "the run's folder")
        step: int | None = cli.option(values.whole, "N", "which checkpoint", default=None)
        quiet: bool = cli.flag("prints nothing")

    def execute(options: Options) -> int:
        ...

    COMMAND = cli.Command("vimoe_jax.something", Options, execute, __doc__)
    main = COMMAND.main

    if __name__ == "__main__":
        COMMAND.run()

`--name=value` and `--name value` are the same. An option is never abbreviated; of an option given
twice, the last value counts. A flag alone is true, `--quiet=false` is false. `--config.FIELD=VALUE`
overrides a field of the configuration, where the command has one. Whatever is wrong with the words
is a `UserError` of one line that names the option, before the command has done anything.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from vimoe_jax.base import schema, values
from vimoe_jax.base.errors import UserError, exit_on_user_error

_HELP = ("-h", "--help")
_WIDTH, _INDENT = 100, 26
_RULES = (
    "`--name VALUE` is the same as `--name=VALUE`; of an option given twice, the last value counts."
)


@dataclasses.dataclass(frozen=True)
class _Option:
    """One declared option.

    Attributes:
      name: without the dashes.
      parser: of its text.
      shown: what stands for the value in the help: DIR, N.
      meaning: for the help; up to the first ";" also for the error when it is missing.
      checks: what the value must fulfil beyond.
      default: its value if it is not given; `dataclasses.MISSING` if it must be given.
      heading: of its group in the help.
      owner: the field of the options' class that the value goes into, if it is a `group`.
    """

    name: str
    parser: values.Parser
    shown: str
    meaning: str
    checks: tuple[schema.Check, ...]
    default: Any
    heading: str = ""
    owner: str = ""

    @property
    def needed(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def word(self) -> str:
        """How it is written: `--name=VALUE`, `--flag`."""
        return f"--{self.name}" + ("" if self.parser is values.boolean else f"={self.shown}")


def option(
    parser: values.Parser,
    shown: str,
    meaning: str,
    *checks: schema.Check,
    default: Any = dataclasses.MISSING,
    heading: str = "",
) -> Any:
    """A field of an options' class that is an option of the command.

    Args:
      parser: of its text: `values.whole`, `values.path`, `str`, `values.one_of(…)`, ….
      shown: what stands for the value in the help: DIR, N.
      meaning: for the help; up to the first ";" also for the error when it is missing.
      checks: of `vimoe_jax.base.schema`: `at_least(1)`, `between(0, 255)`, ….
      default: its value if it is not given; without a default it must be given.
      heading: of its group in the help.
    """
    declared = _Option("", parser, shown, meaning, checks, default, heading)
    return dataclasses.field(default=default, metadata={"option": declared})


def flag(meaning: str) -> Any:
    """A field that is true where `--name` or `--name=true` is given."""
    return option(values.boolean, "true|false", meaning, default=False)


def group(cls: type) -> Any:
    """A field that holds a schema's dataclass, each field of which is an option of the command.

    Args:
      cls: a dataclass of `schema.field`s of types int, float, bool or str.
    """
    return dataclasses.field(default_factory=cls, metadata={"group": cls})


_PARSERS = {int: values.integer, float: values.real, bool: values.boolean, str: str}


def _declared(cls: type) -> Iterator[_Option]:
    """The options of an options' class."""
    for f in dataclasses.fields(cls):
        if "option" in f.metadata:
            yield dataclasses.replace(f.metadata["option"], name=f.name)
        elif fields := f.metadata.get("group"):
            hints = typing.get_type_hints(fields)
            for inner in dataclasses.fields(fields):
                yield _Option(
                    name=inner.name,
                    parser=_PARSERS[hints[inner.name]],
                    shown="NAME" if hints[inner.name] is str else "N",
                    meaning=inner.metadata["meaning"].rstrip("."),
                    checks=inner.metadata["checks"],
                    default=inner.default,
                    owner=f.name,
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the options of every command have; subclasses add fields made by `option` and `flag`.

    Attributes:
      argv: the words as they were given.
      overrides: (dotted field, text) of each `--config.FIELD=VALUE`, in order.
    """

    argv: tuple[str, ...] = ()
    overrides: tuple[tuple[str, str], ...] = ()


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclasses.dataclass(frozen=True)
class Command(Generic[OptionsT]):
    """A command: `python -m NAME`.

    Attributes:
      name: of the module that starts it.
      options: its options' class.
      function: does the work; returns the exit code.
      about: what it does, for the help; usually the module's docstring.
      config: the schema of the configuration, where it takes `--config.FIELD=VALUE`.
      more: gives what the help ends with.
      ending: turns errors into exit codes; `distributed.exit_as_one` for several processes.
      interrupted: the line for Ctrl-C, which then ends with code 130; "" leaves that to `ending`.
      bare_code: the exit code without any words, when the help is printed.
    """

    name: str
    options: type[OptionsT]
    function: Callable[[OptionsT], int]
    about: str | None
    config: type | None = None
    more: Callable[[], str] | None = None
    ending: Callable[[], contextlib.AbstractContextManager[None]] = exit_on_user_error
    interrupted: str = ""
    bare_code: int = 0

    def run(self) -> NoReturn:
        """Runs this process's words and ends the process."""
        with self.ending():
            try:
                code = self.main()
            except KeyboardInterrupt:
                if not self.interrupted:
                    raise
                print(f"\n{self.interrupted}", file=sys.stderr)
                code = 130
            sys.exit(code)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs the command, or prints its help.

        Args:
          argv: the words after the command's name; this process's if not given.

        Returns:
          The exit code.

        Raises:
          UserError: one line about what is wrong.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        if not argv or any(word in _HELP for word in argv):
            print(self.help(), end="")
            return 0 if argv else self.bare_code
        return self.function(self.parse(argv))

    def parse(self, argv: Sequence[str]) -> OptionsT:
        """Reads the words.

        Raises:
          UserError: a word that is no option (with the nearest that is), an option without a value
            or with a wrong one, one that is needed and not given, a field that does not exist.
        """
        declared = list(_declared(self.options))
        parser = _parser(declared)
        for name in dict.fromkeys(_fields(argv)):
            self._check_field(name)
            parser.add_argument(
                f"--config.{name}", dest="overrides", action="append", type=_override(name)
            )
        try:
            found, rest = parser.parse_known_args(argv)
        except argparse.ArgumentError as e:  # parsers raise `UserError`s of their own
            word = e.argument_name
            raise UserError(f"{word}: needs a value, as {word}=VALUE") from None
        if rest:
            raise UserError(self._unknown(rest[0], [o.name for o in declared]))
        given = vars(found)
        for o in declared:
            if o.needed and o.name not in given:
                raise UserError(f"--{o.name}: needed, {o.meaning.split(';')[0]}")
        for f in dataclasses.fields(self.options):
            if cls := f.metadata.get("group"):
                names = [o.name for o in declared if o.owner == f.name and o.name in given]
                given[f.name] = cls(**{name: given.pop(name) for name in names})
        overrides = tuple(given.pop("overrides", ()))
        return self.options(argv=tuple(argv), overrides=overrides, **given)

    def _check_field(self, name: str) -> None:
        if self.config is None:
            raise UserError(f"--config.{name}: this command has no configuration")
        schema.check_name(self.config, name)

    def _unknown(self, word: str, names: Sequence[str]) -> str:
        """What to say about a word that is no option."""
        start = word.partition("=")[0]
        name = start.lstrip("-")
        if not name or name == start:
            return f"{word}: not an option; options look like --name=value"
        near = difflib.get_close_matches(name, names, n=1)
        if self.config is not None:
            with contextlib.suppress(UserError):
                schema.check_name(self.config, name)
                near = [f"config.{name}"]
        return f"{start}: no such option" + (f" (did you mean --{near[0]}?)" if near else "")

    def help(self) -> str:
        """Usage, what the command does, and every option."""
        declared = list(_declared(self.options))
        own = [o for o in declared if not o.heading]
        words = [o.word if o.needed else f"[{o.word}]" for o in own]
        if self.config is not None:
            words.append("[--config.FIELD=VALUE …]")
        lines = [
            *_usage(f"usage: python -m {self.name}", words),
            "",
            (self.about or "").strip(),
            "",
        ]
        lines += [line for o in own for line in _entry(o.word, o.meaning + _default(o))]
        lines += self._common()
        for heading in dict.fromkeys(o.heading for o in declared if o.heading):
            lines += ["", f"{heading}:", ""]
            for o in declared:
                if o.heading == heading:
                    lines += _entry(o.word, o.meaning + _default(o))
        lines += ["", _RULES]
        if self.more is not None:
            lines += ["", self.more().rstrip()]
        return "\n".join(lines) + "\n"

    def _common(self) -> list[str]:
        lines = []
        if self.config is not None:
            example = "overrides a field of the configuration, such as --config.train.steps=100"
            if self.more is None:
                example += "; `python -m vimoe_jax.main --help` lists them"
            lines += _entry("--config.FIELD=VALUE", example)
        return [*lines, *_entry(", ".join(_HELP), "prints this")]


def _parser(declared: Sequence[_Option]) -> argparse.ArgumentParser:
    """Splits words into options; says nothing and ends nothing by itself."""
    parser = argparse.ArgumentParser(
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    for o in declared:
        more = {"nargs": "?", "const": True} if o.parser is values.boolean else {}
        parser.add_argument(f"--{o.name}", dest=o.name, type=_value(o), **more)
    return parser


def _value(o: _Option) -> values.Parser:
    return lambda text: values.parse(f"--{o.name}", o.parser, text, o.checks)


def _override(name: str) -> Callable[[str], tuple[str, str]]:
    return lambda text: (name, text)


def _fields(argv: Sequence[str]) -> Iterator[str]:
    """The dotted fields among the words."""
    for word in argv:
        if word.startswith("--config."):
            yield word.partition("=")[0].removeprefix("--config.")


def _usage(start: str, words: Sequence[str]) -> list[str]:
    lines, line = [], start
    for word in words:
        if len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = " " * 4
        line += f" {word}"
    return [*lines, line]


def _entry(word: str, text: str) -> list[str]:
    """An option and its meaning, beside it or below it."""
    indent = " " * _INDENT
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    start = f"  {word}"
    if len(start) + 2 > _INDENT:
        return [start, *lines]
    return [start + lines[0][len(start) :], *lines[1:]]


def _default(o: _Option) -> str:
    hidden = o.needed or o.default is None or o.default is False or o.default == ""
    return "" if hidden else f" ({o.default} if not given)"
