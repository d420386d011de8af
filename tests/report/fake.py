"""Results files without any model: scores per video drawn from a seed around a level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from avsal.evaluation.results import Checkpoint, Cost, Data, Hardware, Results
from avsal.metrics.conventions import Conventions

METRICS = ("cc", "nss", "auc_judd", "sauc", "sim")
#: Test videos of each fold, as many as in the real sets' order of magnitude.
VIDEOS = {"DIEM": 17, "Coutrot1": 20, "Coutrot2": 5, "AVAD": 15, "ETMD": 4, "SumMe": 8}
FOLDERS = {"Coutrot1": "Coutrot_db1", "Coutrot2": "Coutrot_db2", "ETMD": "ETMD_av"}


def results(
    data: str = "DIEM",
    fold: int | None = 1,
    *,
    name: str = "stavis-audiovisual",
    model: str = "STAViS",
    level: float = 0.55,
    arguments: dict[str, Any] | None = None,
    protocol: dict[str, Any] | None = None,
    fingerprint: str | None = "same",
    created: str = "2026-01-01T00:00:00+00:00",
    frames: int = 100,
    videos: dict[str, dict[str, float]] | None = None,
    seed: int = 0,
    **more: Any,
) -> Results:
    folder = FOLDERS.get(data, data)
    if videos is None:
        start = 0 if data == "DIEM" else 100 * (fold or 0)
        random = np.random.default_rng([seed, fold or 0, len(data), round(level * 1000)])
        videos = {}
        for k in range(VIDEOS.get(data, 6)):
            values = {m: float(level + random.normal(0, 0.05) + (2 if m == "nss" else 0)) for m in METRICS}
            videos[f"{folder}/v{start + k:03d}"] = {
                **values, "frames": frames, "frames_failed": 0, **{f"frames_{m}": frames for m in METRICS},
            }  # fmt: skip
    means = {
        m: float(np.nanmean([row[m] for row in videos.values()]))
        for m in METRICS
        if m in next(iter(videos.values()))
    }
    return Results(
        kind="test",
        created=created,
        avsal="0.1.0",
        model=model,
        arguments=arguments or {},
        checkpoint=Checkpoint(name=f"{name}-fold{fold}" if fold else name, sha256=f"{fold or 0:064x}"),
        data=Data(
            name=data.lower(),
            split="test",
            fold=fold,
            # DIEM's folds test the same videos.
            fingerprint=f"{fingerprint}-{0 if data == 'DIEM' else fold}" if fingerprint else None,
        ),
        protocol={
            "average": "video",
            "coverage": "full",
            "stride": 1,
            "negatives": "video",
            **(protocol or {}),
        },
        conventions=Conventions().describe(),
        metrics=means,
        frames={"frames": frames * len(videos), "frames_failed": 0, "videos": len(videos)},
        videos=videos,
        cost=Cost(parameters=20_760_000, multiply_adds=15_300_000_000, maps_per_second=12.5),
        hardware=Hardware(system="Linux", processor="x86_64", cores=2, python="3.11", torch="2.11"),
        seconds=1.0,
        command=["avsal"],
        **more,
    )


def write(folder: Path, *many: Results) -> list[Path]:
    paths = []
    for k, one in enumerate(many):
        assert one.checkpoint is not None
        paths.append(one.write(folder / f"{one.checkpoint.name}-{one.data.name}-{k}.json"))
    return paths
