"""What the benchmarks decide before they measure anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from avsal import from_pretrained
from avsal.models.speaker import SpeakerGate
from avsal.nn.cpc import PredictiveCoding
from benchmarks import real_gaze, speaker
from benchmarks.hevc33 import assign, family
from benchmarks.mechanisms import coding_errors, coding_table, enlarged, reasons, retention, retention_table
from tests.data.test_photos import make_set

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


def test_prediction_errors_are_told_by_level_and_iteration_as_shares_of_the_first():
    # (clips, iterations, levels): the middle doubles, the others stay, whatever a clip's size.
    errors = torch.ones(4, 2, 3) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    errors[:, 1, 1] *= 2
    own = coding_errors({"cpc_error": errors}).numpy()
    lines = coding_table({"own": own, "swapped": own + 1}, iterations=2)
    shown = {tuple(line.split(" | ")[:2]): line.split(" | ")[2:] for line in lines[2:]}
    assert shown["| visual state", "right sound"] == ["2.5 (100 %)", "100.0 [100.0, 100.0] % |"]
    assert shown["| middle", "right sound"] == ["2.5 (100 %)", "200.0 [200.0, 200.0] % |"]
    assert shown["| middle", "another clip's"][1] != "200.0 [200.0, 200.0] % |"
    assert len(shown) == 6


def test_retention_is_told_with_both_sounds_and_the_difference_of_the_same_clips():
    maps = torch.zeros(3, 2, 4, 2, 1, 1, 2)  # clips, blocks, heads, moments, T, h, w
    maps[..., 0], maps[..., 1] = 1.0, -3.0
    density = torch.zeros(3, 1, 4, 8)
    density[..., :4] = (
        1.0  # all of it on the left cell, which lies 2 above the mean, at a deviation of sqrt(8)
    )
    own = retention({"Ret_A": maps}, density).numpy()
    # mean, mean size, deviation over places, height at the gaze
    assert own.tolist() == [[-1.0, 2.0, pytest.approx(8**0.5), pytest.approx(2 / 8**0.5)]] * 3
    lines = retention_table({"own": own, "swapped": own - np.array([0.0, 0.5, 0.0, 0.0])})
    assert lines[2].split(" | ")[1:] == [
        "-1.000 [-1.000, -1.000]",
        "-1.000 [-1.000, -1.000]",
        "+0.000 [+0.000, +0.000] |",
    ]
    assert lines[3].split(" | ")[3] == "+0.500 [+0.500, +0.500] |"


def test_reasons_of_growing_errors_follow_from_the_size_of_a_linear_coding() -> None:
    """One place, up x, down 3 x, no sound: g is 3, the error grows by (1 + 0.1 * 2)^2, with a tenth by 1.02^2."""
    coding = PredictiveCoding(1, 1, layers=2, alpha=0.1, alpha_top=0.0)
    for parameter in coding.parameters():
        torch.nn.init.zeros_(parameter)
    coding.up[0].weight.data[0, 0, 1, 1, 1] = 1.0  # type: ignore[operator, union-attr, index]
    coding.down[0].weight.data[0, 0, 1, 1, 1] = 3.0 / 0.9  # type: ignore[operator, union-attr, index]
    # The middle moves 0.1 of the way to its own prediction, which is 0 here.
    found = reasons(coding, torch.ones(2, 1, 1, 1, 1), torch.zeros(2, 1), torch.zeros(2, 1))
    expected = [1.0, 0.0, 0.0, 3.0, 144.0, 144.0, None, 144.0, -1.0]
    for value, wanted in zip(found[0].tolist(), expected, strict=True):
        assert wanted is None or value == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert 100 < found[0, 6] < 106
    coding.gradient = "total"
    assert reasons(coding, torch.ones(2, 1, 1, 1, 1), torch.zeros(2, 1), torch.zeros(2, 1)).shape == (2, 3)


def test_a_network_for_larger_frames_has_the_same_weights() -> None:
    module = from_pretrained("avrsp-tiny-synthav")
    larger = enlarged(module, 2)
    assert larger.spec.size == (128, 192)
    for name, value in module.state_dict().items():
        assert torch.equal(value, larger.state_dict()[name]), name


def test_real_gaze_scores_a_checkpoint_beside_priors_and_observers(tmp_path: Path) -> None:
    make_set(tmp_path / "data", count=30)
    out = tmp_path / "table.md"
    arguments = ["mine=stavis-tiny-visual-hevc33", "--photos", str(tmp_path / "data"), "--out", str(out)]
    arguments += ["--work", str(tmp_path / "work"), "--pictures", str(tmp_path / "worst")]
    real_gaze.main(arguments)
    text = out.read_text()
    rows = json.loads((tmp_path / "work" / "part0.json").read_text())
    assert list(rows) == ["uniform", "centre prior", "fitted prior", "mine", "half of the observers"]
    values = {name: sum(v["cc"] for v in row.values()) / len(row) for name, row in rows.items()}
    # Every observer looks at the middle, then at the square: one half tells exactly where the other looked.
    assert values["half of the observers"] > 0.99 > values["centre prior"] > values["uniform"]
    assert f"| mine | {values['mine']:.3f} [" in text
    assert "_minus fitted prior_" in text
    assert len(list((tmp_path / "worst").glob("*.png"))) == 3


def test_real_gaze_compares_two_rows_over_all_clips_and_each_group(tmp_path: Path) -> None:
    rows: real_gaze.Rows = {
        "old": {f"HEVC33/{n}": {"cc": 0.1 * k, "nss": 1.0} for k, n in enumerate(("Yan", "Lee", "Traffic"))},
        "new": {f"HEVC33/{n}": {"cc": 0.1 * k + d, "nss": 1.5} for k, (n, d) in
                enumerate((("Yan", 0.2), ("Lee", 0.2), ("Traffic", -0.1)))},
    }  # fmt: skip
    groups = {"talking": frozenset({"HEVC33/Yan", "HEVC33/Lee"}), "the others": frozenset({"HEVC33/Traffic"})}
    part = real_gaze.Part("HEVC-33", [], lambda _: [], (), 30, groups)
    lines = real_gaze.pair_tables(rows, "old", "new", part, ("cc", "nss"))
    found = [line.split(" | ")[1:] for line in lines if line.startswith("| _minus old_")]
    assert [cells[0].split(" [")[0] for cells in found] == ["+0.100", "+0.200", "-0.100"]
    assert found[1] == ["+0.200 [+0.200, +0.200]", "+0.500 [+0.500, +0.500] |"]
    assert real_gaze.item_table(rows, ["old", "new"])[2:] == [
        "| Lee | 0.100 | 1.000 | 0.300 | 1.500 |",
        "| Traffic | 0.200 | 1.000 | 0.100 | 1.500 |",
        "| Yan | 0.000 | 1.000 | 0.200 | 1.500 |",
    ]


def test_frame_to_frame_steadiness_is_the_correlation_of_neighbours_within_the_burst() -> None:
    first, second = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(0))
    between = float(np.corrcoef(first.flatten(), second.flatten())[0, 1])
    maps = [first, first, second] + [second] * 40 + [first]  # what comes after the burst does not count
    value = real_gaze.adjacent(iter(maps))["adjacent"]
    assert value == pytest.approx((between + real_gaze.BURST - 2) / (real_gaze.BURST - 1), abs=1e-5)


class Alike(speaker.Cases):
    """Cases of people whose scores are given: a mouth fits its own voice only, or if it is `odd` least of all."""

    odd = ""

    def _scored(self, face: int, variant: str, sound: tuple[int, str] | None, shift: int) -> torch.Tensor:
        seen = {"plain": 1.0, "backwards": 1.0, "still": -2.0}[variant]
        fits = variant == "plain" and sound in ((face, "voice"), (face, "voice and music")) and not shift
        agrees = float(fits) if self.clips[face].person != self.odd else -float(fits)
        return torch.tensor([seen, 0.0, agrees]).expand(60, 3)


@pytest.fixture
def cases() -> Alike:
    names = (("a1", "a"), ("a2", "a"), ("b", "b"), ("c", "c"), ("d", "d"))
    return Alike(None, [speaker.Clip(name, person, {}, {}) for name, person in names])  # type: ignore[arg-type]


def test_redubbed_pairs_are_of_different_people_and_the_voice_swapped_in_is_of_a_third(cases: Alike) -> None:
    assert len(cases.pairs) == 18  # 20 ordered pairs less the two of one person
    for i, k in cases.pairs:
        third = cases.clips[cases.other(i, k)].person
        assert third not in (cases.clips[i].person, cases.clips[k].person)


def test_the_right_face_is_the_one_whose_mouth_fits_or_moves(cases: Alike) -> None:
    gate = SpeakerGate()
    for case in speaker.CASES:
        assert cases.right(gate, case, "own").tolist() == [1.0] * 18
        without = 1.0 if "still" in case else 0.0  # faces alike: none has the larger share
        for condition in ("shifted 3 s", "swapped", "near-silent", "none"):
            assert cases.right(gate, case, condition).tolist() == [without] * 18
    assert all(not values.any() for values in cases.moved(gate, "two talkers", "swapped"))


def test_weights_of_the_sound_are_fitted_on_other_people(cases: Alike) -> None:
    cases.odd = "a"
    chosen = cases.fitted(SpeakerGate())
    assert set(chosen) == set(cases.pairs)
    # Where a is left out agreement is all that counts; a misleads the fit for b and c.
    assert chosen[0, 3][1] == chosen[2, 1][1] == max(speaker.AGREES)
    assert chosen[2, 3][1] == 0.0


def test_music_is_as_loud_as_it_says_and_near_silence_is_one_step_of_16_bit_sound() -> None:
    assert float(speaker.music(40_000).square().mean().sqrt()) == pytest.approx(0.1, rel=1e-3)
    steps = speaker.almost_silent(10_000) * 32768
    assert set(steps.tolist()) <= {-1.0, 0.0, 1.0}
    wave = speaker.Wave(torch.arange(1.0, 5.0))
    assert wave.read(-2, 6).tolist() == [0, 0, 1, 2, 3, 4, 0, 0]
    assert wave.read(9, 11).tolist() == [0, 0]
