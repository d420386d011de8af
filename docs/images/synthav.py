"""Draw docs/images/synthav.png: a few SynthAV clips with fixations, and the spectrogram of their sound."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from avsal.data.fixations import density_from_fixations
from avsal.data.synthetic import COLOURS, FPS, RATE, SIGMA, render

CLIPS = (("congruent", 1, "medium"), ("offscreen", 5, "hard"), ("silent", 0, "easy"))
TIMES = (12, 28, 44, 60)


def main() -> None:
    """Write the picture beside this file."""
    columns = len(TIMES) + 1
    figure, axes = plt.subplots(len(CLIPS), columns, figsize=(11, 5.2), width_ratios=[1] * len(TIMES) + [1.5])
    for row, (condition, index, level) in zip(axes, CLIPS, strict=True):
        clip = render(condition, index, level)
        sounding = clip.sounding()
        for axis, t in zip(row, TIMES, strict=False):
            points = clip.fixations[clip.fixations[:, 0] == t]
            axis.imshow(clip.frames[t])
            density = density_from_fixations(points[:, [2, 1]], clip.frames.shape[1:3], SIGMA)
            axis.contour(density, levels=[0.2, 0.5, 0.8], colors="white", linewidths=0.6)
            axis.scatter(points[:, 1], points[:, 2], s=6, c="white", edgecolors="black", linewidths=0.4)
            if sounding[t] >= 0:
                x, y = clip.centres[t, sounding[t]]
                axis.add_patch(plt.Circle((x, y), 27, fill=False, color="#ffe14d", linewidth=1.6))
            axis.set_title(f"{t / FPS:.2f} s", fontsize=8)
            axis.set_xlim(-0.5, 159.5)
            axis.set_ylim(119.5, -0.5)
            axis.set_axis_off()
        row[0].text(-6, 60, condition, rotation=90, va="center", ha="right", fontsize=10)
        axis = row[-1]
        if clip.waveform is None:
            axis.text(
                0.5, 0.5, "no sound track", ha="center", va="center", fontsize=9, transform=axis.transAxes
            )
            axis.set_xticks([])
            axis.set_yticks([])
            continue
        axis.specgram(
            clip.waveform.astype(float), NFFT=1024, Fs=RATE, noverlap=768, cmap="magma", vmin=-40, vmax=40
        )
        axis.set_yscale("symlog", linthresh=200)
        axis.set_ylim(60, RATE / 2)
        for begin, end, source in clip.turns:
            colour = np.array(COLOURS[clip.classes[source]]) / 255 if source >= 0 else (0.7, 0.7, 0.7)
            axis.plot([begin / FPS, end / FPS], [75, 75], color=colour, linewidth=5, solid_capstyle="butt")
        axis.set_xlim(0, len(clip.frames) / FPS)
        axis.yaxis.tick_right()
        axis.set_yticks([100, 1000, 10000], ["100 Hz", "1 kHz", "10 kHz"], fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
    figure.subplots_adjust(left=0.04, right=0.95, top=0.95, bottom=0.05, wspace=0.08, hspace=0.18)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=74)


if __name__ == "__main__":
    main()
