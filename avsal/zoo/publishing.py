"""Publishing a checkpoint on the Hub: weights, configuration, and a card made from what is known."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avsal.checkpoints.fetch import Access, explain, is_transport, keep_hub_secrets
from avsal.checkpoints.file import Loaded, write_checkpoint
from avsal.checkpoints.registry import Licence, Scores, entries
from avsal.errors import ConfigError, WeightsError
from avsal.files import cache_folder, sha256_of
from avsal.models.base import config_of
from avsal.zoo.card import Facts, facts_of, model_card
from avsal.zoo.load import build, fill, load_checkpoint

if TYPE_CHECKING:
    from avsal.evaluation.results import Checkpoint as Weights
    from avsal.models.base import SaliencyModule

CARD_FILE = "README.md"
#: How cards write the names of metrics; the others stay as results files have them.
METRICS = {
    "cc": "CC",
    "nss": "NSS",
    "sim": "SIM",
    "kl": "KL",
    "auc_judd": "AUC-J",
    "sauc": "sAUC",
    "f1": "F1",
}


def publish(
    source: SaliencyModule | str | os.PathLike[str],
    repo_id: str,
    *,
    results: Iterable[str | os.PathLike[str] | Scores] = (),
    licence: str | None = None,
    notice: str | None = None,
    data: Iterable[str] = (),
    name: str | None = None,
    hold_rights: bool = False,
    dtype: torch.dtype | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    out: str | os.PathLike[str] | None = None,
) -> str:
    """Publish a checkpoint; publishing the same again changes nothing.

    Args:
        source: a module, or whatever `from_pretrained` takes.
        repo_id: user/name; is created if it does not exist.
        results: result files of `avsal test` or `avsal evaluate`, or scores.
        licence: licence of the weights as an SPDX name, such as "cc-by-4.0"; a registry entry has its own.
        notice: what the weights were trained on, under which terms; a registry entry has its own.
        data: the training data sets; a registry entry has its own.
        name: the checkpoint's name on the card; the repository's by default.
        hold_rights: you say that you hold the rights to weights whose authors state no licence.
        dtype: storage type, such as `torch.float16`.
        private: of a repository that is created.
        token: access token; by default the stored one. It is never printed or written.
        commit_message: of the upload.
        branch: where the upload goes; the main branch by default.
        create_pr: open a pull request instead.
        out: write the files into this folder and upload nothing.

    Returns:
        The repository's address, or the folder `out`.

    Raises:
        WeightsError: licence, training data or metrics are missing, the licence is not stated and `hold_rights` is
            False, or the Hub refuses.
    """
    from avsal.models.base import SaliencyModule

    if isinstance(source, SaliencyModule):
        loaded = Loaded(source.state_dict(), config_of(source), type(source).__name__)
    else:
        loaded = load_checkpoint(source, Access(cache_folder(), token=token))
    results = list(results)
    given = [item for item in results if isinstance(item, Scores)]
    weights = _weights(source, loaded) if len(given) < len(results) else None
    scores = [item if isinstance(item, Scores) else _scores(item, weights) for item in results]
    facts = _facts(loaded, source, name or repo_id.rsplit("/", 1)[-1], scores, licence, notice, list(data))
    _refuse_gaps(facts, hold_rights)
    config = {
        **loaded.config,
        "name": facts.name,
        "task": facts.task,
        "data": facts.data,
        "licence": facts.licence.model_dump(),
    }
    card = model_card(facts, repo_id, published_by_holder=hold_rights)
    if out is not None:
        return str(_write(Path(out), loaded, config, card, dtype))
    with tempfile.TemporaryDirectory(prefix="avsal-publish-") as folder:
        _write(Path(folder), loaded, config, card, dtype)
        return _upload(Path(folder), repo_id, private, token, commit_message, branch, create_pr)


def _write(
    folder: Path, loaded: Loaded, config: Mapping[str, Any], card: str, dtype: torch.dtype | None
) -> Path:
    write_checkpoint(folder, loaded.state, config, dtype)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return folder


def _weights(source: Any, loaded: Loaded) -> Weights:
    """Return what results call the weights that are published: by their file, and by the entries of their module."""
    from avsal.evaluation.provenance import weights_hash
    from avsal.evaluation.results import Checkpoint

    module = (
        source if isinstance(source, torch.nn.Module) else fill(build(loaded.config, loaded.where), loaded)
    )
    return Checkpoint(name=loaded.where, sha256=loaded.sha256, weights=weights_hash(module))


def _scores(item: str | os.PathLike[str], weights: Weights | None) -> Scores:
    """Return the scores in a results file, if they are those of the weights that are published."""
    from avsal.evaluation.results import Results

    result = Results.read(Path(item))
    tested = result.checkpoint
    if tested is None or not tested.hashes:
        raise WeightsError(
            f"{item} does not say which weights it holds the scores of; test the checkpoint with "
            "`avsal test --ckpt_path`, or give `avsal evaluate` its --checkpoint."
        )
    if weights is None or not weights.same(tested):
        raise WeightsError(
            f"{item} holds the scores of another checkpoint ({tested.name or 'weights in memory'}, sha256 "
            f"{sorted(tested.hashes)[0][:16]}…) than {weights.name if weights else '?'}; test this one."
        )
    metrics = {METRICS.get(k, k): round(v, 4) for k, v in result.metrics.items() if math.isfinite(v)}
    if not metrics:
        raise WeightsError(f"{item} holds no finite score.")
    fold = "" if result.data.fold is None else f", fold {result.data.fold}"
    split = f", {result.data.split} split" if result.data.split else ""
    return Scores(
        data=result.data.name, source=f"avsal {result.avsal} {result.kind}{split}{fold}", metrics=metrics
    )


def _facts(
    loaded: Loaded,
    source: Any,
    name: str,
    scores: list[Scores],
    licence: str | None,
    notice: str | None,
    data: list[str],
) -> Facts:
    """Collect what is known: from the registry where the checkpoint has a name there, else from the arguments."""
    config = loaded.config
    known = entries().get(str(source) if isinstance(source, str) else "") or entries().get(
        str(config.get("name"))
    )
    if known is not None and known.is_backbone:
        raise WeightsError(f"{known.name} is a backbone; only models are published.")
    if known is not None and known.model == config.get("model"):
        facts = facts_of(known, scores, config.get("source"))
        terms = facts.licence.model_copy(
            update={k: v for k, v in (("weights", licence), ("notice", notice)) if v is not None}
        )
        return Facts(**{**vars(facts), "licence": terms, "data": data or facts.data})
    stored = config.get("licence") or {}
    task = config.get("task") or _task(config)
    terms = Licence.model_construct(
        code="Apache-2.0",
        weights=licence or stored.get("weights"),
        notice=notice or stored.get("notice") or "",
    )
    return Facts(
        name=name,
        model=str(config["model"]),
        task=task,
        data=data or list(config.get("data") or ()),
        licence=terms,
        input=_input(config),
        arguments={k: v for k, v in dict(config.get("arguments", {})).items() if v is not None},
        measured=scores,
        origin=config.get("source"),
    )


def _task(config: Mapping[str, Any]) -> str:
    kind = config.get("arguments", {}).get("task")
    return f"gaze-{kind}" if kind in ("anticipation", "estimation") else "saliency"


def _input(config: Mapping[str, Any]) -> str:
    from avsal.zoo.show import input_line

    return input_line(build(config, "the checkpoint").spec)


def _refuse_gaps(facts: Facts, hold_rights: bool) -> None:
    gaps = []
    if not facts.licence.weights:
        gaps.append("the licence of the weights: licence= (--licence cc-by-4.0)")
    if not facts.licence.notice:
        gaps.append("what the weights were trained on, under which terms: notice= (--notice TEXT)")
    if not facts.data:
        gaps.append("the training data: data= (--data DIEM --data AVAD)")
    if not (facts.measured or facts.published):
        gaps.append(
            "metrics: results= (--results results/run.json, which `avsal test` and `avsal evaluate` write)"
        )
    if gaps:
        raise WeightsError(f"{facts.name} is not published, its card would lack:\n  - " + "\n  - ".join(gaps))
    if facts.licence.weights == "not-stated" and not hold_rights:
        raise WeightsError(
            f"{facts.name} is not published: its authors state no licence for the weights. Ask them. If you hold the "
            "rights, say so with hold_rights=True (--i-hold-the-rights), best with a licence (--licence)."
        )


def _upload(
    folder: Path,
    repo_id: str,
    private: bool | None,
    token: str | bool | None,
    commit_message: str | None,
    branch: str | None,
    create_pr: bool,
) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    keep_hub_secrets(token)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        try:
            if not create_pr and _same(api, folder, repo_id, branch):
                return f"{api.endpoint}/{repo_id}"
        except RepositoryNotFoundError:
            api.create_repo(repo_id, private=private, exist_ok=True)
        except RevisionNotFoundError:
            pass
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or "Publish checkpoint with avsal",
            revision=branch,
            create_pr=create_pr,
        )
    except Exception as error:
        if not is_transport(error):
            raise
        raise WeightsError(
            f"Publishing failed, {explain(error, repo_id, False)}. Log in with `hf auth login` and a token that may "
            "write; what was uploaded before is kept, so publish again to go on."
        ) from None  # the client's own message may hold an address with a token
    return f"{api.endpoint}/{repo_id}"


def _same(api: Any, folder: Path, repo_id: str, branch: str | None) -> bool:
    """Return whether the repository already holds exactly these files."""
    remote = {
        entry.rfilename: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in api.model_info(repo_id, revision=branch, files_metadata=True).siblings or ()
    }

    def identity(path: Path) -> set[str]:
        content = path.read_bytes() if path.stat().st_size < 10_000_000 else b""
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return {sha256_of(path), git}

    return all(remote.get(path.name) in identity(path) for path in folder.iterdir())


def save_pretrained(
    module: SaliencyModule,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    repo_id: str | None = None,
    push_to_hub: bool = False,
    **publish_options: Any,
) -> Path:
    """Write a module as `model.safetensors` and `config.json`; `from_pretrained(folder)` gives it back.

    Args:
        module: the module; its mode and device do not matter.
        folder: is created; files of an earlier save are replaced.
        dtype: storage type of floating-point entries, such as `torch.float16` for half the size. Loading
            gives float32 unless asked otherwise.
        repo_id: Hub repository for `push_to_hub`; the folder's name by default.
        push_to_hub: also publish it (see `avsal.zoo.publish`).
        **publish_options: go to `publish`.

    Returns:
        The folder.
    """
    folder = write_checkpoint(Path(folder), module.state_dict(), config_of(module), dtype)
    if push_to_hub:
        publish(module, repo_id or folder.name, dtype=dtype, **publish_options)
    elif publish_options:
        raise ConfigError(f"save_pretrained takes no {', '.join(publish_options)} unless push_to_hub=True.")
    return folder
