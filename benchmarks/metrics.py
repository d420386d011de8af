"""Time per frame of avsal's metrics against pysaliency and plain per-frame scripts, on the same maps in one
run.

    python -m benchmarks.metrics [--frames 16] [--threads 1] [--out benchmarks/results/metrics.md]

The scripts are straightforward NumPy transcriptions of the definitions, frame by frame, with a loop over
thresholds for AUC-Judd and 100 random splits for AUC-Borji and shuffled AUC, as the field's evaluation code
does it. Each time is the fastest of several repetitions, which other load on the machine disturbs least; all
are taken in turns.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

from avsal.evaluation.provenance import git_state
from avsal.metrics import CARD, SaliencyMetrics

SIZES = ((224, 384), (480, 640))
FIXATIONS = (20, 200)
METRICS = (*CARD, "kl", "ig", "auc_borji")
Frame = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


# -- the definitions, one frame at a time ------------------------------------------------------------


def plain_cc(pred: np.ndarray, density: np.ndarray) -> float:
    p, q = ((m - m.mean()) / m.std() for m in (pred, density))
    return float((p * q).mean())


def plain_nss(pred: np.ndarray, fix: np.ndarray) -> float:
    return float(((pred - pred.mean()) / pred.std(ddof=1))[fix[:, 0], fix[:, 1]].mean())


def plain_sim(pred: np.ndarray, density: np.ndarray) -> float:
    p, q = ((m - m.min()) / (m.max() - m.min()) for m in (pred, density))
    return float(np.minimum(p / p.sum(), q / q.sum()).sum())


def plain_kl(pred: np.ndarray, density: np.ndarray) -> float:
    p, q, eps = pred / pred.sum(), density / density.sum(), 2.0**-52
    return float((q * np.log(eps + q / (p + eps))).sum())


def plain_ig(pred: np.ndarray, fix: np.ndarray, prior: np.ndarray) -> float:
    p, b = ((m - m.min()) / (m.max() - m.min()) for m in (pred, prior))
    p, b = (m / m.sum() for m in (p, b))
    eps = 2.0**-52
    return float((np.log2(eps + p) - np.log2(eps + b))[fix[:, 0], fix[:, 1]].mean())


def plain_auc_judd(pred: np.ndarray, fix: np.ndarray) -> float:
    pred = pred + np.random.default_rng(0).random(pred.shape) * 1e-7
    pred = (pred - pred.min()) / (pred.max() - pred.min())
    thresholds = np.sort(pred[fix[:, 0], fix[:, 1]])[::-1]
    tp, fp, count = [0.0], [0.0], len(thresholds)
    for i, threshold in enumerate(thresholds, 1):
        tp.append(i / count)
        fp.append(((pred >= threshold).sum() - i) / (pred.size - count))
    return float(np.trapezoid([*tp, 1.0], [*fp, 1.0]))


def _splits(pred: np.ndarray, fix: np.ndarray, draw: Callable[[np.ndarray, int], np.ndarray]) -> float:
    pred = (pred - pred.min()) / (pred.max() - pred.min())
    positive, areas = pred[fix[:, 0], fix[:, 1]], []
    for _ in range(100):
        negative = draw(pred, len(positive))
        thresholds = np.arange(0, max(positive.max(), negative.max()) + 1e-12, 0.1)[::-1]
        tp, fp = [0.0], [0.0]
        for threshold in thresholds:
            tp.append((positive >= threshold).mean())
            fp.append((negative >= threshold).mean())
        areas.append(np.trapezoid([*tp, 1.0], [*fp, 1.0]))
    return float(np.mean(areas))


def plain_auc_borji(pred: np.ndarray, fix: np.ndarray) -> float:
    rng = np.random.default_rng(0)
    return _splits(pred, fix, lambda p, n: p.ravel()[rng.integers(0, p.size, n)])


def plain_sauc(pred: np.ndarray, fix: np.ndarray, other: np.ndarray) -> float:
    rng = np.random.default_rng(0)
    return _splits(
        pred, fix, lambda p, n: p[tuple(other[rng.permutation(len(other))[: min(n, len(other))]].T)]
    )


def plain(metric: str, frame: Frame) -> float:
    pred, density, fix, other, prior = frame
    calls: dict[str, Callable[[], float]] = {
        "cc": lambda: plain_cc(pred, density),
        "nss": lambda: plain_nss(pred, fix),
        "sim": lambda: plain_sim(pred, density),
        "kl": lambda: plain_kl(pred, density),
        "ig": lambda: plain_ig(pred, fix, prior),
        "auc_judd": lambda: plain_auc_judd(pred, fix),
        "auc_borji": lambda: plain_auc_borji(pred, fix),
        "sauc": lambda: plain_sauc(pred, fix, other),
    }
    return calls[metric]()


# -- pysaliency --------------------------------------------------------------------------------------


def pysaliency(metric: str, frame: Frame) -> float | None:
    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # pysaliency 0.2.22 calls the name that NumPy 2.4 dropped
    from pysaliency import metrics
    from pysaliency.roc import general_roc

    pred, density, fix, other, prior = frame
    if metric == "cc":
        return float(metrics.CC(pred, density))
    if metric == "sim":
        return float(metrics.SIM(pred, density))
    if metric == "kl":
        return float(metrics.MIT_KLDiv(pred, density))
    if metric == "nss":
        return float(metrics.NSS(pred, fix[:, 1], fix[:, 0]).mean())
    if metric == "auc_judd":
        return float(general_roc(pred[fix[:, 0], fix[:, 1]], pred.ravel())[0])
    if metric == "sauc":
        return float(general_roc(pred[fix[:, 0], fix[:, 1]], pred[other[:, 0], other[:, 1]])[0])
    if metric == "ig":
        p, b = (metrics.convert_saliency_map_to_density(m, minimum_value=1e-20) for m in (pred, prior))
        return float((np.log2(p) - np.log2(b))[fix[:, 0], fix[:, 1]].mean())
    return None


# -- the comparison ----------------------------------------------------------------------------------


def make(size: tuple[int, int], fixations: int, frames: int) -> dict[str, torch.Tensor]:
    """Smooth predictions and densities with a little noise; fixations where the density is high."""
    g = torch.Generator().manual_seed(0)
    grid = (frames, 1, size[0] // 16, size[1] // 16)
    smooth = [
        torch.nn.functional.interpolate(torch.rand(grid, generator=g) ** 3, size, mode="bicubic")[:, 0]
        for _ in range(2)
    ]
    pred, density = (m.clamp(min=0) + 1e-3 * torch.rand((frames, *size), generator=g) for m in smooth)
    pixels = torch.multinomial(density.flatten(1) ** 2, fixations, generator=g)
    fix = torch.stack((pixels // size[1], pixels % size[1]), -1)
    # The negatives of a frame are the fixations of the others.
    others = torch.stack([fix[torch.arange(frames) != i].reshape(-1, 2) for i in range(frames)])
    y, x = (torch.linspace(-1, 1, n) for n in size)
    prior = torch.exp(-(y[:, None] ** 2 + x**2) * 2)
    return {"pred": pred, "density": density, "fixations": fix, "negatives": others, "prior": prior}


def ours(metrics: tuple[str, ...], data: dict[str, torch.Tensor], device: torch.device) -> Callable[[], None]:
    moved = {k: v.to(device) for k, v in data.items()}
    metric = SaliencyMetrics(metrics, baseline=moved["prior"]).to(device)
    frame = torch.arange(len(moved["pred"]))

    def update() -> None:
        metric.reset()
        metric.update(
            moved["pred"], moved["density"], moved["fixations"], moved["negatives"], video_id=0, frame=frame
        )
        if device.type == "cuda":
            torch.cuda.synchronize()

    return update


def fastest(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the seconds of each call, the fastest of several, taken in turns.

    With one thread that is CPU time, which other programs on the machine hardly change; else wall-clock time.
    """
    cpu = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            clock = time.perf_counter if name == "gpu" else cpu
            began = clock()
            call()
            best[name] = min(best[name], clock() - began)
    return best


def compare(size: tuple[int, int], fixations: int, frames: int, repeats: int) -> list[dict[str, float | str]]:
    data = make(size, fixations, frames)
    numpy = [
        tuple(data[k][i].double().numpy() for k in ("pred", "density"))
        + tuple(data[k][i].numpy() for k in ("fixations", "negatives"))
        + (data["prior"].double().numpy(),)
        for i in range(2)
    ]
    rows: list[dict[str, float | str]] = []
    for name, metrics in ((", ".join(CARD), CARD), *((m, (m,)) for m in METRICS)):

        def script(metrics: tuple[str, ...] = metrics) -> None:
            for frame in numpy:
                for metric in metrics:
                    plain(metric, frame)

        def reference(metrics: tuple[str, ...] = metrics) -> None:
            for frame in numpy:
                for metric in metrics:
                    pysaliency(metric, frame)

        calls: dict[str, Callable[[], object]] = {"cpu": ours(metrics, data, torch.device("cpu"))}
        if torch.cuda.is_available():
            calls["gpu"] = ours(metrics, data, torch.device("cuda"))
            calls["gpu"]()
        times = fastest(calls, repeats)
        slow = fastest({"script": script, "pysaliency": reference}, max(2, repeats // 4))
        row: dict[str, float | str] = {"metric": name, "cpu": times["cpu"] / frames * 1e3}
        row["script"] = slow["script"] / len(numpy) * 1e3
        row["pysaliency"] = (
            slow["pysaliency"] / len(numpy) * 1e3 if "auc_borji" not in metrics else float("nan")
        )
        if "gpu" in times:
            row["gpu"] = times["gpu"] / frames * 1e3
        rows.append(row)
    return rows


def table(frames: int, repeats: int) -> str:
    gpu = torch.cuda.is_available()
    where = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} thread(s)"
    where += f", {torch.cuda.get_device_name()}" if gpu else ", no GPU"
    load = f", load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    kind = "CPU time, one thread" if torch.get_num_threads() == 1 else "wall clock"
    state = git_state()
    lines = [
        "# Metrics: time per frame",
        "",
        f"`python -m benchmarks.metrics --frames {frames} --repeats {repeats} --threads {torch.get_num_threads()}`,"
        f" {date.today()}, commit {state.commit[:9] if state else 'unknown'}"
        f"{' (with changes)' if state and state.dirty else ''}",
        f"({where}{load}; {platform.machine()}, torch {torch.__version__}, NumPy {np.__version__}).",
        "",
        f"Milliseconds per frame ({kind}), the fastest of several repetitions in turns; ratios are how many",
        "times faster avsal on the CPU is. Scripts: NumPy, frame by frame, 100 random splits for sAUC and AUC-Borji,",
        "jittered AUC-Judd with a loop over thresholds.",
        "pysaliency's AUC is the rank form against all pixels, its sAUC the exact rank form.",
    ]
    for size in SIZES:
        for fixations in FIXATIONS:
            lines += ["", f"## {size[0]}x{size[1]}, {fixations} fixations", ""]
            head = ["metric", "avsal CPU", "pysaliency", "ratio", "scripts", "ratio"] + (
                ["avsal GPU", "frames/s"] if gpu else []
            )
            lines += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
            for row in compare(size, fixations, frames, repeats):
                cpu, script, reference = (float(row[k]) for k in ("cpu", "script", "pysaliency"))
                cells = [str(row["metric"]), f"{cpu:.2f}"]
                for other in (reference, script):
                    known = not np.isnan(other)
                    cells += [f"{other:.2f}" if known else "-", f"{other / cpu:.1f}" if known else "-"]
                if gpu:
                    cells += [f"{float(row['gpu']):.3f}", f"{1e3 / float(row['gpu']):.0f}"]
                lines.append("| " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--frames", type=int, default=16, help="frames of a batch; the scripts run on two of them"
    )
    parser.add_argument(
        "--repeats", type=int, default=12, help="repetitions of ours; a quarter for the others"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; the others use one")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = table(args.frames, args.repeats)
    print(text)
    if args.out:
        from avsal.files import write_text

        write_text(args.out, text)


if __name__ == "__main__":
    main()
