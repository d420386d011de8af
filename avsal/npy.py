"""NumPy files with pickled contents, read without NumPy's unpickling.

An object array is stored as a pickle. NumPy rebuilds it from whatever state the file holds, and a forged state (raw
bytes taken for pointers) corrupts memory. Here a pickle may name a few constructors, all of them replaced by plain
Python that keeps their arguments; arrays are then built from bytes of plain numbers only.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avsal.errors import DataError

_OTHER_ORDER = ">" if sys.byteorder == "little" else "<"
_PLAIN = "biufc"  #: kinds of dtype whose bytes are numbers


class _DType:
    """Keeps what a pickled dtype says: its code and its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # Version, byte order, then fields of structured types, which plain numbers do not have.
        if any(part is not None for part in state[2:5]):
            raise DataError("a structured type, which is not read")
        self.order = str(state[1])

    def plain(self) -> np.dtype[Any]:
        dtype = np.dtype(self.code)
        if dtype.kind not in _PLAIN:
            raise DataError(f"numbers of the type {self.code!r}, which are not read")
        return dtype.newbyteorder("S") if self.order == _OTHER_ORDER else dtype


class _Array:
    """Keeps what a pickled array says, and builds it in `value`."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def value(self, resolve: Any) -> Any:
        try:
            _, shape, dtype, fortran, data = self.state
            count = math.prod(int(length) for length in shape)
        except (TypeError, ValueError):
            raise DataError("an array without shape, type and values") from None
        if not isinstance(dtype, _DType):
            raise DataError("an array of an unknown type")
        if isinstance(data, list):
            if dtype.code not in ("O", "O8") or len(data) != count or any(length < 0 for length in shape):
                raise DataError("an object array whose list of values does not fit it")
            flat = np.empty(count, dtype=object)
            for index, item in enumerate(data):
                flat[index] = resolve(item)
            return flat.reshape(shape, order="F" if fortran else "C") if shape else flat[0]
        plain = dtype.plain()
        data = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(data, bytes) or len(data) != count * plain.itemsize:
            raise DataError("an array whose bytes do not fit its shape")
        return np.frombuffer(data, plain).reshape(shape, order="F" if fortran else "C")


class _Scalar:
    """Keeps a pickled NumPy number."""

    def __init__(self, dtype: Any = None, data: Any = b"") -> None:
        self.array = _Array()
        self.array.state = (1, (1,), dtype, False, data)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise DataError(f"bytes written in {encoding!r}")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    # Old protocols write empty bytes as a call; with an argument it would reserve memory.
    if arguments:
        raise DataError("a call of bytes")
    return b""


_NAMES: dict[tuple[str, str], Any] = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _DType}
_NAMES["_codecs", "encode"] = _encode
_NAMES["__builtin__", "bytes"] = _NAMES["builtins", "bytes"] = _no_bytes
for _package in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _NAMES[_package, "_reconstruct"] = _Array
    _NAMES[_package, "scalar"] = _Scalar


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise DataError(f"{module}.{name}, which arrays do not need; it is not read")
        # A fresh object each time: a pickle can set attributes of what it is given.
        return partial(_NAMES[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("references to something outside the file")


def _plain(content: Any) -> Any:
    """Replace the stand-ins by arrays and numbers, each once, however often it is referred to."""
    done: dict[int, Any] = {}
    open_: set[int] = set()

    def resolve(item: Any) -> Any:
        if not isinstance(item, dict | list | tuple | _Array | _Scalar):
            return item
        if id(item) in done:
            return done[id(item)]
        if id(item) in open_:
            raise DataError("an array that contains itself")
        open_.add(id(item))
        if isinstance(item, dict):
            value: Any = {resolve(key): resolve(inner) for key, inner in item.items()}
        elif isinstance(item, list | tuple):
            value = type(item)(resolve(inner) for inner in item)
        elif isinstance(item, _Scalar):
            value = item.array.value(resolve)[0]
        else:
            value = item.value(resolve)
        open_.discard(id(item))
        done[id(item)] = value
        return value

    return resolve(content)


def read_npy(path: Path) -> Any:
    """Return the content of a .npy file: an array, or for a pickled one its arrays, lists, dictionaries and numbers.

    Nothing in the file can run code, and no more memory is used than a few times the file's size.

    Raises:
        DataError: the file is no .npy file, is damaged, or holds something else than arrays and containers.
    """
    try:
        data = path.read_bytes()
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(stream)
        if dtype.hasobject:
            return _plain(_Unpickler(stream, encoding="latin1").load())
        if math.prod(shape) * dtype.itemsize > len(data):
            raise DataError("fewer values than its header says")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except DataError as error:
        raise DataError(f"{path}: the file holds {error}. Write plain arrays with numpy.save.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except RecursionError:
        raise DataError(f"{path}: the file's contents are nested too deeply.") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{path}: not a NumPy file, or a damaged one ({error}).") from None
