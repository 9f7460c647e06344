"""What a model was made from, by the manifests of the folders at hand: whether a policy was trained against a reward model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from training.contract import ModelManifest, ParentRef, hash_file, read_model_manifest
from training.errors import StageError


class Lineage(NamedTuple):
    """A model's ancestors, itself not among them: all that were found, and those whose own manifest is not at hand."""

    ancestors: list[ParentRef]
    unread: list[ParentRef]


def lineage_of(folder: str | os.PathLike[str]) -> Lineage:
    """Every ancestor that the manifests name: the folder's own, and those of parents that lie where they were or beside it."""
    start = Path(folder)
    if not (start / "manifest.json").exists():
        return Lineage([], [])
    found: dict[str, ParentRef] = {}
    unread: dict[str, ParentRef] = {}
    waiting = [start]
    while waiting:
        child = waiting.pop()
        manifest = read_model_manifest(child, verify=False)
        for parent in manifest.parents.values():
            if parent.manifest_sha256 in found:
                continue
            found[parent.manifest_sha256] = parent
            place = _place_of(parent, child, manifest)
            if place is None:
                unread[parent.manifest_sha256] = parent
            else:
                waiting.append(place)
    return Lineage(list(found.values()), list(unread.values()))


def _place_of(parent: ParentRef, child: Path, manifest: ModelManifest) -> Path | None:
    """The parent's folder, told by its manifest's hash; None where it is not at hand."""
    named = (Path(value) for value in manifest.config.values() if isinstance(value, str) and value)
    for folder in (child.parent / parent.name, *named, *_siblings(child)):
        path = folder / "manifest.json"
        if path.is_file() and hash_file(path) == parent.manifest_sha256:
            return folder
    return None


def _siblings(folder: Path) -> Iterator[Path]:
    yield from sorted(path.parent for path in folder.parent.glob("*/manifest.json"))


def check_not_trained_against(
    policy: str | os.PathLike[str], reward_model: str | os.PathLike[str], *, allowed: bool = False
) -> bool:
    """Whether the policy, or a model that it was made from, was trained or chosen by this reward model.

    Raises StageError if so unless `allowed`: what a policy was trained to score high on cannot say that it became better.
    """
    path = Path(reward_model) / "manifest.json"
    if not path.is_file():
        raise StageError(f"{reward_model}: no manifest.json, so nothing says what was trained against it")
    identity = hash_file(path)
    is_trained_against = any(parent.manifest_sha256 == identity for parent in lineage_of(policy).ancestors)
    if is_trained_against and not allowed:
        raise StageError(
            f"{policy}: was trained or chosen by the reward model {reward_model}, as its lineage says, so that model's "
            "scores cannot judge it; name another reward model, or set allow_trained_against (the result will say so)"
        )
    return is_trained_against
