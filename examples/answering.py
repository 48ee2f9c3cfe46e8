"""Asks a trained model: one picture, a batch, several questions; scores the answers.

    python examples/answering.py runs/moe_small

The argument is a run's workdir (`make run` leaves one) or a folder that `vimoe_jax.hf.export`
wrote. Only the first question of a shape compiles.
"""

import sys

import vimoe_jax as vm


def main(path: str, data_dir: str = "data", variant: str = "default") -> dict[str, float]:
    """Prints some answers; returns the scores of sixteen test pictures' questions."""
    model = vm.load(path)
    records = vm.datasets.open("viscenes", "test", data_dir=data_dir, variant=variant)
    picture = records[0].pictures[0]  # bytes; a path, a PIL image or an array do as well

    print(model.caption(picture))
    questions = [qa.question for qa in records[0].qa if qa.question]
    for question, answer in zip(questions, model.answer(picture, questions), strict=True):
        print(f"{question}? {answer}")
    print(model.caption([record.pictures[0] for record in (records[1], records[2])]))

    predictions = model.predict([records[i] for i in range(min(16, len(records)))], quiet=True)
    return vm.scores.vqa.score(predictions)


if __name__ == "__main__":
    print(main(sys.argv[1]))
