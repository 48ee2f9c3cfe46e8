"""Loading a SigLIP tower and a decoder of Qwen3-0.6B's shape: seconds, memory over the parameters.

python -m benchmarks.hf_load [--depth=28] [--keep=DIR]

The files are written first, by transformers, with random weights in bfloat16 and a small tokenizer;
the connector starts random. Memory is the command's own: anonymous pages at their peak, and with
them the pages of files that it had mapped, both over the parameters' bytes in the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.train_step import DECODER, ROOT, VISION

GIB = 2**30


def write(folder: Path, depth: int) -> None:
    """The tower's and the decoder's folders."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    d, v = DECODER, VISION
    decoder = transformers.Qwen3Config(
        vocab_size=d["vocab_size"], hidden_size=d["width"], intermediate_size=d["mlp_dim"],
        num_hidden_layers=depth, num_attention_heads=d["num_heads"],
        num_key_value_heads=d["num_kv_heads"], head_dim=d["head_dim"], tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": d["rope_theta"]},
    )  # fmt: skip
    tower = transformers.SiglipVisionConfig(
        hidden_size=v["width"], intermediate_size=v["mlp_dim"], num_hidden_layers=v["depth"],
        num_attention_heads=v["num_heads"], image_size=224, patch_size=16, vision_use_head=False,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    transformers.Qwen3ForCausalLM(decoder).save_pretrained(folder / "qwen")
    transformers.SiglipVisionModel(tower).save_pretrained(folder / "siglip")
    words = ["<pad>", "</s>", "<unk>", "<image>", *(f"w{i}" for i in range(100))]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(words[:4])
    made.save(str(folder / "qwen" / "tokenizer.json"))
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "qwen" / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")


def parameters(folder: Path) -> int:
    """Numbers in all safetensors files, by their headers."""
    from safetensors import safe_open

    count = 0
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "numpy") as tensors:
            count += sum(math.prod(tensors.get_slice(n).get_shape()) for n in tensors.keys())
    return count


def measured(command: Sequence[str]) -> tuple[float, int, int]:
    """Seconds, peak of anonymous bytes and of all resident bytes of a command."""
    begun, anonymous, resident = time.perf_counter(), 0, 0
    child = subprocess.Popen(command, cwd=ROOT)
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")
        except OSError:
            break
        kib = {k: int(v.split()[0]) for k, _, v in (s.partition(":") for s in status.splitlines())
               if k in ("RssAnon", "VmHWM")}  # fmt: skip
        anonymous = max(anonymous, kib.get("RssAnon", 0) * 1024)
        resident = max(resident, kib.get("VmHWM", 0) * 1024)
        time.sleep(0.02)
    if child.wait():
        raise SystemExit(f"exit code {child.returncode}")
    return time.perf_counter() - begun, anonymous, resident


def main(argv: Sequence[str] | None = None) -> None:
    """Writes, loads and prints."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--depth", type=int, default=DECODER["depth"], help="decoder layers")
    parser.add_argument("--keep", type=Path, help="a folder for the files, written if missing")
    a = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.keep or Path(temporary)
        if not (folder / "qwen").exists():
            code = f"from benchmarks.hf_load import *; write(Path({str(folder)!r}), {a.depth})"
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        idle = "import time, vimoe_jax.hf.load, jax; jax.devices(); time.sleep(0.5)"
        _, base, _ = measured([sys.executable, "-c", idle])
        numbers = parameters(folder)
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            workdir = Path(temporary) / dtype
            source = f"{folder / 'siglip'},{folder / 'qwen'}"
            command = ["-m", "vimoe_jax.hf.load", f"--source={source}", f"--workdir={workdir}"]
            seconds, anonymous, resident = measured([sys.executable, *command, f"--dtype={dtype}"])
            whole = numbers * size
            print(
                f"{dtype}: {seconds:.1f} s; {numbers / 1e6:.0f} million parameters, "
                f"{whole / GIB:.2f} GiB; memory {anonymous / GIB:.2f} GiB, "
                f"{anonymous / whole:.2f} x the parameters ({base / GIB:.2f} GiB are JAX and "
                f"imports); with pages of mapped files {resident / GIB:.2f} GiB"
            )
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
