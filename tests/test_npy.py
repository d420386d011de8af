"""Pickled NumPy files: what NumPy writes is read, what an attacker writes is refused before anything is built."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from avsal.errors import DataError
from avsal.npy import read_npy

CASES = Path(__file__).parent / "cases"


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_nested_arrays_are_read_as_numpy_wrote_them(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(0)
    content = {
        "conv1": {"weights": rng.random((4, 1, 2, 3), dtype="f4"), "var": np.asfortranarray(rng.random((2, 3)))},
        "numbers": [1, 2.5, "name", None, np.float32(0.25), np.arange(3, dtype=">i2")],
        "none": np.zeros((0, 2)),
    }  # fmt: skip
    path = tmp_path / "nested.npy"
    write_object(path, content, protocol)
    read = read_npy(path)
    assert list(read) == list(content)
    for name, value in content["conv1"].items():
        np.testing.assert_array_equal(read["conv1"][name], value)
        assert read["conv1"][name].dtype == value.dtype
    assert read["numbers"][:5] == content["numbers"][:5]
    np.testing.assert_array_equal(read["numbers"][5], [0, 1, 2])
    assert read["none"].shape == (0, 2)


def write_object(path: Path, content: object, protocol: int = 3) -> None:
    array = np.empty((), dtype=object)
    array[()] = content
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(array, file, protocol)


def test_ragged_points_and_plain_arrays_are_read(tmp_path: Path) -> None:
    ragged = np.empty(3, dtype=object)
    ragged[:] = [np.zeros((2, 2)), np.ones((0, 2)), np.full((1, 2), 7.0)]
    np.save(tmp_path / "ragged.npy", ragged, allow_pickle=True)
    read = read_npy(tmp_path / "ragged.npy")
    assert [points.shape for points in read] == [(2, 2), (0, 2), (1, 2)]
    np.save(tmp_path / "plain.npy", np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(read_npy(tmp_path / "plain.npy"), np.arange(6).reshape(2, 3))


def forged(path: Path, body: bytes) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    path.write_bytes(header.getvalue() + body)
    return path


class Forged:
    """Pickles as a call with a state, whatever they are."""

    def __init__(self, call: object, arguments: tuple[object, ...], state: object = None) -> None:
        self.made = (call, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.made


def rebuilt(state: object) -> Forged:
    from numpy._core.multiarray import _reconstruct

    return Forged(_reconstruct, (np.ndarray, (0,), b"b"), state)


ATTACKS = {
    "a command": lambda: Forged(__import__("os").system, ("touch never",)),
    "another function of NumPy": lambda: Forged(np.load, ("x.npy",)),
    "bytes as pointers": lambda: rebuilt((1, (1,), np.dtype("O"), False, b"\x41" * 8)),
    "bytes as pointers in a structure": lambda: rebuilt((1, (1,), np.dtype([("a", "O")]), False, b"\x41" * 8)),
    "too few bytes": lambda: rebuilt((1, (1000,), np.dtype("f8"), False, b"\0" * 8)),
    "a huge shape": lambda: rebuilt((1, (1 << 40,), np.dtype("f8"), False, b"")),
    "a negative shape": lambda: rebuilt((1, (-1, -1), np.dtype("O"), False, [0])),
    "no state": lambda: rebuilt(None),
    "a state that is none": lambda: rebuilt((1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_forged_pickle_is_refused(tmp_path: Path, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = forged(tmp_path / "forged.npy", pickle.dumps(ATTACKS[attack](), 3))
    with pytest.raises(DataError, match=r"forged\.npy"):
        read_npy(path)
    assert not (tmp_path / "never").exists()


def test_a_pickle_that_contains_itself_or_refers_outside_is_refused(tmp_path: Path) -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(DataError, match="contains itself"):
        read_npy(forged(tmp_path / "loop.npy", pickle.dumps(loop)))
    with pytest.raises(DataError, match="outside the file"):
        read_npy(forged(tmp_path / "outside.npy", b"Pname\n."))


def test_a_type_forged_to_hold_pointers_is_refused() -> None:
    with pytest.raises(DataError, match="structured type"):
        read_npy(CASES / "obj_ptr.npy")


def test_shared_contents_are_built_once(tmp_path: Path) -> None:
    # Each level refers twice to the one below: built anew each time, this would be 2^60 lists.
    level: list[object] = [np.zeros(1)]
    for _ in range(60):
        level = [level, level]
    write_object(tmp_path / "shared.npy", level)
    read = read_npy(tmp_path / "shared.npy")
    assert read[0] is read[1]
