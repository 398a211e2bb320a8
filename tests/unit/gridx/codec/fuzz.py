"""Changes bytes and structure of valid messages, decodes them, and uses what is accepted.

A program of its own, so that a crash is seen as one: ``python -m tests.unit.gridx.codec.fuzz SEED COUNT``. Nothing but a
CodecError may come out of ``decode``; an accepted value must be usable.
"""

from __future__ import annotations

import collections
import faulthandler
import random
import resource
import struct
import sys
import time
import warnings
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from . import sample_values

sys.modules["__main__"] = sample_values.as_main()

from gridx.codec import (  # noqa: E402  # __main__ has to stand first
    CodecError,
    Limits,
    decode,
    encode,
    tags,
    user_classes,
)

_CLASSES = user_classes(sample_values.NAMESPACE)
_LIMITS = Limits(bytes=1 << 28)
_PREFIX = struct.calcsize("<4sQ")
_ODD: list[Any] = [
    None, True, 0, 1, -1, 2**31, 2**40, 2**62, -(2**63), 1.5, float("nan"), "", "O", "|O8",
    "<U9999999", "S0", "float64", "__class__", "os.system", b"", b"x" * 64, [], {},
]  # fmt: skip


def mutated_tree(chance: random.Random, node: Any) -> Any:
    """Return ``node`` with one part of it replaced by something odd."""
    if isinstance(node, list) and node and chance.random() < 0.8:
        changed = list(node)
        position = chance.randrange(len(changed))
        changed[position] = mutated_tree(chance, changed[position])
        return changed
    return chance.choice(
        [
            *_ODD,
            [chance.randrange(tags.COUNT)],
            [tags.REF, chance.randrange(5)],
            [tags.BLOB, chance.randrange(5)],
            [chance.randrange(tags.COUNT), node],
            [tags.LIST, node, node],
            {"b": "<f8", "s": [1]},
        ]
    )


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Return ``data`` with changed bytes, cut off, or with another structure."""
    if chance.random() < 0.5:
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 5))):
            byte = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            changed[chance.randrange(len(changed))] = byte
        cut = chance.randrange(len(changed)) if chance.random() < 0.15 else len(changed)
        return bytes(changed[:cut])
    (length,) = struct.unpack_from("<Q", data, 4)
    head = msgspec.msgpack.decode(data[_PREFIX : _PREFIX + length])
    blobs = bytearray(data[_PREFIX + length :])
    head[1] = mutated_tree(chance, head[1])
    if blobs and chance.random() < 0.3:
        blobs[chance.randrange(len(blobs))] = chance.choice((0, 0x7F, 0x80, 0xFF))
    raw = msgspec.msgpack.encode(head)
    return data[:4] + struct.pack("<Q", len(raw)) + raw + bytes(blobs)


def use(value: Any, depth: int = 0) -> None:
    """Use ``value`` as a notebook would: bad data that slipped through shows here."""
    if isinstance(value, np.ndarray):
        repr(value)
        value.copy()
        if value.dtype.kind in "iufc":
            value.sum()
    elif isinstance(value, pd.DataFrame):
        repr(value)
        value.reset_index() if not set(value.index.names) & set(value.columns) else None
        value.to_csv()
    elif isinstance(value, (pd.Series, pd.Index)):
        repr(value)
        value.astype(str)
    elif hasattr(value, "toarray") and value.shape[0] * value.shape[1] < 10**6:
        value.toarray()
        value @ np.ones(value.shape[1])
    elif type(value).__module__.startswith("pyarrow"):
        value.to_pylist()
    elif type(value).__module__.startswith("polars"):
        value.to_dicts()
    elif isinstance(value, list) and depth < 3:
        for part in value:
            use(part, depth + 1)
    else:
        repr(value)


def main(seed: int, count: int) -> int:
    """Run ``count`` mutations; return how many went wrong."""
    chance = random.Random(seed)
    values = sample_values.VALUES
    seeds = [encode(value) for value in values] + [encode([value]) for value in values]
    outcomes: collections.Counter[str] = collections.Counter()
    wrong = 0
    for _ in range(count):
        data = mutated(chance, chance.choice(seeds))
        began_s = time.monotonic()
        try:
            value = decode(data, classes=_CLASSES, limits=_LIMITS)
        except CodecError:
            outcomes["refused"] += 1
            continue
        except BaseException as exc:
            wrong += 1
            print("decode raised", type(exc).__name__, exc, data[:200])
            continue
        if time.monotonic() - began_s > 5:
            wrong += 1
            print("slow", data[:200])
        outcomes["accepted"] += 1
        try:
            use(value)
        except Exception as exc:
            # Valid but strange, as odd dates are: the library says so by an exception.
            outcomes[f"use: {type(exc).__name__}"] += 1
    print(dict(outcomes), "wrong:", wrong)
    return wrong


if __name__ == "__main__":
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    warnings.simplefilter("ignore")
    sys.exit(1 if main(int(sys.argv[1]), int(sys.argv[2])) else 0)
