"""Results files to scores: folds, screening of what does not belong together, and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avsal.errors import DataError
from avsal.report.measured import board
from avsal.report.papers import SYSTEMS, TABLES, system_of
from avsal.report.published import SIX, cells
from tests.report.fake import METRICS, VIDEOS, results, write


def folds(data: str, **options: object) -> list:
    return [results(data, fold, **options) for fold in (1, 2, 3)]  # type: ignore[arg-type]


def test_five_sets_pool_the_videos_of_all_folds(tmp_path: Path) -> None:
    runs = folds("Coutrot2")
    del runs[1].videos["Coutrot_db2/v200"]  # folds of different sizes tell pooling from a mean of means
    entry = board(write(tmp_path, *runs)).of("Coutrot2")[0]
    values = [row["nss"] for run in runs for row in run.videos.values()]
    assert entry.scores["nss"].value == pytest.approx(np.mean(values))
    assert entry.scores["nss"].videos == len(values) == 3 * VIDEOS["Coutrot2"] - 1
    assert entry.units["nss"].rule == "pool"


def test_diem_is_the_mean_of_its_fold_means(tmp_path: Path) -> None:
    runs = folds("DIEM")
    runs[0].videos["DIEM/v000"]["cc"] = float("nan")
    entry = board(write(tmp_path, *runs)).of("DIEM")[0]
    means = [np.nanmean([row["cc"] for row in run.videos.values()]) for run in runs]
    assert entry.scores["cc"].value == pytest.approx(np.mean(means))
    assert entry.scores["cc"].videos == VIDEOS["DIEM"]
    assert entry.units["cc"].rule == "folds"


def test_average_over_frames_weighs_videos_by_their_frames(tmp_path: Path) -> None:
    videos = {
        f"DHF1K/{k}": {"cc": v, "frames": n, "frames_cc": n}
        for k, (v, n) in enumerate([(0.2, 300), (0.6, 100)])
    }
    run = results("DHF1K", None, videos=videos, protocol={"average": "frame"})
    assert board(write(tmp_path, run)).of("DHF1K")[0].scores["cc"].value == pytest.approx(0.3)


def test_a_file_about_several_sets_gives_each_its_own_number(tmp_path: Path) -> None:
    parts = [results(data, 1) for data in ("SynthAV_congruent", "SynthAV_silent")]
    both = results("synthav", 1, videos={**parts[0].videos, **parts[1].videos})
    found = board(write(tmp_path, both))
    assert found.sets == ["SynthAV_congruent", "SynthAV_silent"]
    for part, entry in zip(parts, found.entries, strict=True):
        assert entry.scores["cc"].value == pytest.approx(part.metrics["cc"])


def test_gaze_scores_come_from_means_over_frames(tmp_path: Path) -> None:
    rows = [(0.6, 0.3, 200), (0.4, 0.5, 100)]
    videos = {
        f"Ego4D/{k}": {"f1": 0.4, "recall": r, "precision": p, "frames": n}
        for k, (r, p, n) in enumerate(rows)
    }
    recall, precision = (np.average([row[k] for row in rows], weights=[200, 100]) for k in (0, 1))
    run = results("Ego4D", None, name="csts-ego4d", model="CSTS", videos=videos)
    run.metrics = {
        "f1": 2 * recall * precision / (recall + precision),
        "recall": recall,
        "precision": precision,
    }
    entry = board(write(tmp_path, run)).of("Ego4D, anticipation")[0]
    assert entry.scores["recall"].value == pytest.approx(recall)
    assert entry.scores["f1"].low < entry.scores["f1"].value < entry.scores["f1"].high
    assert entry.system is not None
    assert [c.value for c in entry.system.published("Ego4D")] == pytest.approx([0.397, 0.533, 0.316])


# -- what does not belong together -------------------------------------------------------------------------------


def test_another_protocol_is_named_and_left_out(tmp_path: Path) -> None:
    other = folds("DIEM", name="mspi", model="MSPI", protocol={"coverage": "authors"})
    found = board(write(tmp_path, *folds("DIEM"), *folds("DIEM", name="stavis-visual"), *other))
    assert {entry.label for entry in found.entries} == {"stavis-audiovisual", "stavis-visual"}
    assert len(found.notes) == 3
    assert all("coverage is authors, not full" in note and "mspi" in note for note in found.notes)


def test_other_metric_conventions_are_another_protocol(tmp_path: Path) -> None:
    other = folds("DIEM", name="mspi", model="MSPI")
    for run in other:
        run.conventions["auc_judd_ties"] = "jitter"
    found = board(write(tmp_path, *folds("DIEM"), *folds("DIEM", name="stavis-visual"), *other))
    assert len(found.notes) == 3
    assert "auc_judd_ties is jitter, not expected" in found.notes[0]


def test_another_version_of_the_data_is_named_and_left_out(tmp_path: Path) -> None:
    other = folds("DIEM", name="mspi", model="MSPI", fingerprint="other")
    found = board(write(tmp_path, *folds("DIEM"), *folds("DIEM", name="stavis-visual"), *other))
    assert {entry.label for entry in found.entries} == {"stavis-audiovisual", "stavis-visual"}
    assert all("fingerprints differ" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "reason"), [("fewer", "1 videos missing"), ("frames", "numbers of scored frames")]
)
def test_other_videos_or_frames_are_other_data(tmp_path: Path, change: str, reason: str) -> None:
    other = folds("DIEM", name="mspi", model="MSPI", frames=90 if change == "frames" else 100)
    if change == "fewer":
        for run in other:
            del run.videos["DIEM/v003"]
    found = board(write(tmp_path, *folds("DIEM"), *folds("DIEM", name="stavis-visual"), *other))
    assert {entry.label for entry in found.entries} == {"stavis-audiovisual", "stavis-visual"}
    assert all(reason in note for note in found.notes)


def test_of_duplicates_the_newest_stays(tmp_path: Path) -> None:
    old = results("DIEM", 2, level=0.3, created="2025-06-01T00:00:00+00:00")
    found = board(write(tmp_path, old, *folds("DIEM")))
    fresh = board(write(tmp_path / "fresh", *folds("DIEM")))
    assert found.entries[0].scores["cc"].value == fresh.entries[0].scores["cc"].value
    assert len(found.notes) == 1
    assert "repeats" in found.notes[0]
    assert "the same weights, metrics differ by up to 0.2" in found.notes[0]


def test_a_missing_fold_is_named_and_the_system_left_out(tmp_path: Path) -> None:
    found = board(write(tmp_path, *folds("AVAD")[:2]))
    assert found.entries == []
    assert "no result of 3" in found.notes[0]


def test_damaged_files_are_named_and_the_others_used(tmp_path: Path) -> None:
    write(tmp_path, *folds("DIEM"))
    (tmp_path / "half.json").write_text('{"schema_version": 1,')
    (tmp_path / "other.json").write_text("[]")
    found = board([tmp_path])
    assert len(found.entries) == 1
    assert sorted(Path(n.split(": ")[1]).name for n in found.notes) == ["half.json", "other.json"]


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*no results"):
        board([tmp_path / "nowhere"])


def test_swapped_sound_is_a_system_of_its_own(tmp_path: Path) -> None:
    found = board(write(tmp_path, *folds("DIEM"), *folds("DIEM", protocol={"sound": "swapped"}, level=0.4)))
    assert [(e.sound, e.title) for e in found.entries] == [
        ("own", "STAViS"),
        ("swapped", "STAViS, sound swapped"),
    ]


def test_a_file_without_cost_gets_the_size_of_its_architecture(tmp_path: Path) -> None:
    import avsal

    arguments = {"size": [32, 32], "width": 4, "blocks": [1, 1, 1], "frames": 8, "via": None}
    run = results("DHF1K", None, name="small", arguments=arguments)
    run.cost = None
    cost = board(write(tmp_path, run)).entries[0].cost
    assert cost is not None
    network = avsal.create_model("stavis", **arguments).network
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    assert cost.multiply_adds > 0
    assert cost.maps_per_second is None


# -- names ---------------------------------------------------------------------------------------------------------


def test_every_registry_checkpoint_of_a_paper_belongs_to_one_of_its_systems() -> None:
    from avsal.zoo.registry import entries

    named = {system_of(name, None, {}) for name, e in entries().items() if e.published and e.model != "isp"}
    assert {s.name for s in named if s} >= {
        "stavis-audiovisual",
        "stavis-visual",
        "mspi",
        "csts-ego4d",
        "csts-aria",
    }
    assert None not in {
        system_of(name, None, {})
        for name, e in entries().items()
        if e.model in ("stavis", "mspi", "csts") and e.published
    }


def test_published_rows_agree_with_the_registry() -> None:
    """Two files hold the papers' numbers; they were typed independently."""
    from avsal.report.published import METRICS as LABELS
    from avsal.report.published import PERCENT
    from avsal.zoo.registry import entries

    compared = 0
    for name, entry in entries().items():
        system = system_of(name, None, {})
        if system is None:
            continue
        for scores in entry.published:
            ours = {c.metric: c.value for c in system.published(scores.data)}
            for label, value in scores.metrics.items():
                key = LABELS[label][0]
                assert ours[key] == pytest.approx(value / (100 if key in PERCENT else 1)), (
                    name,
                    scores.data,
                    label,
                )
                compared += 1
    assert compared > 100


def test_an_own_training_of_the_papers_network_is_told_from_the_authors_weights(tmp_path: Path) -> None:
    assert system_of("best-epoch=012.ckpt", "STAViS", {"lr": 0.1}) is SYSTEMS["stavis-audiovisual"]
    assert system_of("x", "STAViS", {"audiovisual": False}) is SYSTEMS["stavis-visual"]
    assert system_of("tiny", "STAViS", {"width": 16}) is None
    runs = folds("DIEM")
    for k, run in enumerate(runs):
        run.checkpoint = run.checkpoint.model_copy(update={"name": f"best-epoch={k:03d}.ckpt"})
    found = board(write(tmp_path, *runs, *folds("DIEM")))
    assert {e.label for e in found.entries} == {"stavis-audiovisual", "stavis-audiovisual, own training"}


def test_tables_name_known_systems_and_sets_with_published_rows() -> None:
    for table in TABLES:
        for name in table.systems:
            assert any(SYSTEMS[name].published(data) for data in table.sets), (
                table.paper,
                table.number,
                name,
            )


def test_published_numbers_are_all_there() -> None:
    found = [c for c in cells() if c.paper in ("STAViS", "CASP-Net", "AVRSP", "CSTS", "MSPI")]
    assert len(found) == 1510
    assert all(c.source.startswith("https://") for c in cells())
    stavis = [
        c for c in found if (c.paper, c.model, c.modality, c.metric) == ("STAViS", "STAViS", "AV", "cc")
    ]
    # The note of the paper's table 1 says so.
    assert np.mean([c.value for c in stavis if c.data in SIX]) == pytest.approx(0.5644, abs=5e-5)


def test_metrics_of_the_fake_are_those_of_the_card() -> None:
    from avsal.metrics.conventions import CARD

    assert set(METRICS) == set(CARD)
