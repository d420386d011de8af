"""The page of `avsal info` about a checkpoint or a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from avsal.checkpoints.fetch import Access, is_cached
from avsal.checkpoints.registry import STATUS, Checkpoint, Scores, citation, describe, entries, find
from avsal.errors import AvsalError, WeightsError
from avsal.files import cache_folder
from avsal.models import create_model, list_models
from avsal.nn.backbones import BACKBONES
from avsal.nn.cost import Cost, count
from avsal.types import ClipSpec
from avsal.zoo.load import build, load_checkpoint
from avsal.zoo.tables import human_size

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule, SaliencyNetwork

#: Frame rate of the example clip whose cost is counted; it sets the length of its sound.
_FPS = 25.0


def describe_name(name: str, arguments: Mapping[str, Any]) -> RenderableType:
    """Return what is known about a name.

    Args:
        name: a checkpoint of the registry, a model, a file, or a Hub repository.
        arguments: constructor arguments, for a model.

    Raises:
        WeightsError: nothing of that name.
        ConfigError: arguments that the model does not take.
    """
    if name in entries():
        return _entry(find(name))
    if name in list_models():
        module = create_model(name, **arguments)
        more = _variants(module) if module.variants and not arguments else []
        return _group(f"model {name}", _module_rows(module), *more)
    if "/" not in name and not Path(name).exists():
        try:
            find(name)
        except WeightsError as error:
            raise WeightsError(f"{error} Models: {', '.join(list_models())}.") from None
    config = load_checkpoint(name, Access(cache_folder())).config
    rows = [("written by", f"avsal {config.get('avsal_version', '?')}"), ("model", str(config.get("model")))]
    licence = config.get("licence")
    if isinstance(licence, dict):
        rows.append(("licence of the weights", str(licence.get("weights"))))
    if isinstance(config.get("source"), dict):
        rows.append(
            ("converted from", f"{config['source'].get('origin')} (sha256 {config['source'].get('sha256')})")
        )
    if "backbone" not in config:
        rows += _module_rows(build(config, name))
    return _group(f"checkpoint {name}", rows)


def _group(title: str, rows: list[tuple[str, str]], *more: RenderableType) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return Group(Text(title, style="bold"), "", table, *more)


def _entry(entry: Checkpoint) -> RenderableType:
    paper = citation(entry)
    rows = [
        ("model", entry.model),
        ("task", entry.task),
        ("trained on", ", ".join(entry.data) + (f", fold {entry.fold}" if entry.fold else "")),
        ("started from", ", ".join(entry.pretraining) or "–"),
    ]
    if entry.is_backbone:
        rows.append(("input", entry.input))
        rows.append(("converts by", BACKBONES.get(entry.model, "–")))
    else:
        try:
            rows += _module_rows(create_model(entry.model, **entry.arguments))
        except AvsalError as error:
            rows.append(("network", f"cannot be built: {error}"))
    rows += [
        ("size", human_size(entry.size)),
        ("status", f"{entry.status}: {STATUS[entry.status]}"),
        ("cached", "yes" if is_cached(entry) else f"no (cache: {cache_folder()})"),
        ("licence of the weights", entry.licence.weights),
        ("licence of the original code", entry.licence.code),
        ("terms", entry.licence.notice),
        ("cite", f"{paper.authors} ({paper.year}). {paper.title}. {paper.venue}. {paper.url}"),
    ]
    if entry.note:
        rows.append(("note", entry.note))
    rows += [
        (f"source {number}", f"{describe(source)}\n{_checksum(source)}")
        for number, source in enumerate(entry.sources, 1)
    ]
    more: list[RenderableType] = []
    for title, scores in (("measured by avsal", entry.measured), ("published in the paper", entry.published)):
        if scores:
            more += ["", Text(title, style="bold"), _scores(scores)]
    return _group(f"checkpoint {entry.name}", rows, *more)


def _checksum(source: Any) -> str:
    known = getattr(source, "sha256", None) or getattr(source, "sha256_prefix", None)
    return f"sha256 {known}" if known else "sha256 not known; recorded on first fetch"


def _scores(scores: list[Scores]) -> Table:
    metrics = list(dict.fromkeys(metric for row in scores for metric in row.metrics))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("data set", *metrics, "from"):
        table.add_column(column, justify="left" if column in ("data set", "from") else "right")
    for row in scores:
        values = [f"{row.metrics[metric]:g}" if metric in row.metrics else "" for metric in metrics]
        table.add_row(row.data, *values, row.source + (f" ({row.note})" if row.note else ""))
    return table


def _module_rows(module: SaliencyModule) -> list[tuple[str, str]]:
    network = module.network
    cost = network_cost(network)
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    spec = network.spec
    return [
        (
            "arguments",
            ", ".join(f"{key}={value}" for key, value in module.hparams.items() if value is not None),
        ),
        ("parameters", f"{cost.params:,} ({trainable:,} trained)"),
        ("multiply-adds", f"{cost.macs / 1e9:.2f} G for one clip, sound front end not counted"),
        ("input", input_line(spec)),
        ("pixels", f"RGB 0..255, mean {_numbers(spec.mean)}, deviation {_numbers(spec.std)}, {spec.resize}"),
        ("output", f"{spec.outputs} map(s) per clip, {network.activation}, {_target(spec.target)}"),
    ]


def input_line(spec: ClipSpec) -> str:
    """Return a clip specification in one line for people."""
    unit = "s" if spec.step_unit == "seconds" else "frame(s)"
    text = f"{spec.frames} frames of {spec.size[0]}x{spec.size[1]}, {spec.step:g} {unit} apart"
    if spec.audio is None:
        return text + ", no sound"
    rate = spec.audio.sample_rate
    return text + (f", mono waveform at {rate} Hz" if rate else ", mono waveform at the file's own rate")


def _target(target: str | int | tuple[float, ...]) -> str:
    if isinstance(target, tuple):
        return "for " + " ".join(f"{seconds:.3g}" for seconds in target) + " s after the clip's last frame"
    return f"for frame {target} of the clip" if isinstance(target, int) else f"for the {target} frame"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _variants(module: Any) -> list[RenderableType]:
    """Return a table of the paper's configurations with their sizes, counted without computing the network."""
    table = Table(
        title="\nconfigurations of the paper", title_justify="left", box=None, pad_edge=False,
        caption=getattr(module, "variants_note", None), caption_justify="left",
    )  # fmt: skip
    table.add_column("row")
    table.add_column("arguments", overflow="fold")
    for heading in ("parameters", "multiply-adds"):
        table.add_column(heading, justify="right", no_wrap=True)
    # All audio-visual configurations expect the same audio input.
    _, heard = _example(module.network)
    for row, variant in module.variants.items():
        with torch.device("meta"):
            network = type(module)(**variant).network
            video = torch.empty(1, 3, network.spec.frames, *network.spec.size)
        sound = heard.to("meta") if heard is not None and network.spec.audio is not None else None
        cost = count(network, video, sound, method="core")
        shown = ", ".join(f"{key}={value}" for key, value in variant.items())
        table.add_row(row, shown, f"{cost.params / 1e6:.2f} M", f"{cost.macs / 1e9:.1f} G")
    return [table]


def network_cost(network: SaliencyNetwork) -> Cost:
    """Count parameters and multiply-adds of `core` on one clip at 25 frames per second.

    Args:
        network: stays as it is.
    """
    return count(network, *_example(network), method="core")


def _example(network: SaliencyNetwork) -> tuple[Tensor, Tensor | None]:
    """Return a clip at 25 frames per second and what the network hears of its silence."""
    spec = network.spec
    video = torch.zeros(1, 3, spec.frames, *spec.size)
    if spec.audio is None:
        return video, None
    spacing = spec.step if spec.step_unit == "seconds" else spec.step / _FPS
    times = torch.arange(spec.frames, dtype=torch.float64)[None] * spacing
    rate = spec.audio.sample_rate or 22050
    begin, end = spec.audio.samples(0.0, float(times[0, -1]), _FPS, rate)
    waveform = torch.zeros(1, end - begin)
    with torch.no_grad():
        return video, network.frontend(
            waveform, torch.tensor([end - begin]), torch.tensor([True]), times - begin / rate
        )
