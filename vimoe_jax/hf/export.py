"""Writes a trained model as a folder that stock transformers loads.

    python -m vimoe_jax.hf.export --workdir=runs/moe_small --out=exported

Experts in the tower or the connector bring their own modelling file, to be loaded with
trust_remote_code=True; all else needs no code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimoe_jax.base import cli, files, values
from vimoe_jax.base.errors import UserError

if TYPE_CHECKING:
    import jax
    import numpy as np

    from vimoe_jax.hf.safetensors_file import Tensor
    from vimoe_jax.run.workdir import Run

_DTYPES = ("float32", "bfloat16")
SHARD_BYTES = 5 * 10**9
_CODE = ("configuration_vimoe.py", "modeling_vimoe.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """The command's options."""

    workdir: Path = cli.option(values.path, "DIR", "the workdir of a run")
    out: Path = cli.option(values.path, "DIR", "the new folder; must not exist, or be empty")
    step: int | None = cli.option(
        values.whole,
        "N",
        "which checkpoint; if not given, the best one (lowest validation loss)",
        default=None,
    )
    dtype: str = cli.option(
        values.one_of(*_DTYPES), "|".join(_DTYPES), "of the exported parameters", default="bfloat16"
    )
    push: str | None = cli.option(
        str,
        "OWNER/NAME",
        "also uploads the folder to the Hugging Face Hub, with the credentials of `hf auth login`",
        default=None,
    )


def execute(options: Options) -> int:
    """Exports, and uploads with `--push`."""
    out, step = options.out, options.step
    _check_out(out)
    push = None if options.push is None else _uploader(options.push)

    from vimoe_jax.hf import stock
    from vimoe_jax.run.checkpoint import best_step, load_params
    from vimoe_jax.run.workdir import reopen

    run = reopen(options.workdir, [], one_device=True)
    stock.check(run.config, run.blueprint)
    params = load_params(run, step, options.dtype)
    if step is None:
        step = best_step(run)
    export(run, params, out, dtype=options.dtype, step=step)
    print(f"step {step} -> {out}")
    if push:
        print(push(out))
    return 0


def export(
    run: Run,
    params: dict[str, jax.Array],
    out: Path,
    *,
    dtype: str,
    step: int,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the folder, whole or not at all.

    Args:
      run: the model's.
      params: of floating dtype `dtype`; taken out of the dict one by one as they are written, so
        that memory never holds the model twice.
      out: the folder; must not exist, or be empty.
      dtype: "float32" or "bfloat16".
      step: for the model card.
      shard_bytes: size of a file of weights at most.

    Raises:
      UserError: the model is none that transformers can be, or `out` is in use.
    """
    from vimoe_jax.hf import card, processor, stock

    c, tokenizer = run.config, run.tokenizer
    stock.check(c, run.blueprint)
    _check_out(out)
    with files.new_folder(out) as folder:
        config = stock.model_config(c, run.blueprint.vocab_size, tokenizer, dtype)
        files.write_json(folder / "config.json", config)
        generation = {
            **stock.special_ids(tokenizer),
            "do_sample": False,
            "max_new_tokens": c.eval.max_new_tokens,
        }
        files.write_json(folder / "generation_config.json", generation)
        processor.write(folder, c, tokenizer)
        if stock.needs_code(c.model):
            code = resources.files("vimoe_jax.hf.remote")
            for name in _CODE:
                files.write_bytes(folder / name, (code / name).read_bytes())
        files.write_text(folder / "README.md", card.text(run, out.name, step, dtype))
        _write_weights(folder, run, params, dtype, shard_bytes)


def _write_weights(
    folder: Path, run: Run, params: dict[str, jax.Array], dtype: str, shard_bytes: int
) -> None:
    """All files of weights, one tensor at a time."""
    from vimoe_jax.hf import safetensors_file
    from vimoe_jax.hf.names import pieces

    by_name = {piece.hf: piece for piece in pieces(run.blueprint)}
    tensors = [safetensors_file.Tensor(p.hf, p.shape) for p in by_name.values()]
    code = safetensors_file.DTYPES[dtype]
    shards = safetensors_file.shards(tensors, code, shard_bytes)
    value = _values(by_name, params)
    for name, part in shards.items():
        safetensors_file.write(folder / name, part, code, value)
    safetensors_file.write_index(folder, shards, code)


def _values(
    by_name: dict[str, Any], params: dict[str, jax.Array]
) -> Callable[[Tensor], np.ndarray]:
    """Makes tensors in the order of `pieces`, one parameter on the host at a time."""
    import numpy as np

    current: dict[str, np.ndarray] = {}

    def value(tensor: Tensor) -> np.ndarray:
        piece = by_name[tensor.name]
        if piece.ours not in current:
            current.clear()
            current[piece.ours] = np.asarray(params.pop(piece.ours))
        return piece.to_hf(current[piece.ours])

    return value


def _check_out(out: Path) -> None:
    """Refuses a folder with something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} exists; give a folder that does not")


def _uploader(repo: str) -> Callable[[Path], str]:
    """What uploads a folder and gives the address; refuses early what cannot work.

    Raises:
      UserError: no such name of a repository, or huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError:
        raise UserError("--push: needs the package huggingface_hub, which is not here") from None
    try:
        validate_repo_id(repo)
    except HFValidationError as e:
        raise UserError(f"--push: {e}") from None

    def upload(folder: Path) -> str:
        try:
            api = huggingface_hub.HfApi()
            address = api.create_repo(repo, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of ViMoE")
        except Exception as e:  # the client's, the network's and the Hub's own types
            reason = " ".join(str(e).split()) or type(e).__name__
            raise UserError(f"--push: {folder} is whole, but was not uploaded: {reason}") from None
        return str(address)

    return upload


COMMAND = cli.Command("vimoe_jax.hf.export", Options, execute, __doc__)
main = COMMAND.main

if __name__ == "__main__":
    COMMAND.run()
