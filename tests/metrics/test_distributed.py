"""Two gloo processes give what one process gives: uneven shares, videos split over ranks, repeated frames."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

from avsal.metrics import GazeMetrics, SaliencyMetrics
from tests.metrics.test_gaze import random_gaze
from tests.metrics.test_saliency import ALL, make, score

#: Frames of each rank. The first: videos split over ranks and frames repeated, as padded samplers do.
SHARES = {
    "split-and-padded": [[*range(0, 23, 2), 0], [*range(1, 23, 2), 1, 2, 3, 4, 5]],
    "one-rank-empty": [list(range(23)), []],
}
CLIPS = [[0, 2, 4, 6, 8], [1, 3, 5, 7, 0]]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    results = {}
    data = make()
    for name, shares in SHARES.items():
        metric = SaliencyMetrics(ALL)
        for part in torch.tensor(shares[rank], dtype=torch.int64).split(4):
            if len(part):
                metric.update(**{k: v[part] for k, v in data.items()})
        results[name] = (metric.compute(), metric.frames_used(), metric.per_video())
    pred, heat, kind = random_gaze()
    gaze = GazeMetrics("full")
    for clip in CLIPS[rank]:
        one = slice(clip, clip + 1)
        gaze.update(
            pred[one], heat[one], kind[one], video_id=clip // 4, frame=torch.arange(3)[None] + 3 * clip
        )
    results["gaze"] = (gaze.compute(), gaze.frames_used(), gaze.per_video())
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(_rank, (str(folder),), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", list(SHARES))
def test_saliency(ranks: list[dict], name: str) -> None:
    alone = score(make(), torch.arange(23))
    for results in ranks:
        result, used, videos = results[name]
        assert result == pytest.approx(alone.compute(), abs=1e-9)
        assert used == alone.frames_used()
        assert videos[7] == pytest.approx(alone.per_video()[7], abs=1e-9)


def test_gaze(ranks: list[dict]) -> None:
    pred, heat, kind = random_gaze()
    alone = GazeMetrics("full")
    frames = torch.arange(3) + 3 * torch.arange(9)[:, None]
    alone.update(pred, heat, kind, video_id=torch.arange(9) // 4, frame=frames)
    for results in ranks:
        result, used, videos = results["gaze"]
        assert result == pytest.approx(alone.compute(), abs=1e-9)
        assert used == alone.frames_used()
        assert videos[1] == pytest.approx(alone.per_video()[1], abs=1e-9)
