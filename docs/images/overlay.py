"""Draws overlay.png: frames of a real video, and under them where `avsal predict` says that people look.

python docs/images/overlay.py CLIP [--at SECONDS …]. The README shows NASA's clip of a telescope mirror (public domain).
docs/models/speaker.md shows a silent film of the 1910s (public domain; media/chaplin.mp4 of Zulko/moviepy), with
`--at 0.96 5.76 9.6 --width 320 --options="--show speakers --stride 24" --out docs/images/speaker-failures.png`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from avsal.cli import main as avsal
from avsal.io.video import VideoStream

GAP = 4


def frames_at(path: Path, seconds: list[float]) -> Iterator[Image.Image]:
    """The first frame of a video at or after each of these times, in order."""
    with VideoStream(path) as stream:
        wanted = sorted(seconds)
        for frame in stream:
            if wanted and frame.time >= wanted[0] - 1e-6:
                wanted.pop(0)
                yield Image.fromarray(frame.image)


def main() -> None:
    """Run `avsal predict` on the clip and put frames of the clip above those of the overlay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--at", type=float, nargs="+", default=[3.0, 9.0, 12.0], help="seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("overlay.png"))
    parser.add_argument("--width", type=int, help="of one picture (default: the clip's)")
    parser.add_argument("--options", default="", help="more options of avsal predict")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if avsal(["predict", str(args.clip), "--out", folder, *args.options.split()]):
            raise SystemExit(1)
        overlay = next(Path(folder).glob("*/overlay.mp4"))
        columns = list(zip(frames_at(args.clip, args.at), frames_at(overlay, args.at), strict=True))
    width, height = columns[0][0].size
    if args.width:
        width, height = args.width, round(height * args.width / width)
    sheet = Image.new("RGB", (len(columns) * (width + GAP) - GAP, 2 * height + GAP), "white")
    for column, pictures in enumerate(columns):
        for row, picture in enumerate(pictures):
            sheet.paste(picture.resize((width, height)), (column * (width + GAP), row * (height + GAP)))
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
