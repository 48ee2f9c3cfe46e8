"""ViMoE: small Vietnamese vision-language models, dense and mixture-of-experts, in JAX.

    import vimoe_jax as vm

    model = vm.load("runs/moe_small")  # a workdir, or a folder that hf.export wrote
    model.answer("photo.jpg", "có mấy con mèo")
    model.caption(["a.jpg", "b.jpg"])

    layer = vm.MoE(vm.MoEOptions(num_experts=8), 64, 256, 64, activation="swiglu", ...)
    records = vm.datasets.open("viscenes", "test", data_dir="data")
    vm.scores.vqa.f1_squad("hai con mèo", "con mèo")

Nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vimoe_jax import datasets as datasets
    from vimoe_jax import scores as scores
    from vimoe_jax.answer.answerer import Answerer as Answerer
    from vimoe_jax.config import Config as Config
    from vimoe_jax.hf.open import load as load
    from vimoe_jax.moe.block import MoE as MoE
    from vimoe_jax.moe.options import MoEOptions as MoEOptions

__version__ = "0.1.0"

# Name -> module that has it; a module's own name stands for the module.
_PLACES = {
    "Answerer": "vimoe_jax.answer.answerer",
    "Config": "vimoe_jax.config",
    "MoE": "vimoe_jax.moe.block",
    "MoEOptions": "vimoe_jax.moe.options",
    "datasets": "vimoe_jax.datasets",
    "load": "vimoe_jax.hf.open",
    "scores": "vimoe_jax.scores",
}

__all__ = ["Answerer", "Config", "MoE", "MoEOptions", "datasets", "load", "scores"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_PLACES[name])
    value = module if _PLACES[name] == f"{__name__}.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
