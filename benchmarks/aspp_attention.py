"""What CASP-Net's and AVRSP's exact fast forms save: attention without a map, ASPP without padding, reuse of slices.

    python -m benchmarks.aspp_attention [--json benchmarks/results/aspp_attention.json]

First: peak memory and time of the audio-visual interaction for growing numbers of tokens. Peak memory is the
largest sum of tensors alive during one forward pass beyond its inputs, counted by storage: the same on every
machine. Ratios are against the quadratic form of the same tokens in the same run. Then: multiply-adds of one
map of a video, counted, not timed: every equation as written, with the fast forms, and with slices taken over from
earlier windows. The timed ratio of a whole video is in `benchmarks.inference`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from avsal.models.avrsp import AVRSP
from avsal.models.caspnet import CASPNet
from avsal.nn.aspp import ASPP
from avsal.nn.avim import AVIM

#: (T, h, w) of growing clips; the last is CASP-Net's second stage at 16 x 224 x 384.
SHAPES = ((2, 14, 24), (4, 14, 24), (8, 14, 24), (8, 28, 24), (8, 28, 48))
CHANNELS = 256


def _addmm_flops(self_shape: Any, a: Any, b: Any, **_: Any) -> int:
    return 2 * int(a[0]) * int(a[1]) * int(b[1])


#: The counter of torch knows `addmm`, not its in-place form.
IN_PLACE = {torch.ops.aten.addmm_: _addmm_flops}


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the storages that are alive and were made inside, and keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {
            StorageWeakRef(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)
        }
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in given:
                    self.alive[reference] = storage.nbytes()
        self.alive = {ref: size for ref, size in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return output


def measure(run: Callable[[], Tensor]) -> tuple[int, float]:
    """Return the peak bytes and the least of three times in seconds."""
    with torch.inference_mode():
        with PeakMemory() as memory:
            run()
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return memory.peak, min(times)


def growth(tokens: list[int], values: list[float]) -> float:
    """Return the exponent of growth from the third size to the last."""
    return math.log(values[-1] / values[2]) / math.log(tokens[-1] / tokens[2])


def arithmetic(network: CASPNet | AVRSP, audio_input: Tensor) -> dict[str, float]:
    """Return 1e9 multiply-adds of one map: as written, with the fast forms, and with slices taken over."""
    frames, size = network.spec.frames, network.spec.size
    runner = network.window_runner()
    heard = audio_input if network.audiovisual else None
    video = torch.empty(1, 3, frames, *size)

    def count(run: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            run()
        return counter.get_total_flops() / 2e9

    giga: dict[str, float] = {}
    with torch.inference_mode():
        for layer in network.modules():
            if isinstance(layer, ASPP):
                layer.forward = layer.plain  # type: ignore[method-assign]
            elif isinstance(layer, AVIM):
                layer.forward = layer.literal  # type: ignore[method-assign]
        giga["as written"] = count(lambda: network.core(video, heard))
        for layer in network.modules():
            if isinstance(layer, ASPP | AVIM):
                del layer.forward
        giga["fast forms"] = count(lambda: network.core(video, heard))
        for start in range(5):  # slices repeat after two or four frames
            ids = torch.arange(start, start + frames, device="cpu")[None]
            giga["fast forms and reuse"] = count(partial(runner, video, ids, heard))
    return giga


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    out = parser.parse_args().json
    torch.manual_seed(0)
    quadratic, linear = AVIM(CHANNELS, kernel="quadratic"), AVIM(CHANNELS, kernel="linear")
    tokens = [math.prod(shape) for shape in SHAPES]
    results: dict[str, dict[str, Any]] = {}
    for shape in SHAPES:
        clip, sound = torch.randn(1, CHANNELS, *shape), torch.randn(1, 128)
        n = math.prod(shape)
        forms: dict[str, Callable[[], Tensor]] = {
            "quadratic": lambda: quadratic.literal(clip, sound, rows=n),  # noqa: B023
            "quadratic, 1024 rows at once": lambda: quadratic.literal(clip, sound),  # noqa: B023
            "linear": lambda: linear.literal(clip, sound),  # noqa: B023
            "linear, contracted": lambda: linear.contracted(clip, sound),  # noqa: B023
        }
        for name, run in forms.items():
            entry = results.setdefault(name, {"bytes": [], "seconds": []})
            peak, seconds = measure(run)
            entry["bytes"].append(peak)
            entry["seconds"].append(seconds)

    base = results["quadratic"]
    print(f"{'tokens':>30} " + " ".join(f"{n:>9}" for n in tokens) + "   grows as")
    for name, entry in results.items():
        entry["memory_grows_as_tokens_to_the"] = round(growth(tokens, entry["bytes"]), 2)
        entry["memory_ratio"] = [round(b / a, 4) for a, b in zip(base["bytes"], entry["bytes"], strict=True)]
        entry["time_ratio"] = [
            round(b / a, 4) for a, b in zip(base["seconds"], entry["seconds"], strict=True)
        ]
        exponent = entry["memory_grows_as_tokens_to_the"]
        print(f"{name:>30} " + " ".join(f"{b / 2**20:6.1f}MiB" for b in entry["bytes"]) + f"   N^{exponent}")
        print(f"{'time / quadratic':>30} " + " ".join(f"{r:9.3f}" for r in entry["time_ratio"]))
    with torch.device("meta"):
        work = {
            "CASP-Net": arithmetic(CASPNet().eval(), torch.empty(1, 1, 96, 64)),
            "CASP-Net, quadratic": arithmetic(CASPNet(fusion="quadratic").eval(), torch.empty(1, 1, 96, 64)),
            "CASP-Net, visual-only": arithmetic(CASPNet(audiovisual=False).eval(), torch.empty(0)),
            "AVRSP": arithmetic(AVRSP().eval(), torch.empty(1, 70560)),
        }
    print("\n1e9 multiply-adds for a map, and how many times fewer than as written")
    for name, giga in work.items():
        first = giga["as written"]
        print(f"{name:>30} " + "   ".join(f"{k} {v:.1f} ({first / v:.2f}x)" for k, v in giga.items()))

    for entry in results.values():
        del entry["seconds"], entry["time_ratio"]  # of one machine on one day; what stays is counted
    if out:
        record = {
            "channels": CHANNELS,
            "tokens": tokens,
            "torch": torch.__version__,
            "forms": results,
            "giga": work,
        }
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
