"""The optimizer, the loop, the checkpoints."""

from __future__ import annotations

from vimoe_jax.base.schema import at_least, between, checked, field, more_than, one_of


@checked
class Optim:
    """The optimizer, with warm-up and cosine decay."""

    name: str = field(
        "adamw",
        "AdamW, or Adafactor: second moments as products of rows and columns.",
        one_of("adamw", "adafactor"),
    )
    moments_dtype: str = field(
        "float32",
        "Of the moments as large as their parameter; bfloat16 rounds stochastically.",
        one_of("float32", "bfloat16"),
    )
    learning_rate: float = field(1e-3, "Peak learning rate.", more_than(0))
    warmup_steps: int = field(50, "Steps of linear warm-up.", at_least(0))
    final_fraction: float = field(0.05, "Last learning rate over the peak.", between(0, 1))
    weight_decay: float = field(0.05, "Decoupled decay, of matrices only.", at_least(0))
    b1: float = field(0.9, "First moment's decay.", between(0, 0.9999))
    b2: float = field(
        0.98, "Second moment's decay, which Adafactor's approaches.", between(0, 0.99999)
    )
    eps: float = field(1e-8, "Adam's epsilon.", more_than(0))
    clip_norm: float = field(1.0, "Largest global gradient norm; 0 for no clipping.", at_least(0))
    vision_rate: float = field(
        1.0, "Learning rate of the tower over the peak; 0 freezes.", at_least(0)
    )
    connector_rate: float = field(1.0, "The same for the connector.", at_least(0))
    decoder_rate: float = field(1.0, "The same for the decoder.", at_least(0))

    def rate(self, part: str) -> float:
        """The learning rate of a part of the model over the peak; 0 is frozen."""
        return float(getattr(self, f"{part}_rate"))


@checked
class Distill:
    """Layer-wise distillation from a dense parent (MoEBERT's loss)."""

    parent: str = field("", "Workdir of the dense parent; '' for none.")
    weight: float = field(
        1.0, "λ of the hidden states' and the distributions' distance; 1 to 5.", more_than(0)
    )


@checked
class Train:
    """The loop."""

    steps: int = field(1000, "Optimizer steps.", at_least(1))
    batch_size: int = field(32, "B, pictures a step, over all devices.", at_least(1))
    accumulate: int = field(1, "Microbatches whose gradients make one step.", at_least(1))
    log_every: int = field(20, "Steps between lines of metrics.jsonl.", at_least(1))
    max_bad_steps: int = field(
        10, "Skipped updates in a row (not finite, or spikes) before giving up.", at_least(1)
    )
    skip_spikes: float = field(
        0.0,
        "Skip updates whose loss is this many standard deviations above the mean of the last 128; "
        "6 is usual, 0 for never.",
        at_least(0),
    )
    hang_seconds: float = field(
        1800.0,
        "Without a finished step for so long (the first: ten times as long), write all stacks and "
        "exit; 0 for never.",
        at_least(0),
    )
    guard_transfers: bool = field(
        False, "Fail where the loop copies between host and device unasked (for debugging)."
    )
    debug_nans: bool = field(False, "Stop where a NaN arises (slow).")
    distill: Distill = field(Distill(), "Learning from a dense parent.")


@checked
class Checkpoint:
    """What is saved when."""

    every: int = field(200, "Steps between checkpoints.", at_least(1))
    keep_last: int = field(2, "Newest checkpoints kept.", at_least(1))
    keep_best: int = field(1, "Checkpoints of lowest validation loss kept.", at_least(0))
