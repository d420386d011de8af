"""MATLAB files of every version as plain dictionaries and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from avsal.errors import DataError

_HDF5 = b"\x89HDF\r\n\x1a\n"


def load_mat(path: Path) -> dict[str, Any]:
    """Read a .mat file, v4 to v7.3.

    Structs become dictionaries, cells become lists, char arrays become str, and arrays have MATLAB's orientation in
    both formats (v7.3 stores them transposed).

    Raises:
        DataError: the file is missing, damaged or no MATLAB file.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(520)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    try:
        if _HDF5 in (head[:8], head[512:520]):
            return _load_hdf5(path)
        from scipy.io import loadmat

        content = loadmat(path, simplify_cells=True)
        return {name: value for name, value in content.items() if not name.startswith("__")}
    except DataError:
        raise
    except Exception as error:  # the two readers raise a dozen kinds of errors on damaged files
        raise DataError(f"{path}: not a readable MATLAB file ({type(error).__name__}: {error}).") from error


def _load_hdf5(path: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(path, "r") as file:
        return {name: _convert(value, file) for name, value in file.items() if not name.startswith("#")}


def _convert(node: Any, file: Any) -> Any:
    import h5py

    if isinstance(node, h5py.Group):
        if "data" in node and "ir" in node and "jc" in node:  # sparse matrix
            return _sparse(node)
        return {name: _convert(value, file) for name, value in node.items()}
    kind = node.attrs.get("MATLAB_class", b"")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if node.attrs.get("MATLAB_empty", 0):
        return "" if kind == "char" else [] if kind == "cell" else np.zeros(0)
    value = node[()]
    if kind == "char":
        return "".join(chr(c) for c in np.asarray(value).T.ravel())
    if value.dtype == h5py.ref_dtype:
        return [_convert(file[reference], file) for reference in np.asarray(value).T.ravel(order="F")]
    array = np.asarray(value).T
    return (
        array.item()
        if array.size == 1 and array.ndim <= 2
        else np.squeeze(array)
        if 1 in array.shape
        else array
    )


def _sparse(node: Any) -> np.ndarray:
    from scipy.sparse import csc_matrix

    rows = int(node.attrs["MATLAB_sparse"])
    columns = len(node["jc"]) - 1
    return csc_matrix((node["data"][()], node["ir"][()], node["jc"][()]), shape=(rows, columns)).toarray()
