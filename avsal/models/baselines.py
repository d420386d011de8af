"""Lower and upper bounds of every table: maps that no network computes, scored by the same test loop.

Lower bounds are the uniform map, the centre prior (a fixed Gaussian, or the mean map of the training set)
and the ground truth of another, random frame. The upper bound is what a part of the observers says about
the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from avsal.errors import ConfigError
from avsal.losses import kl_divergence
from avsal.models.base import SaliencyModule, SaliencyNetwork, choice
from avsal.types import Batch, ClipSpec, SaliencyOutput

Kind = Literal["uniform", "centre", "fitted_centre", "shuffled", "observers"]
#: Kinds that look at the training set first, through one epoch of `fit`.
FITTED = ("fitted_centre", "shuffled")


class Prior(SaliencyNetwork):
    """One map for every frame of every video.

    Args:
        size: (height, width) of the map.
        sigma: standard deviation of the centred Gaussian in shares of the height and of the width; None
            gives the uniform map.
    """

    activation = "softmax"

    def __init__(self, size: tuple[int, int], sigma: float | None) -> None:
        super().__init__()
        self.spec = ClipSpec(frames=1, size=(size[0], size[1]), target="last")
        density = torch.ones(*size)
        if sigma is not None:
            y, x = ((torch.arange(n) + 0.5) / n - 0.5 for n in size)
            density = torch.exp(-(y[:, None].square() + x.square()) / (2 * sigma**2))
        self.density: Tensor
        self.register_buffer("density", density / density.sum())

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        """Return the same map for every clip (B, 3, T, H, W): logits (B, 1, h, w)."""
        return self.output(_log(self.density).expand(video.shape[0], 1, -1, -1))


class FromGroundTruth(SaliencyNetwork):
    """Placeholder network of baselines whose maps come from annotations, not from the video."""

    activation = "softmax"

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.spec = ClipSpec(frames=1, size=(size[0], size[1]), target="last")

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        """Refuse: without annotations there is no map."""
        raise ConfigError("This baseline is made of ground truth; run `test` on an annotated data set.")


class BaselineModule(SaliencyModule):
    """A bound that every model can be compared with.

    The kinds that are fitted see the training set once (`max_epochs=1`) in one process: there is no gradient
    that distributed training could exchange.

    Args:
        kind: "uniform"; "centre", a fixed Gaussian; "fitted_centre", the mean density of the training set
            (the Gaussian until `fit` has run); "shuffled", the density of a random frame of the training set;
            "observers", the density of some observers scored against the fixations of the others.
        size: (height, width) of the maps.
        sigma: standard deviation of the Gaussian of "centre", in shares of height and width.
        held_out: for "observers", the share of each frame's observers who are the ground truth, drawn anew
            for every frame; at least one, and at least one predicts. A frame with fewer than two observers
            is left out; 0 holds out one at a time. The more are held out the lower the bound: a smaller
            group predicts, and a smaller group is predicted.
        blur: for "observers", standard deviation of the Gaussian around a fixation, in shares of the width.
        reservoir: for "shuffled", how many maps of the training set are kept.
        seed: of the draws, which depend on the video and the frame and on nothing else.
        init_from: a checkpoint to start from.
    """

    network: Prior | FromGroundTruth
    protocol_arguments = ("kind", "size", "sigma", "held_out", "blur", "reservoir", "seed")

    @classmethod
    def modality(cls, arguments: Mapping[str, Any]) -> Literal["none"]:
        """Return "none": no map depends on the video."""
        return "none"

    def __init__(
        self,
        kind: Kind = "centre",
        size: tuple[int, int] = (112, 112),
        sigma: float = 0.2,
        held_out: float = 0.5,
        blur: float = 0.05,
        reservoir: int = 256,
        seed: int = 0,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        choice("kind", kind, get_args(Kind))
        if sigma <= 0 or blur <= 0 or not 0 <= held_out < 1 or reservoir < 1:
            raise ConfigError(
                f"sigma={sigma} and blur={blur} must be above 0, held_out={held_out} in [0, 1), "
                f"reservoir={reservoir} at least 1."
            )
        self.save_hyperparameters(logger=False)
        self.kind, self.seed = kind, seed
        self.automatic_optimization = False
        if kind in ("shuffled", "observers"):
            self.network = FromGroundTruth(size)
        else:
            self.network = Prior(size, None if kind == "uniform" else sigma)
        self.maps: Tensor
        self.count: Tensor
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("maps", torch.zeros(reservoir if kind == "shuffled" else 0, *size))

    # -- fitting -------------------------------------------------------------------------------------

    def configure_optimizers(self) -> None:
        """Nothing is optimised; `fit` only looks at the maps."""

    @torch.no_grad()
    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Take up the labelled maps of a batch; "uniform", "centre" and "observers" need none."""
        if self.kind not in FITTED:
            return
        density = batch["density"].float()
        labelled = batch.get("labelled")
        maps = density.flatten(0, 1) if labelled is None else density[labelled.bool()]
        maps = maps[maps.sum((-2, -1)) > 0]
        if maps.shape[-2:] != self.spec.size:
            maps = torch.nn.functional.interpolate(maps[:, None], self.spec.size, mode="area")[:, 0]
        maps = maps / maps.sum((-2, -1), keepdim=True)
        if self.kind == "fitted_centre":
            if len(maps):
                assert isinstance(self.network, Prior)
                self.count += len(maps)
                # The running mean forgets the Gaussian at the first map.
                self.network.density += (maps.mean(0) - self.network.density) * (len(maps) / self.count)
            return
        for one in maps:  # reservoir sampling: every map of the training set is kept with the same chance
            seen = int(self.count)
            slot = seen if seen < len(self.maps) else int(self._draw(self.count, self.count)) % (seen + 1)
            if slot < len(self.maps):
                self.maps[slot] = one
            self.count += 1

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the mean KL divergence from the labelled densities, for the validation's log."""
        density = batch["density"].float()
        prediction = torch.nn.functional.interpolate(output.density(), density.shape[-2:], mode="bilinear")
        values = kl_divergence(prediction, density)
        weight = density.new_ones(values.shape) if "labelled" not in batch else batch["labelled"].to(values)
        return {"loss": (values * weight).sum() / weight.sum().clamp_min(1)}

    # -- scoring -------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> SaliencyOutput:
        """Return the baseline's maps for a batch.

        Raises:
            ConfigError: "shuffled" before `fit`, or "observers" on data without observer ids.
        """
        if self.kind == "shuffled":
            return self.network.output(_log(self._shuffled(batch)))
        if self.kind == "observers":
            size = batch["density"].shape[-2:] if "density" in batch else self.spec.size
            predicting, _, _ = self._parts(batch)
            return self.network.output(_log(self._blurred(predicting, (size[0], size[1]))))
        return self.network.core(batch["video"])

    def _update(self, stage: str, output: SaliencyOutput, batch: Batch) -> None:
        if self.kind == "observers":
            # The observers who predict must not be their own ground truth.
            _, truth, usable = self._parts(batch)
            batch = Batch(**batch)
            if "density" in batch:
                size = batch["density"].shape[-2:]
                batch["density"] = self._blurred(truth, (size[0], size[1]))
            batch["fixations"] = truth
            batch["labelled"] = usable & batch["labelled"].bool() if "labelled" in batch else usable
        super()._update(stage, output, batch)

    def _shuffled(self, batch: Batch) -> Tensor:
        kept = min(int(self.count), len(self.maps))
        if kept == 0:
            if self._trainer is not None and self._trainer.sanity_checking:
                return torch.ones(*batch["frame"].shape, *self.spec.size, device=self.device)
            raise ConfigError(
                "kind='shuffled' has no maps to draw from; run `fit` for one epoch first and test its checkpoint."
            )
        return self.maps[self._draw(batch["video_id"][:, None], batch["frame"]) % kept]

    def _parts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Split the fixations (B, T_out, N, 2) by observer.

        Returns:
            The fixations of those who predict and of those held out, each padded with -1, and (B, T_out)
            whether there are both.
        """
        if "observer" not in batch or "fixations" not in batch:
            raise ConfigError(
                "kind='observers' needs to know who made each fixation; this data set has no observer ids."
            )
        fixations, observer = batch["fixations"], batch["observer"]
        known = (observer >= 0) & (fixations >= 0).all(-1)
        # Observers are ordered by chance; the first of the order are held out.
        moment = batch["video_id"][:, None, None] * 100_003 + batch["frame"][..., None]
        order = self._draw(moment, observer).masked_fill(~known, -1)
        same = (order[..., :, None] == order[..., None, :]) & known[..., None, :]
        first = known & ~torch.tril(same, diagonal=-1).any(-1)  # one entry stands for each observer
        rank = ((order[..., None, :] < order[..., :, None]) & first[..., None, :]).sum(-1)
        people = first.sum(-1, keepdim=True)
        held = (people * float(self.hparams["held_out"])).round().long().clamp_min(1)
        held = torch.minimum(held, people - 1)
        truth = known & (rank < held)
        predicting = known & (rank >= held)
        padding = fixations.new_tensor(-1)
        return (
            torch.where(predicting[..., None], fixations, padding),
            torch.where(truth[..., None], fixations, padding),
            truth.any(-1) & predicting.any(-1),
        )

    def _blurred(self, fixations: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the sum of a Gaussian at each fixation, (B, T_out, h, w), divided by its maximum."""
        sigma = float(self.hparams["blur"]) * size[1]
        valid = (fixations >= 0).all(-1)
        row, column = (
            torch.exp(-((torch.arange(n, device=fixations.device) - at[..., None]) / sigma).square() / 2)
            for n, at in zip(size, fixations.unbind(-1), strict=True)
        )
        maps = torch.einsum("btnh,btnw->bthw", row * valid[..., None], column)
        return maps / maps.amax((-2, -1), keepdim=True).clamp_min(1e-12)

    def _draw(self, first: Tensor, second: Tensor) -> Tensor:
        """Return a random int64 >= 0 that depends on two numbers and the seed (an integer hash)."""
        value = first.to(torch.int64) * 1_000_003 + second.to(torch.int64) + self.seed * 7_368_787
        for factor in (0x1F58476D1CE4E5B9, 0x14D049BB133111EB):
            value = (value ^ (value >> 31)) * factor
        return ((value ^ (value >> 29)) & 0x7FFF_FFFF_FFFF_FFFF) >> 8


def _log(maps: Tensor) -> Tensor:
    """Return logits whose softmax over the pixels is proportional to non-negative maps."""
    return (maps / maps.sum((-2, -1), keepdim=True).clamp_min(1e-30) + 1e-20).log()


#: What `create_model("baselines")` builds.
MODULE = BaselineModule
