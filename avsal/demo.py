"""`make demo`: the main job on a clip that the package makes itself, and on a clip of yours if you name one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avsal.errors import AvsalError

#: The network for the generated clip; a clip of yours runs through the default checkpoint.
SYNTHETIC = "stavis-tiny-synthav"


def main(argv: list[str] | None = None) -> int:
    """Make a clip with sound, predict its saliency, and print where the overlay video is."""
    parser = argparse.ArgumentParser(prog="python -m avsal.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of results")
    parser.add_argument("--clip", type=Path, help="a real video to run as well")
    args = parser.parse_args(argv)
    try:
        return _run(args.out, args.clip)
    except AvsalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(out: Path, clip: Path | None) -> int:
    from avsal.checkpoints.registry import default_checkpoint
    from avsal.data.synthetic import generate
    from avsal.inference.files import predict_files

    generated = out / "synthav"
    generate(generated, clips=4, seed=7, seconds=3.0)
    videos = sorted((generated / "video" / "SynthAV_congruent").glob("*.mp4"))[:1]
    jobs = [(SYNTHETIC, videos)]
    if clip is not None:
        jobs.append((default_checkpoint(), [clip]))
    status = 0
    for name, paths in jobs:
        outcomes = predict_files(*paths, checkpoint=name, out=out / name, device="cpu", overwrite=True)
        status = max(status, outcomes.exit_status)
        for outcome in outcomes:
            if outcome.folder is not None:
                print(f"overlay video: {outcome.folder / 'overlay.mp4'}")
    print(
        f"{SYNTHETIC} was trained on generated clips (SynthAV) and shows the machinery; your videos run through "
        f"{default_checkpoint()} (`make demo CLIP=holiday.mp4`, `avsal predict holiday.mp4`)."
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
