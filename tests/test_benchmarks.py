"""What the benchmarks decide before they measure anything."""

from __future__ import annotations

import pytest

from benchmarks.hevc33 import assign, family

NAMES = [
    "Kimono",
    "ParkScene",
    "Cactus",
    "BQTerrace",
    "BasketballDrive",
    "Tennis",
    "Yan",
    "Simo",
    "Male",
    "Female",
    "Lee",
    "Couple",
    "RaceHorsesC",
    "BQMall",
    "PartyScene",
    "BasketballDrill",
    "Keiba",
    "RaceHorsesD",
    "BQSquare",
    "BlowingBubbles",
    "BasketballPass",
    "FourPeople",
    "Johnny",
    "KristenAndSara",
    "Vidyo1",
    "Vidyo3",
    "Vidyo4",
    "BasketballDrillText",
    "ChinaSpeed",
    "SlideEditing",
    "SlideShow",
    "Traffic",
    "PeopleOnStreet",
]


def test_clips_of_one_scene_are_one_family_and_others_are_not():
    together = [{"BasketballDrill", "BasketballDrillText"}, {"RaceHorsesC", "RaceHorsesD"}]
    together += [{"Vidyo1", "Vidyo3", "Vidyo4"}, {"Johnny", "KristenAndSara", "FourPeople"}]
    together.append({"Yan", "Simo", "Male", "Female", "Lee", "Couple"})
    for name in NAMES:
        same = {other for other in NAMES if family(other) == family(name)}
        assert same == next((group for group in together if name in group), {name})


@pytest.mark.parametrize("folds", [2, 4, 5])
def test_no_family_is_split_and_folds_have_nearly_equal_size(folds):
    fold = assign(NAMES, folds)
    assert set(fold) == set(NAMES)
    sizes = [list(fold.values()).count(k) for k in range(folds)]
    assert sum(sizes) == len(NAMES)
    assert max(sizes) - min(sizes) <= 1
    for one in NAMES:
        assert {fold[other] for other in NAMES if family(other) == family(one)} == {fold[one]}


def test_folds_do_not_depend_on_the_order_of_the_names():
    assert assign(NAMES, 4) == assign(NAMES[::-1], 4)
