"""Sparse matrices, images and tensors, from their raw memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from . import tags
from .failures import CodecError, Unsupported
from .libraries import load, loaded
from .numpy_values import decode_array, encode_array

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_SPARSE: Final = frozenset(
    {"csr_matrix", "csc_matrix", "coo_matrix", "csr_array", "csc_array", "coo_array"}
)
_IMAGE_MODES: Final = {
    "L": 1, "P": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "I;16": 2, "I": 4, "F": 4, "LA": 2, "YCbCr": 3,
}  # fmt: skip
"""Bytes a pixel; mode 1 packs eight pixels into a byte."""
_MAX_SIDE: Final = 1 << 16
_TENSORS: Final = frozenset(
    [
        "float16",
        "float32",
        "float64",
        "bfloat16",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "bool",
        "complex64",
        "complex128",
    ]
)


def encode_sparse(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a scipy sparse matrix or array."""
    name = type(value).__name__
    if name not in _SPARSE or len(value.shape) != 2:
        raise Unsupported(name)
    if name.startswith("coo"):
        parts = [value.data, *value.coords]
    else:
        parts = [value.data, value.indices, value.indptr]
    arrays = [encode_array(encoder, loaded("numpy").asarray(part), depth) for part in parts]
    return [tags.SPARSE, name, list(value.shape), *arrays]


def encode_image(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a PIL image."""
    mode = getattr(value, "mode", "")
    if not hasattr(value, "tobytes") or not (mode == "1" or mode in _IMAGE_MODES):
        raise Unsupported(type(value).__qualname__)
    palette = value.getpalette() if mode == "P" else None
    blobs = encoder.blob(value.tobytes()), None if palette is None else bytes(palette)
    return [tags.IMAGE, mode, list(value.size), *blobs]


def encode_tensor(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a torch tensor, as a tensor of the CPU."""
    torch = loaded("torch")
    name = str(value.dtype).partition(".")[2] if type(value) is torch.Tensor else ""
    if name not in _TENSORS:
        raise Unsupported(type(value).__qualname__)
    flat = value.detach().cpu().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    wants_gradient = bool(value.requires_grad)
    return [tags.TENSOR, name, list(value.shape), wants_gradient, encoder.blob(raw)]


# ---------------------------------------------------------------- decode


def _decode_sparse(decoder: Decoder, node: list[Any], depth: int) -> Any:
    sparse, numpy = load("scipy.sparse"), load("numpy")
    decoder.check(len(node) == 6 and type(node[1]) is str and node[1] in _SPARSE, "sparse")
    decoder.check(type(node[2]) is list and len(node[2]) == 2, "sparse")
    rows, columns = (decoder.integer(side, 0, 1 << 40) for side in node[2])
    decoder.check(rows * columns < 1 << 62, "sparse")
    arrays = [decode_array(decoder, part, depth) for part in node[3:]]
    data, first, second = arrays
    decoder.check(all(array.ndim == 1 for array in arrays), "sparse")
    decoder.check(data.dtype.kind in "biufc", "sparse")
    decoder.check(all(array.dtype.str in ("<i4", "<i8") for array in arrays[1:]), "sparse")
    make = getattr(sparse, node[1])
    try:
        if node[1].startswith("coo"):
            decoder.check(len(data) == len(first) == len(second), "sparse")
            _check_range(decoder, first, rows)
            _check_range(decoder, second, columns)
            return make((data, (first, second)), shape=(rows, columns))
        # Our own checks: scipy's full check passes over everything when the last pointer is 0.
        major, minor = (rows, columns) if node[1].startswith("csr") else (columns, rows)
        decoder.check(len(second) == major + 1 and second[0] == 0, "sparse")
        decoder.check(second[-1] == len(first) == len(data), "sparse")
        decoder.check(not (numpy.diff(second) < 0).any(), "sparse")
        _check_range(decoder, first, minor)
        return make((data, first, second), shape=(rows, columns))
    except CodecError:
        raise
    except Exception as exc:
        raise CodecError(f"The result is malformed (sparse: {type(exc).__name__}).") from None


def _check_range(decoder: Decoder, indices: Any, end: int) -> None:
    if len(indices):
        decoder.check(indices.min() >= 0 and indices.max() < end, "sparse")


def _decode_image(decoder: Decoder, node: list[Any], depth: int) -> Any:
    image = load("PIL.Image")
    decoder.check(len(node) == 5 and type(node[1]) is str, "image")
    decoder.check(node[1] == "1" or node[1] in _IMAGE_MODES, "image")
    decoder.check(type(node[2]) is list and len(node[2]) == 2, "image")
    width, height = (decoder.integer(side, 0, _MAX_SIDE) for side in node[2])
    raw = bytes(decoder.raw(node[3]))
    packed = (width + 7) // 8 * height
    size = packed if node[1] == "1" else width * height * _IMAGE_MODES[node[1]]
    decoder.check(len(raw) == size, "image")
    palette = node[4]
    decoder.check(palette is None or (node[1] == "P" and type(palette) is bytes), "image")
    try:
        made = image.frombytes(node[1], (width, height), raw)
        if palette is not None:
            decoder.check(len(palette) % 3 == 0 and len(palette) <= 768, "image")
            made.putpalette(palette)
        return made
    except CodecError:
        raise
    except Exception as exc:
        raise CodecError(f"The result is malformed (image: {type(exc).__name__}).") from None


def _decode_tensor(decoder: Decoder, node: list[Any], depth: int) -> Any:
    torch = load("torch")
    decoder.check(len(node) == 5 and type(node[1]) is str and node[1] in _TENSORS, "tensor")
    decoder.check(type(node[3]) is bool and type(node[2]) is list and len(node[2]) <= 32, "tensor")
    dtype = getattr(torch, node[1])
    count = 1
    for side in node[2]:
        count *= decoder.integer(side, 0, 1 << 40)
    raw = decoder.raw(node[4])
    decoder.check(len(raw) == count * dtype.itemsize, "tensor")
    if count == 0:
        made = torch.empty(node[2], dtype=dtype)
    else:
        flat = torch.frombuffer(decoder.own(node[4]), dtype=torch.uint8)
        if node[1] == "bool":
            decoder.check(not bytes(raw).strip(b"\0\1"), "tensor")
        made = flat.view(dtype).reshape(node[2])
    return made.requires_grad_(node[3] and (dtype.is_floating_point or dtype.is_complex))


DECODERS: Final = {
    tags.SPARSE: _decode_sparse,
    tags.IMAGE: _decode_image,
    tags.TENSOR: _decode_tensor,
}
