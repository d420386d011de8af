"""Model cards: what a checkpoint is, generated from the registry and from measured results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import avsal
from avsal.checkpoints.registry import Checkpoint, Citation, Licence, Scores, citation

#: Words of the task, as the Hub's model-index and people read them.
TASKS = {
    "saliency": "video saliency prediction",
    "gaze-anticipation": "egocentric gaze anticipation",
    "gaze-estimation": "egocentric gaze estimation",
}
LIMITS = """\
- The maps predict where a group of free viewers looks on average. They say nothing about one person, about intention
  or attention to content, and must not be used to judge people.
- Numbers hold for the data sets named above; other genres, frame rates, aspect ratios and viewing tasks shift them.
- Scores of different metric codes or map post-processing are not comparable; each row names where it comes from."""


@dataclass(frozen=True)
class Facts:
    """Everything a card says about a checkpoint."""

    name: str
    model: str
    task: str
    data: list[str]
    licence: Licence
    input: str
    arguments: dict[str, Any]
    paper: Citation | None = None
    pretraining: list[str] = field(default_factory=list)
    published: list[Scores] = field(default_factory=list)
    measured: list[Scores] = field(default_factory=list)
    note: str | None = None
    origin: dict[str, Any] | None = None


def facts_of(
    entry: Checkpoint, measured: Iterable[Scores] = (), origin: dict[str, Any] | None = None
) -> Facts:
    """Return the facts of a registry entry, with further measured scores."""
    return Facts(
        name=entry.name,
        model=entry.model,
        task=entry.task,
        data=entry.data,
        licence=entry.licence,
        input=entry.input,
        arguments=entry.arguments,
        paper=citation(entry),
        pretraining=entry.pretraining,
        published=list(entry.published),
        measured=[*entry.measured, *measured],
        note=entry.note,
        origin=origin,
    )


def model_card(facts: Facts, repo_id: str, published_by_holder: bool = False) -> str:
    """Return the text of a model card, metadata included.

    Args:
        facts: the model's facts.
        repo_id: where it goes, for the lines that show how to load it.
        published_by_holder: the publisher says to hold the rights that the authors' licence leaves open.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=facts.task,
            task_name=TASKS.get(facts.task, facts.task),
            dataset_type=scores.data.lower().replace(" ", "-"),
            dataset_name=scores.data,
            metric_type=metric.lower(),
            metric_name=metric,
            metric_value=value,
            source_name=scores.source,
            source_url=facts.paper.url
            if facts.paper and scores in facts.published
            else "https://github.com/avsal/avsal",
        )
        for scores in (*facts.measured, *facts.published)
        for metric, value in scores.metrics.items()
    ]
    spdx = facts.licence.weights.lower()
    named = spdx in _HUB_LICENCES
    data = ModelCardData(
        library_name="avsal",
        license=spdx if named else "other",
        license_name=None if named else spdx.replace(" ", "-"),
        tags=["avsal", facts.model, facts.task, "saliency", "eye-tracking"],
        model_name=facts.name,
        eval_results=results,
    )
    return (
        f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(_sections(facts, repo_id, published_by_holder)) + "\n"
    )


#: Licence identifiers that the Hub accepts; anything else is "other" with its name.
_HUB_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "openrail",
}  # fmt: skip


def _sections(facts: Facts, repo_id: str, published_by_holder: bool) -> list[str]:
    arguments = (
        ", ".join(f"`{key}={value}`" for key, value in sorted(facts.arguments.items())) or "the defaults"
    )
    trained = ", ".join(facts.data) + (
        f"; started from {', '.join(facts.pretraining)}" if facts.pretraining else ""
    )
    sections = [
        f"# {facts.name}",
        f"`{facts.model}` of [avsal](https://github.com/avsal/avsal) for {TASKS.get(facts.task, facts.task)}, "
        f"with {arguments}. Written by avsal {avsal.__version__}.",
        "| | |\n|---|---|\n"
        f"| input | {facts.input} |\n"
        f"| trained on | {trained} |\n"
        f"| licence of the weights | {facts.licence.weights} |\n"
        f"| licence of the original code | {facts.licence.code} |",
        "## Load it\n\n```python\nimport avsal\n\n"
        f'module = avsal.from_pretrained("{repo_id}")\n'
        'for frame in module.predict_video("clip.mp4"):\n    print(frame.index, frame.time, frame.map.shape)\n```\n\n'
        f"or `avsal predict clip.mp4 --checkpoint {repo_id} --out results`.",
    ]
    for title, scores in (("Measured", facts.measured), ("Published in the paper", facts.published)):
        if scores:
            sections.append(f"## {title}\n\n{_score_table(scores)}")
    if facts.measured and facts.published:
        sections.append(
            "Measured and published numbers are kept apart: their metric code and files may differ."
        )
    terms = facts.licence.notice
    if published_by_holder:
        terms += (
            " The publisher of this repository states that they hold the rights to publish these weights."
        )
    sections.append(f"## Terms\n\n{terms}")
    if facts.origin:
        sections.append(
            f"Converted from {facts.origin.get('origin')}"
            + (f", member {facts.origin['member']}" if facts.origin.get("member") else "")
            + f" (sha256 {facts.origin.get('sha256')})."
        )
    sections.append(f"## Limits\n\n{LIMITS}" + (f"\n- {facts.note}" if facts.note else ""))
    if facts.paper:
        paper = facts.paper
        sections.append(
            f"## Cite\n\n{paper.authors} ({paper.year}). {paper.title}. {paper.venue}. {paper.url}"
        )
    return sections


def _score_table(scores: list[Scores]) -> str:
    metrics = list(dict.fromkeys(metric for row in scores for metric in row.metrics))
    lines = [
        "| data set | " + " | ".join(metrics) + " | from |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    for row in scores:
        values = [f"{row.metrics[metric]:g}" if metric in row.metrics else "" for metric in metrics]
        lines.append(
            f"| {row.data} | "
            + " | ".join(values)
            + f" | {row.source}"
            + (f" ({row.note})" if row.note else "")
            + " |"
        )
    return "\n".join(lines)
