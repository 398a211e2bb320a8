"""The closed table of node tags. A number is never given another meaning; new ones are added."""

from __future__ import annotations

import re
from typing import Any, Final

VERSION: Final = 1
VALUE_MAGIC: Final = b"GXV2"
RESULT_MAGIC: Final = b"GXR2"

# Containers; numbered in the memo.
LIST: Final = 0
TUPLE: Final = 1
DICT: Final = 2
SET: Final = 3
FROZENSET: Final = 4
ORDERED_DICT: Final = 5
DEFAULT_DICT: Final = 6
COUNTER: Final = 7
DEQUE: Final = 8
BYTEARRAY: Final = 9
FLOATS: Final = 10
INTS: Final = 11
BOOLS: Final = 12
STRINGS: Final = 13
# Structure.
REF: Final = 14
BLOB: Final = 15
INPUT: Final = 16
OPAQUE: Final = 17
# Scalars.
BIG_INT: Final = 18
COMPLEX: Final = 19
SURROGATES: Final = 20
RANGE: Final = 21
SLICE: Final = 22
ELLIPSIS: Final = 23
NOT_IMPLEMENTED: Final = 24
DATETIME: Final = 25
DATE: Final = 26
TIME: Final = 27
TIMEDELTA: Final = 28
TIMEZONE: Final = 29
DECIMAL: Final = 30
FRACTION: Final = 31
UUID: Final = 32
PATH: Final = 33
# The user's own classes and functions.
OBJECT: Final = 34
ENUM: Final = 35
NAMED_TUPLE: Final = 36
DEFINITION: Final = 37
# numpy.
ARRAY: Final = 38
NUMPY_SCALAR: Final = 39
# pandas.
FRAME: Final = 40
SERIES: Final = 41
INDEX: Final = 42
RANGE_INDEX: Final = 43
MULTI_INDEX: Final = 44
CATEGORICAL: Final = 45
MASKED: Final = 46
ZONED: Final = 47
TEXT_COLUMN: Final = 48
TIMESTAMP: Final = 49
PANDAS_TIMEDELTA: Final = 50
PANDAS_NA: Final = 51
PANDAS_NAT: Final = 52
# Others.
ARROW_ARRAY: Final = 53
ARROW_TABLE: Final = 54
POLARS_FRAME: Final = 55
SPARSE: Final = 56
IMAGE: Final = 57
TENSOR: Final = 58
# Many of one form, column by column.
MAPPING: Final = 59
ROWS: Final = 60
OBJECTS: Final = 61
# Random generators.
GENERATOR: Final = 62
RANDOM: Final = 63
# Many of one form again: sequences of one length, and one scalar type in other containers.
SEQUENCES: Final = 64
PACKED: Final = 65
# Code of the user with the values that it holds; exceptions as values.
FUNCTION: Final = 66
CELL: Final = 67
PARTIAL: Final = 68
EXCEPTION: Final = 69
PATTERN: Final = 70
MASKED_ARRAY: Final = 71
ARRAY_VIEW: Final = 72
ITERATOR: Final = 73
PLAIN: Final = 74
TYPED_ARRAY: Final = 75
ESTIMATOR: Final = 76
NUMPY_DTYPE: Final = 77
PANDAS_DTYPE: Final = 78
RECORD: Final = 79
NAMED_RECORD: Final = 80
# An instance of a class of the user that is derived from a builtin value or container.
DERIVED: Final = 81
# Files in memory, functions over arrays, pandas' spans of time and of numbers.
MEMORY_FILE: Final = 82
VECTORIZED: Final = 83
PERIOD: Final = 84
INTERVAL: Final = 85
PERIODS: Final = 86
INTERVALS: Final = 87
COUNT: Final = 88

NUMBERED_WHEN_MADE: Final = frozenset(
    {
        INDEX, RANGE_INDEX, MULTI_INDEX, CATEGORICAL, MASKED, ZONED, TEXT_COLUMN, ARROW_ARRAY,
        ARROW_TABLE, POLARS_FRAME, SPARSE, IMAGE, TENSOR, GENERATOR, RANDOM, PERIODS, INTERVALS,
    }
)  # fmt: skip
"""Values of libraries that get their number in the memo after their parts, where they are values
of the user and no parts of a frame."""

NAMESPACE: Final = "globals()"
"""What an INPUT names that is no variable: the namespace itself."""

FACTORIES: Final[dict[str, Any]] = {
    "int": int,
    "float": float,
    "list": list,
    "dict": dict,
    "set": set,
    "str": str,
    "NoneType": None,
}
"""What a defaultdict may make."""

TIME_ZONE_KEY: Final = re.compile(r"[A-Za-z0-9_+\-]{1,32}(?:/[A-Za-z0-9_+\-]{1,32}){0,3}\Z")
"""No dot, so no path out of the time zone data."""
