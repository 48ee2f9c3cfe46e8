"""What the report's metrics mean, in plain words."""

from __future__ import annotations

import dataclasses

from vimoe_jax.scores.captions import describe
from vimoe_jax.text.normalize import PLAIN


def scoring(label: dict[str, str]) -> str:
    """How a split's texts were compared, from what its `metrics.json` says."""
    name = label.get("profile", "plain")
    comparison = label.get("comparison", str(PLAIN))
    tokens = label.get("tokens", describe("syllable"))
    return f"Answers are compared under the profile “{name}” ({comparison}), captions as {tokens}."


@dataclasses.dataclass(frozen=True)
class Meaning:
    """A metric in words.

    Attributes:
      title: short name.
      text: one sentence.
      unit: "share" (a fraction, shown as per cent), "score" or "count".
      better: "↑", "↓" or "".
    """

    title: str
    text: str
    unit: str = "share"
    better: str = "↑"


_MEANINGS = {
    "vqa/accuracy": Meaning("Accuracy", "Answers exactly equal to a reference."),
    "vqa/f1_squad": Meaning(
        "F1 (SQuAD)", "Overlap of syllables, counted with repetition; the best reference."
    ),
    "vqa/f1_uit": Meaning(
        "F1 (UIT code)", "Distinct syllables in common over the lengths; mean over references."
    ),
    "vqa/anls": Meaning(
        "ANLS", "1 − edits / longer length, 0 below one half: forgives a letter misread."
    ),
    "vqa/cer": Meaning(
        "Character error rate", "Edits over the reference's length, at most 1.", better="↓"
    ),
    "vqa/count": Meaning("Questions", "Questions scored.", "count", ""),
    "vqa/placeholders": Meaning(
        "Placeholders", "Questions left out: their answers were not published.", "count", ""
    ),
    "vqa/ceiling_train_answers": Meaning(
        "Ceiling: training answers",
        "Questions with an answer that training has: a classifier over these reaches no more.",
        better="",
    ),
    "vqa/floor_majority": Meaning(
        "Floor: majority", "Blind: always the training set's most frequent answer.", better=""
    ),
    "vqa/floor_per_type": Meaning(
        "Floor: per type", "Blind: the most frequent answer of the question's type.", better=""
    ),
    "vqa/floor_question_only": Meaning(
        "Floor: question only",
        "Blind: the most frequent answer to that very question, else of its type.",
        better="",
    ),
    "caption/cider": Meaning(
        "CIDEr-D",
        "Agreement with the references in n-grams that are rare among them; 10 at most. "
        "Papers print it as here, or × 100.",
        "score",
    ),
    "caption/rouge_l": Meaning("ROUGE-L", "F-score of the longest common subsequence."),
    "caption/exact": Meaning("Exact captions", "Captions equal to one of the references."),
    "caption/count": Meaning("Captions", "Captions scored.", "count", ""),
    **{
        f"caption/bleu_{n}": Meaning(
            f"BLEU-{n}",
            f"Share of {'single syllables' if n == 1 else f'runs of up to {n} syllables'} found in "
            "a reference, less a penalty for brevity.",
        )
        for n in range(1, 5)
    },
    "train/loss": Meaning(
        "Training loss", "Cross-entropy a token of the answers, in nats.", "score", "↓"
    ),
    "train/accuracy": Meaning(
        "Token accuracy", "Answer tokens that were the likeliest, the right ones before them given."
    ),
    "val/loss": Meaning("Validation loss", "The same loss on the validation split.", "score", "↓"),
    "train/aux_loss": Meaning(
        "Auxiliary loss", "Weighted balancing losses of all MoE layers.", "score", "↓"
    ),
    "train/learning_rate": Meaning("Learning rate", "Of the parts at the peak rate.", "score", ""),
    "train/grad_norm": Meaning("Gradient norm", "Global norm before clipping.", "score", ""),
    "train/examples_per_second": Meaning(
        "Pictures a second", "Training speed, pauses for evaluation not counted.", "score"
    ),
    "train/tokens_per_second": Meaning(
        "Tokens a second", "Image patches and text tokens, without padding.", "score"
    ),
    "train/data_wait": Meaning(
        "Data wait", "Share of training's time that went into waiting for batches.", better="↓"
    ),
    "train/goodput": Meaning("Goodput", "Share of all wall time so far that went into steps."),
    "train/skipped_steps": Meaning(
        "Skipped updates", "Steps whose loss or gradients were bad.", "count", "↓"
    ),
    **{
        f"time/{kind}": Meaning(f"Seconds: {kind}", "Over all resumptions.", "score", "")
        for kind in ("steps", "compile", "data", "save", "eval", "start", "redone")
    },
}
KINDS = ("image", "question", "answer")  # of token
_MOE = {
    "drop_fraction": Meaning(
        "Dropped choices", "Choices that found their expert full: those tokens skip it.", better="↓"
    ),
    **{
        f"drop_fraction_{kind}": Meaning(
            f"Dropped choices, {kind}",
            f"Choices of {kind} tokens that found their expert full.",
            better="↓",
        )
        for kind in KINDS
    },
    "unserved_fraction": Meaning(
        "Unserved tokens", "Tokens that no expert took: only their residual goes on.", better="↓"
    ),
    "load_max_over_mean": Meaning(
        "Imbalance", "The busiest expert's load over the mean; 1 is perfect balance.", "score", "↓"
    ),
    "router_entropy": Meaning(
        "Router entropy", "Of a token's gates, in nats; 0 is certain, ln E undecided.", "score", ""
    ),
    "importance_loss": Meaning(
        "Importance loss",
        "How uneven the experts' summed gates are, unweighted; 0 is even.",
        "score",
        "↓",
    ),
    "load_loss": Meaning(
        "Load loss",
        "How uneven the experts' expected loads are, unweighted; 0 is even.",
        "score",
        "↓",
    ),
    "balance_loss": Meaning(
        "Balance loss",
        "Experts' loads times their mean gates, unweighted; 1 is perfect balance.",
        "score",
        "↓",
    ),
    "z_loss": Meaning(
        "Z-loss", "Squared log-sum-exp of the router's logits, unweighted.", "score", "↓"
    ),
}


def moe_meaning(kind: str) -> Meaning:
    """Of what MoE layers report, by its name's last part."""
    title = kind.replace("_", " ").capitalize()
    return _MOE.get(kind) or Meaning(title, "Mean over the layers, unweighted.", "score", "")


def meaning(name: str) -> Meaning:
    """Of a metric without `eval` prefix; unknown ones get their own name back."""
    if name in _MEANINGS:
        return _MEANINGS[name]
    if name.startswith("vqa/accuracy_task/"):
        task = name.removeprefix("vqa/accuracy_task/")
        return Meaning(f"Accuracy: {task}", f"On the questions of task {task} alone.")
    if name.startswith("train/moe/") and name.count("/") >= 3:
        part, _, kind = name.removeprefix("train/moe/").rpartition("/")
        known = moe_meaning(kind)
        title = known.title[:1].lower() + known.title[1:]
        return dataclasses.replace(known, title=f"MoE {part}: {title}")
    return Meaning(name, "", "score", "")
