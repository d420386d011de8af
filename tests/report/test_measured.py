"""Results files to scores: folds, screening of what does not belong together, and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avsal.errors import DataError
from avsal.evaluation.results import Failure
from avsal.report.measured import Board, board
from avsal.report.papers import SYSTEMS, TABLES, system_of
from avsal.report.published import SIX, cells
from avsal.report.tables import leaderboard
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

MAIN = {"stavis-audiovisual", "stavis-visual"}


def apart(found: Board, data: str = "DIEM") -> dict[str, set[str]]:
    """The models of a data set's tables, by the reason why a table is not the first."""
    return {why: {e.label for e in found.of(data, why)} for name, why in found.tables if name == data}


def test_results_of_another_protocol_have_a_table_of_their_own_that_says_why(tmp_path: Path) -> None:
    other = folds("DIEM", name="mspi", model="MSPI", protocol={"coverage": "authors"})
    found = board(write(tmp_path, *folds("DIEM"), *folds("DIEM", name="stavis-visual"), *other))
    assert apart(found) == {"": MAIN, "coverage is authors, not full": {"mspi"}}
    assert found.notes == []
    tables = {t.title: t for t in leaderboard(found, data=["DIEM"])}
    assert list(tables) == ["DIEM", "DIEM (coverage is authors, not full)"]
    rows = tables["DIEM (coverage is authors, not full)"].rows
    assert {row[0].text for row in rows if row[2].text == "measured"} == {"MSPI (MViTv2-S, 224x384)"}
    assert "published only" not in {row[2].text for row in rows}
    assert "MSPI (MViTv2-S, 224x384)" not in {
        r[0].text for r in tables["DIEM"].rows if r[2].text == "measured"
    }


def test_other_metric_conventions_are_another_protocol(tmp_path: Path) -> None:
    other = folds("DIEM", name="mspi", model="MSPI")
    for run in other:
        run.conventions["auc_judd_ties"] = "jitter"
    found = board(write(tmp_path, *folds("DIEM"), *folds("DIEM", name="stavis-visual"), *other))
    assert apart(found) == {"": MAIN, "auc_judd_ties is jitter, not expected": {"mspi"}}


def test_another_version_of_the_data_has_a_table_of_its_own(tmp_path: Path) -> None:
    other = folds("DIEM", name="mspi", model="MSPI", fingerprint="other")
    found = board(write(tmp_path, *folds("DIEM"), *folds("DIEM", name="stavis-visual"), *other))
    (reason,) = apart(found).keys() - {""}
    assert "fingerprints differ" in reason
    assert apart(found) == {"": MAIN, reason: {"mspi"}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [("fewer", "1 videos missing and 0 others"), ("frames", "other numbers of scored frames")],
)
@pytest.mark.parametrize("data", ["DIEM", "AVAD"])
def test_other_videos_or_frames_are_other_data(tmp_path: Path, data: str, change: str, reason: str) -> None:
    other = folds(data, name="mspi", model="MSPI", frames=90 if change == "frames" else 100)
    if change == "fewer":
        for run in other:
            del run.videos[f"{data}/v{3 if data == 'DIEM' else 100 * run.data.fold + 3:03d}"]
    found = board(write(tmp_path, *folds(data), *folds(data, name="stavis-visual"), *other))
    assert apart(found, data) == {"": MAIN, reason: {"mspi"}}


def test_of_duplicates_the_newest_stays(tmp_path: Path) -> None:
    old = results("DIEM", 2, level=0.3, created="2025-06-01T00:00:00+00:00")
    found = board(write(tmp_path, old, *folds("DIEM")))
    fresh = board(write(tmp_path / "fresh", *folds("DIEM")))
    assert found.entries[0].scores["cc"].value == fresh.entries[0].scores["cc"].value
    assert len(found.notes) == 1
    assert "repeats" in found.notes[0]
    assert "the same weights, metrics differ by up to 0.2" in found.notes[0]


def test_a_missing_fold_is_marked_and_nothing_published_is_set_beside(tmp_path: Path) -> None:
    (entry,) = board(write(tmp_path, *folds("AVAD")[:2])).entries
    assert (entry.title, entry.missing) == ("STAViS, folds 1, 2 of 3", [3])
    table = next(t for t in leaderboard(board([tmp_path]), data=["AVAD"]))
    mine = {row[2].text for row in table.rows if row[0].text == entry.title}
    assert mine == {"measured", "95 % interval"}
    assert any("there is no result of fold 3" in note for note in table.notes)
    assert "published only" in {row[2].text for row in table.rows if row[0].text == "STAViS"}


def test_one_video_has_no_interval(tmp_path: Path) -> None:
    run = results(
        "mine", None, name="my", model="Other", videos={"own/a": {"cc": 0.5, "nss": 1.0, "frames": 9}}
    )
    found = board(write(tmp_path, run))
    assert np.isnan(found.entries[0].scores["cc"].low)
    assert found.entries[0].modality == ""  # whether a class of the user's own hears is not known
    (table,) = leaderboard(found)  # and no tables of others, which have nothing to do with it
    assert [row[2].text for row in table.rows] == ["measured"]


def test_damaged_files_are_named_and_the_others_used(tmp_path: Path) -> None:
    write(tmp_path, *folds("DIEM"))
    (tmp_path / "half.json").write_text('{"schema_version": 1,')
    (tmp_path / "other.json").write_text("[]")
    found = board([tmp_path])
    assert len(found.entries) == 1
    assert sorted(Path(n.split(": ")[1]).name for n in found.notes) == ["half.json", "other.json"]


def renamed(runs: list, names: list[str], **update: object) -> list:
    """The runs with other names of their weights."""
    for run, name in zip(runs, names, strict=True):
        run.checkpoint = run.checkpoint.model_copy(update={"name": name, **update})
    return runs


def test_random_weights_are_neither_the_papers_system_nor_beside_its_numbers(tmp_path: Path) -> None:
    runs = folds("DIEM")
    for run in runs:
        run.checkpoint = None
    paths = [run.write(tmp_path / f"{k}.json") for k, run in enumerate(runs)]
    (entry,) = board(paths).entries
    assert (entry.label, entry.title, entry.system) == (
        "STAViS, no checkpoint",
        "STAViS, no checkpoint",
        None,
    )
    for path, run in zip(paths, runs, strict=True):  # maps of another program whose user says what they are
        run.model_copy(update={"kind": "evaluate"}).write(path)
    assert board(paths).entries[0].system is SYSTEMS["stavis-audiovisual"]


def test_a_baseline_that_needs_no_weights_is_called_by_its_kind(tmp_path: Path) -> None:
    for kind in ("uniform", "observers", "fitted_centre"):
        run = results("DHF1K", None, model="Baseline", arguments={"kind": kind})
        run.checkpoint = None
        run.write(tmp_path / f"{kind}.json")
    assert {e.label for e in board([tmp_path]).entries} == {
        "baseline-uniform", "baseline-observers", "Baseline, no checkpoint",
    }  # fmt: skip


def test_architectures_never_share_a_mean_and_have_names_of_their_own(tmp_path: Path) -> None:
    kinds = ({"width": 16}, {"width": 32, "lr": 0.1}, {"audiovisual": False, "width": 16})
    mixed = [results("AVAD", k + 1, arguments=kind) for k, kind in enumerate(kinds)]
    found = board(write(tmp_path / "mixed", *renamed(mixed, ["best-epoch=001.ckpt"] * 3)))
    assert sorted(len(entry.records) for entry in found.entries) == [1, 1, 1]
    assert all(entry.missing for entry in found.entries if entry.records[0].fold > 1)
    runs = [
        run
        for n, kind in enumerate(kinds)
        for run in renamed(folds("AVAD", arguments=kind, level=0.4 + n / 10), [f"best-epoch={n}.ckpt"] * 3)
    ]
    for k, run in enumerate(runs):
        run.checkpoint.sha256 = f"{k:064x}"
    found = board(write(tmp_path / "whole", *runs))
    assert found.notes == []
    assert [e.label for e in found.entries] == [
        "STAViS, own training, audiovisual False, width 16",
        "STAViS, own training, width 16",
        "STAViS, own training, width 32",
    ]
    assert [e.scores["cc"].value for e in found.entries] == pytest.approx([0.6, 0.4, 0.5], abs=0.03)


def test_weights_of_another_fold_are_left_out(tmp_path: Path) -> None:
    runs = renamed(folds("AVAD"), ["stavis-audiovisual-fold1"] * 3)
    found = board(write(tmp_path, *runs, *folds("AVAD", name="stavis-visual", seed=1)))
    assert [(e.title, e.modality) for e in found.entries] == [("STAViS, fold 1 of 3", "AV"), ("STAViS", "V")]
    assert [n for n in found.notes if "weights of fold 1 on fold 2" in n]
    assert [n for n in found.notes if "weights of fold 1 on fold 3" in n]


def test_one_checkpoint_on_all_folds_of_a_system_with_folds_is_left_out(tmp_path: Path) -> None:
    same = {"sha256": "a" * 64}
    runs = renamed(folds("AVAD"), ["best-epoch=001.ckpt"] * 3, **same)
    found = board(write(tmp_path / "system", *runs))
    assert found.entries == []
    assert len([n for n in found.notes if "has the same weights as fold" in n]) == 3
    # A model that learned from other data may be tested on every fold.
    runs = renamed(folds("AVAD", model="Other"), ["other.ckpt"] * 3, **same)
    found = board(write(tmp_path / "other", *runs))
    assert [e.label for e in found.entries] == ["other.ckpt"]
    (table,) = (t for t in leaderboard(found, published=False) if t.title == "AVAD")
    assert any("one checkpoint on several folds" in note for note in table.notes)


@pytest.mark.parametrize("change", ["fewer", "frames"])
def test_a_fold_of_diem_with_other_videos_or_frames_does_not_slip_in(tmp_path: Path, change: str) -> None:
    runs = folds("DIEM")
    if change == "fewer":
        del runs[2].videos["DIEM/v003"]
    else:
        runs[2].videos["DIEM/v003"]["frames"] = 50
    found = board(write(tmp_path, *runs, *folds("DIEM", name="stavis-visual", seed=1)))
    first = [(e.title, e.modality, e.units["cc"].rule) for e in found.of("DIEM")]
    assert first == [("STAViS, folds 1, 2 of 3", "AV", "folds"), ("STAViS", "V", "folds")]
    (reason,) = apart(found).keys() - {""}
    assert "1 videos missing" in reason or "numbers of scored frames" in reason
    assert [e.title for e in found.of("DIEM", reason)] == ["STAViS, fold 3 of 3"]


def test_a_part_of_a_test_does_not_count(tmp_path: Path) -> None:
    runs = folds("AVAD")
    for run in runs:
        run.data = run.data.model_copy(update={"videos": VIDEOS["AVAD"]})
    assert board(write(tmp_path / "whole", *runs)).notes == []
    del runs[1].videos["AVAD/v200"]
    found = board(write(tmp_path / "part", *runs))
    assert [e.title for e in found.entries] == ["STAViS, folds 1, 3 of 3"]
    assert f"{VIDEOS['AVAD'] - 1} of {VIDEOS['AVAD']} videos were scored" in found.notes[0]
    runs[1].failed.append(Failure(item="AVAD/v200", error="broken"))
    assert len(board(write(tmp_path / "failed", *runs)).entries) == 1


def test_other_annotation_files_are_other_data_and_old_files_without_them_stay(tmp_path: Path) -> None:
    known, other = folds("DIEM"), folds("DIEM", name="stavis-visual", seed=1)
    for run in (*known, *other):
        run.data = run.data.model_copy(update={"annotations": "first"})
    old = folds("DIEM", name="mspi", model="MSPI", seed=2)
    newer = folds("DIEM", name="avrsp-visual", model="AVRSP", seed=3)
    for run in newer:
        run.data = run.data.model_copy(update={"annotations": "second"})
    found = board(write(tmp_path, *known, *other, *old, *newer))
    reason = "other annotation files (their names or sizes differ)"
    assert apart(found) == {"": MAIN | {"mspi"}, reason: {"avrsp-visual"}}


def test_a_video_in_two_folds_counts_twice_and_is_drawn_as_one(tmp_path: Path) -> None:
    runs = folds("AVAD")
    runs[1].videos["AVAD/v100"] = {**runs[1].videos["AVAD/v200"], "cc": 0.9}  # also in fold 1
    entry = board(write(tmp_path, *runs)).of("AVAD")[0]
    values = [row["cc"] for run in runs for row in run.videos.values()]
    assert entry.scores["cc"].value == pytest.approx(np.mean(values))
    units = entry.units["cc"]
    assert len(units.names) == len(set(units.names)) == len(values) - 1
    counts = np.zeros((1, len(units.names)))
    counts[0, [units.names.index("AVAD/v100"), units.names.index("AVAD/v201")]] = 1
    drawn = [runs[0].videos["AVAD/v100"]["cc"], 0.9, runs[1].videos["AVAD/v201"]["cc"]]
    assert units.draws(counts)[0] == pytest.approx(np.mean(drawn))


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
    from avsal.checkpoints.registry import entries

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
    from avsal.checkpoints.registry import entries
    from avsal.report.published import METRICS as LABELS, PERCENT

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
    compared = [s for s in SYSTEMS.values() if s.row[0] and not s.name.endswith("224x384")]
    for system in compared:  # the rows that compare models; MSPI's larger sizes cannot be read in print
        sets = {d for t in TABLES for row in t.rows for d, name in row.systems.items() if name == system.name}
        assert any(system.published(data) for data in sets), system.name


def test_published_numbers_are_all_there() -> None:
    found = [c for c in cells() if c.paper in ("STAViS", "CASP-Net", "AVRSP", "CSTS", "MSPI")]
    assert len(found) == 2124
    assert all(c.source.startswith("https://") for c in cells())
    stavis = [
        c for c in found if (c.paper, c.model, c.modality, c.metric) == ("STAViS", "STAViS", "AV", "cc")
    ]
    # The note of the paper's table 1 says so.
    assert np.mean([c.value for c in stavis if c.data in SIX]) == pytest.approx(0.5644, abs=5e-5)


def test_metrics_of_the_fake_are_those_of_the_card() -> None:
    from avsal.metrics.conventions import CARD

    assert set(METRICS) == set(CARD)
