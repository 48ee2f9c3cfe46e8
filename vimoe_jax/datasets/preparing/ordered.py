"""Examples whose bytes are a function of their contents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tensorflow_datasets.core import writer
from tensorflow_datasets.core.dataset_info import DatasetInfo
from tensorflow_datasets.proto import tf_example_pb2


class OrderedWriter(writer.ExampleWriter):
    """Writes features in the order of their names.

    TFDS leaves it to protobuf, whose order of a map's keys differs from process to process.
    """

    @classmethod
    def of(cls, info: DatasetInfo) -> OrderedWriter:
        """The writer of a dataset, in its file format."""
        if info.file_format is None:
            raise ValueError(f"{info.name}: no file format")
        return cls(info.file_format)

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        """Writes the examples of one shard."""
        return super().write(path, ((key, _ordered(example)) for key, example in examples))


def _ordered(example: bytes) -> bytes:
    messages: Any = tf_example_pb2  # protobuf makes its classes while it is imported
    return messages.Example.FromString(example).SerializeToString(deterministic=True)
