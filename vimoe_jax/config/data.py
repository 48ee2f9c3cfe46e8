"""What is read, and how it becomes rows."""

from __future__ import annotations

from vimoe_jax.base.schema import at_least, checked, field, one_of


@checked
class Data:
    """What is read, and how it becomes rows."""

    dataset: str = field(
        "viscenes",
        "One dataset or several, NAME[@VARIANT][:WEIGHT],…; weights say how often their records "
        "are drawn, relative to each other. my_package.my_module:Source is your own class.",
    )
    dir: str = field("data", "Where prepared datasets lie (ViScenes is generated there if absent).")
    source: str = field("", "The JSONL file of dataset 'jsonl'.")
    variant: str = field(
        "default", "ViScenes' size: 'default' or 'tiny'.", one_of("default", "tiny")
    )
    train_split: str = field("train", "Trained on; '' for the whole JSONL file.")
    val_split: str = field("validation", "Its loss picks the best checkpoint.")
    test_splits: tuple[str, ...] = field(
        ("test", "test_compositional"),
        "Scored at the end, SPLIT or NAME/SPLIT; the first one as eval/… if the dataset is one.",
    )
    tokenizer: str = field(
        "", "A SentencePiece model or tokenizer.json; '' trains one on the training split's texts."
    )
    vocab_size: int = field(1024, "Pieces of a tokenizer trained here.", at_least(270))
    text_length: int = field(
        160, "S, text tokens a row: one picture with several questions.", at_least(4)
    )
    max_pictures: int = field(
        1, "I, pictures a row holds at most; 0 for text alone, without the tower.", at_least(0)
    )
    prompt_length: int = field(48, "Question tokens a row at evaluation.", at_least(4))
    max_questions: int = field(0, "Questions a row at most; 0 for as many as fit.", at_least(0))
    style: str = field(
        "plain", "Of prompts: STYLE for all datasets, or COMPONENT=STYLE,… for some (docs/data.md)."
    )
    vary_prompts: bool = field(False, "Draw the prompt's wording in training.")
    resize: str = field("squash", "How a picture becomes square.", one_of("squash", "crop", "pad"))
    workers: int = field(0, "Worker processes that decode; 0 uses threads.", at_least(0))
    cache_images: bool = field(False, "Keep decoded pictures in memory (small datasets).")
    max_skipped: int = field(
        0,
        "Bad records (in a JSONL file, and of pictures met in training) before giving up.",
        at_least(0),
    )
