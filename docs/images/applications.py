"""Draws reframe.png and encode.png: a crop's path, and where an encoder's bits go, on frames of a real video.

python docs/images/applications.py CLIP [--at SECONDS …]. docs/applications.md shows NASA's clip of a telescope mirror
(public domain), with maps of `isp-lite-openfix`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import avsal
from avsal.applications.attention import computed
from avsal.applications.encode import Held
from avsal.applications.reframe import crop_path
from avsal.io.video import VideoStream

GAP = 4
FINER, COARSER = (255, 176, 0), (40, 60, 160)


def main() -> None:
    """Compute the maps once and draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--at", type=float, nargs="+", default=[3.0, 7.0, 12.0], help="seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    module = avsal.from_pretrained("isp-lite-openfix").eval()
    attention = list(computed(module, args.clip, stride=4))
    path = crop_path(args.clip, 9 / 16, attention)
    with VideoStream(args.clip) as stream:
        size = stream.info.height, stream.info.width
        frames = {}
        for frame in stream:
            for time in args.at:
                if time not in frames and frame.time >= time - 1e-6:
                    frames[time] = (frame.index, Image.fromarray(frame.image))
    held = Held(attention, size)
    height, width = size
    crop = round(path.length * width)
    outlined, cropped, weighted = [], [], []
    for index, picture in frames.values():
        left = round(path.path[index] * width)
        dark = picture.point(lambda level: level // 3)
        part = picture.crop((left, 0, left + crop, height))
        dark.paste(part, (left, 0))
        ImageDraw.Draw(dark).rectangle((left, 0, left + crop - 1, height - 1), outline="white", width=2)
        outlined.append(dark)
        cropped.append(part)
        offsets = held.offsets(float(path.times[index]), 6)
        tint = np.where(offsets[..., None] < 0, FINER, COARSER) * (np.abs(offsets)[..., None] / 6)
        layer = Image.fromarray(tint.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        weighted.append(Image.blend(picture, layer, 0.45))
    row(outlined + cropped).save(args.out / "reframe.png", optimize=True)
    row(weighted).save(args.out / "encode.png", optimize=True)


def row(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height side by side."""
    sheet = Image.new("RGB", (sum(p.width + GAP for p in pictures) - GAP, pictures[0].height), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


if __name__ == "__main__":
    main()
