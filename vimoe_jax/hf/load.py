"""Loads published weights into a new workdir that training continues from.

    python -m vimoe_jax.hf.load --source=siglip,qwen3 --workdir=runs/new --config.data.dataset=vivqa

Sources are a LLaVA, or a SigLIP tower and a Qwen3, Qwen3-MoE or Llama decoder. A workdir is a
source too: it gives the parts that no other source has. A connector without a source starts random.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vimoe_jax import config as config_lib
from vimoe_jax.base import cli, files, schema, values
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.schema import at_least
from vimoe_jax.config import Config
from vimoe_jax.config.parts import PARTS
from vimoe_jax.hf.sources import Source, open_source
from vimoe_jax.text import tokenizers as tokenizer_lib
from vimoe_jax.text.tokenizers import Tokenizer
from vimoe_jax.text.tokenizers.huggingface import FILE, IMAGE, HFTokenizer

_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """The command's options."""

    source: tuple[Path, ...] = cli.option(
        values.paths,
        "PATH[,PATH…]",
        "what is loaded; folders as the Hub has them (config.json, *.safetensors, tokenizer.json), "
        "a big_vision .npz, or workdirs",
    )
    workdir: Path = cli.option(values.path, "DIR", "the new run's; must not exist, or be empty")
    image_size: int | None = cli.option(
        values.whole,
        "N",
        "pixels on a side, the tower's own if not given; position embeddings are resized",
        at_least(1),
        default=None,
    )
    dtype: str = cli.option(
        values.one_of(*_DTYPES),
        "|".join(_DTYPES),
        "of the parameters in the checkpoint; training continues in float32 either way",
        default="float32",
    )


def execute(options: Options) -> int:
    """Loads, and says what to call next."""
    load(
        options.source, options.workdir, options.overrides,
        image_size=options.image_size, dtype=options.dtype,
    )  # fmt: skip
    workdir = options.workdir
    print(f"to train: python -m vimoe_jax.main --config={workdir / 'config.py'} "
          f"--workdir={workdir}")  # fmt: skip
    return 0


def load(
    paths: Sequence[Path],
    workdir: Path,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    image_size: int | None = None,
    dtype: str = "float32",
) -> None:
    """Writes a workdir with the sources' parameters, whole or not at all.

    Args:
      paths: of the sources.
      workdir: must not exist, or be empty.
      overrides: fields of the configuration and their texts.
      image_size: pixels on a side; the tower's own if not given.
      dtype: of the stored parameters.

    Raises:
      UserError: a source cannot be read or does not fit; the message lists all that is wrong.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"--workdir: {workdir}: is there already, and is not empty")
    start = time.monotonic()
    sources = [open_source(path) for path in paths]
    given = _parts(sources)
    if complaints := [c for source in sources for c in source.complaints]:
        raise UserError("; ".join(complaints))
    tokenizer = _tokenizer(sources, given)
    c = _config(given, tokenizer, overrides, image_size)

    from vimoe_jax.hf import weights

    with files.new_folder(workdir) as folder:
        params = weights.read(c, given, dtype)
        files.write_json(folder / "config.json", schema.to_dict(c))
        files.write_text(folder / "config.py", config_file(c, paths))
        tokenizer.save(folder)
        weights.save(params, folder)
    for source in sources:
        for note in source.notes:
            print(f"note: {note}", file=sys.stderr)
        if source.left_out:
            heads = sorted({name.split(".layers.")[0] for name in source.left_out})
            print(f"{source.where}: left out {', '.join(heads)}", file=sys.stderr)
    for part in PARTS:
        whose = given[part].where if part in given else "random"
        print(f"{part}: {whose}", file=sys.stderr)
    print(f"{workdir}: loaded in {time.monotonic() - start:.1f} s", file=sys.stderr)


def _parts(sources: Sequence[Source]) -> dict[str, Source]:
    """The source of each part; workdirs give what is left."""
    given: dict[str, Source] = {}
    for source in sorted(sources, key=lambda s: s.reader is None):
        new = [part for part in source.parts if part not in given]
        taken = [part for part in source.parts if part in given]
        if source.reader is not None and taken:
            raise UserError(
                f"--source: {taken[0]} is in both {given[taken[0]].where} and {source.where}"
            )
        if source.reader is None and {"vision", "decoder"} & set(taken) and "connector" in new:
            # Another tower's or decoder's connector means nothing, even where it fits.
            new.remove("connector")
        given |= {part: source for part in new}
    for part in ("vision", "decoder"):
        if part not in given:
            raise UserError(f"--source: none of them has a {part} part; name another one")
    return given


def _tokenizer(sources: Sequence[Source], given: dict[str, Source]) -> Tokenizer:
    source = given["decoder"]
    if source.tokenizer is None:
        raise UserError(f"{source.where}: has neither tokenizer.json nor tokenizer.model")
    tokenizer = tokenizer_lib.load(source.tokenizer)
    wanted = source.image_token
    if wanted is None or wanted == tokenizer.image_id:
        return tokenizer
    token = None
    if (source.tokenizer / FILE).exists():
        from tokenizers import Tokenizer as Library

        token = Library.from_file(str(source.tokenizer / FILE)).id_to_token(wanted)
    if token is None:
        raise UserError(
            f"{source.where / 'config.json'}: image_token_index: {wanted} is not a token of its "
            f"tokenizer, whose {IMAGE} is {tokenizer.image_id}"
        )
    return HFTokenizer.load(source.tokenizer, image=token)


def _config(
    given: dict[str, Source],
    tokenizer: Tokenizer,
    overrides: Sequence[tuple[str, str]],
    image_size: int | None,
) -> Config:
    """The new run's configuration."""
    vision, decoder = given["vision"], given["decoder"]
    fields = config_lib.defaults()
    with fields.unlocked():
        model = fields.model
        model.patch_size = vision.model["patch_size"]
        model.image_size = image_size or vision.image_size or vision.model["image_size"]
        for part, source in given.items():
            model[part].update(source.model.get(part, {}))
        known = decoder.model["decoder"]["vocab_size"] or 0
        model.decoder.vocab_size = -(-max(known, tokenizer.vocab_size) // 64) * 64
        if vision.resize:
            fields.data.resize = vision.resize
    for name, value in overrides:
        schema.apply_override(fields, name, value)
    return config_lib.resolve(fields.to_dict())


def config_file(c: Config, paths: Sequence[Path]) -> str:
    """A config file with everything that differs from the defaults, for `main --config`."""

    def lines(new: dict[str, Any], old: dict[str, Any], path: str) -> list[str]:
        out = []
        for name, value in new.items():
            if isinstance(value, dict):
                out += lines(value, old[name], f"{path}.{name}")
            elif value != old[name]:
                out.append(f"    {path}.{name} = {value!r}")
        return out

    body = "\n".join(lines(schema.to_dict(c), schema.to_dict(Config()), "c"))
    return (
        f'"""Continues from {", ".join(path.name for path in paths)}; what is not set here is as '
        'usual."""\n\nfrom vimoe_jax.config import defaults\n\n\ndef get_config():\n'
        f"    c = defaults()\n{body}\n    return c\n"
    )


COMMAND = cli.Command("vimoe_jax.hf.load", Options, execute, __doc__, config=Config, bare_code=2)
main = COMMAND.main

if __name__ == "__main__":
    COMMAND.run()
