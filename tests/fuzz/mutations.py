"""Changes valid messages: single bytes, their length, their structure."""

from __future__ import annotations

import random
import struct
from typing import Any, Final

import msgspec

from gridx.codec import tags

_PREFIX: Final = struct.calcsize("<4sQ")
_ODD: Final[list[Any]] = [
    None, True, 0, 1, -1, 2**31, 2**40, 2**62, -(2**63), 2**63 + 1, 1.5, float("nan"), "", "O",
    "|O8", "<U9999999", "S0", "float64", "__class__", "__init__", "os.system", "x", "print", "f",
    "../../x", b"", b"x" * 64, b"\xff" * 8, b"\x80\x04cos\nsystem\n.", [], {}, [[]],
    [tags.LIST], [tags.DICT], [tags.REF, 0], [tags.BLOB, 0], [tags.INPUT, "f"],
    [tags.INPUT, "globals()"],
]  # fmt: skip


def changed_bytes(chance: random.Random, data: bytes) -> bytes:
    """Return ``data`` with a few other bytes, sometimes cut off, doubled or put in pieces."""
    changed = bytearray(data)
    if not changed:
        return b"\0"
    for _ in range(chance.choice((1, 1, 2, 5))):
        byte = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        changed[chance.randrange(len(changed))] = byte
    if chance.random() < 0.15:
        del changed[chance.randrange(len(changed)) :]
    elif chance.random() < 0.05:
        at = chance.randrange(len(changed))
        changed[at:at] = changed[: chance.randrange(1, 64)]
    return bytes(changed)


def changed_tree(chance: random.Random, node: Any) -> Any:
    """Return ``node`` with one part of it replaced, doubled, moved or dropped."""
    if isinstance(node, list) and node and chance.random() < 0.85:
        changed = list(node)
        position = chance.randrange(len(changed))
        what = chance.random()
        if what < 0.8:
            changed[position] = changed_tree(chance, changed[position])
        elif what < 0.87:
            del changed[position]
        elif what < 0.94:
            changed.insert(position, changed[chance.randrange(len(changed))])
        else:
            other = chance.randrange(len(changed))
            changed[position], changed[other] = changed[other], changed[position]
        return changed
    if isinstance(node, dict) and node and chance.random() < 0.85:
        key = chance.choice(list(node))
        changed_dict = dict(node)
        if chance.random() < 0.1:
            del changed_dict[key]
        else:
            changed_dict[key] = changed_tree(chance, changed_dict[key])
        return changed_dict
    if type(node) is int and chance.random() < 0.4:
        return node + chance.choice((-1, 1, 2, 1 << 20))
    return chance.choice(
        [
            *_ODD,
            [chance.randrange(tags.COUNT)],
            [tags.REF, chance.randrange(8)],
            [tags.BLOB, chance.randrange(8)],
            [chance.randrange(tags.COUNT), node],
            [chance.randrange(tags.COUNT), node, node],
            [tags.LIST, node, node],
            {"b": "<f8", "s": [1]},
        ]
    )


def changed_message(chance: random.Random, data: bytes) -> bytes:
    """Return the message ``data`` of the codec, changed in its bytes or in its structure."""
    if chance.random() < 0.4:
        return changed_bytes(chance, data)
    (length,) = struct.unpack_from("<Q", data, 4)
    head = msgspec.msgpack.decode(data[_PREFIX : _PREFIX + length])
    blobs = bytearray(data[_PREFIX + length :])
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        head[1] = changed_tree(chance, head[1])
    if chance.random() < 0.05:
        head[2] = changed_tree(chance, head[2])
    if blobs and chance.random() < 0.3:
        for _ in range(chance.choice((1, 3))):
            blobs[chance.randrange(len(blobs))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
    try:
        raw = msgspec.msgpack.encode(head)
    except (OverflowError, ValueError):
        return changed_bytes(chance, data)
    body = _realigned(head, length, blobs, len(raw))
    return data[:4] + struct.pack("<Q", len(raw)) + raw + body


def _realigned(head: Any, length: int, blobs: bytearray, new_length: int) -> bytes:
    """Return the blobs with the gaps that a head of another length needs."""
    sizes = head[2] if isinstance(head[2], list) else []
    if not all(type(size) is int and 0 <= size <= len(blobs) for size in sizes):
        return bytes(blobs)
    old, new, made = _PREFIX + length, _PREFIX + new_length, bytearray()
    for size in sizes:
        old_gap, new_gap = (-at % 64 if size >= 4_096 else 0 for at in (old, new))
        start = old + old_gap - _PREFIX - length
        made += bytes(new_gap) + blobs[start : start + size]
        old += old_gap + size
        new += new_gap + size
    return bytes(made)
