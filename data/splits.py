"""Label splits: which training examples keep their labels, and manifests that store a split in a file."""

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

from data.sampler import permutation
from errors import UserError, unknown

PROTOCOLS = ('balanced', 'proportional')
ALL = -1  # num_labeled for "every label there is"


@dataclasses.dataclass(frozen=True)
class Split:
    """Indices into the training images, each int64 and ascending.

    Attributes:
        labeled: [L] examples whose labels may be used.
        unlabeled: [N - V] all examples but those of validation; the labeled ones are included.
        validation: [V] examples held out of training.
    """

    labeled: np.ndarray
    unlabeled: np.ndarray
    validation: np.ndarray


def draw(
    labels: np.ndarray, num_labeled: int, num_classes: int, protocol: str, seed: int, validation: int = 0
) -> Split:
    """Draws the labeled and the validation examples.

    The labeled examples are drawn first, so they do not depend on the size of the validation part, and those of a
    larger num_labeled contain those of a smaller one. Validation follows the class distribution of the rest.

    Args:
        labels: [N] class of each training example, -1 where it has none (never chosen as labeled).
        num_labeled: Number of labels over all classes; ALL (-1) for all but those of validation.
        num_classes: Number of classes.
        protocol: 'balanced' takes the same number per class (TorchSSL, USB); 'proportional' follows the class
            distribution by the greedy rule of FixMatch's scripts/create_split.py (google-research/fixmatch).
        seed: Any integer.
        validation: Number of validation examples.

    Returns:
        The split.

    Raises:
        UserError: The protocol is unknown, there are not enough labels, or they cannot be shared equally.
    """
    order = permutation(len(labels), seed, 'labels')
    members = [order[labels[order] == c] for c in range(num_classes)]
    have = np.array([len(m) for m in members])
    if num_labeled < ALL or validation < 0:
        raise UserError(f'{num_labeled} labels, {validation} for validation: use a count, 0, or -1 for all labels.')
    if protocol not in PROTOCOLS:
        raise unknown('label protocol', protocol, PROTOCOLS)
    share = _balanced if protocol == 'balanced' else _proportional
    take = share(max(num_labeled, 0), have, 'labels')
    hold = _proportional(validation, have - take, 'validation examples')
    if num_labeled == ALL:
        take = have - hold
    labeled = [m[:n] for m, n in zip(members, take, strict=True)]
    # From the end of each class, so that the validation part does not depend on the number of labels.
    held_out = [m[len(m) - n :] for m, n in zip(members, hold, strict=True)]
    return _split(np.concatenate(labeled), np.concatenate(held_out), len(labels))


def to_manifest(
    split: Split, name: str, labels: np.ndarray, images: np.ndarray, protocol: str, seed: int
) -> dict[str, Any]:
    """Returns the split as a dict for JSON, which `from_manifest` can check against the data.

    Args:
        split: What `draw` returned.
        name: Data set name.
        labels: [N] classes.
        images: uint8 [N, H, W, C].
        protocol: The protocol that it was drawn by, for information only.
        seed: The seed that it was drawn from, for information only.
    """
    return {
        'data_set': name,
        'num_examples': len(labels),
        'protocol': protocol,
        'seed': seed,
        'labeled': split.labeled.tolist(),
        'classes': labels[split.labeled].tolist(),
        'validation': split.validation.tolist(),
        'sha256': _fingerprint(split, images),
    }


def from_manifest(path: str | os.PathLike, name: str, labels: np.ndarray, images: np.ndarray) -> Split:
    """Reads a split and checks that it refers to the same images.

    Args:
        path: JSON file with the result of `to_manifest`.
        name: Name of the data set.
        labels: [N] its classes.
        images: uint8 [N, H, W, C], its images.

    Returns:
        The split.

    Raises:
        UserError: The file cannot be read, is not a manifest, or does not fit this data set.
    """

    def check(ok: bool, problem: str) -> None:
        if not ok:
            raise UserError(f'Label manifest {path}: {problem}.')

    try:
        with open(path, encoding='utf-8') as file:
            manifest = json.load(file)
    except OSError as error:
        raise UserError(f'Label manifest {path}: {error.strerror}.') from error
    except ValueError as error:
        raise UserError(f'Label manifest {path}: not valid JSON ({error}).') from error
    keys = ('data_set', 'num_examples', 'labeled', 'classes', 'validation', 'sha256')
    missing = [key for key in keys if not isinstance(manifest, dict) or key not in manifest]
    check(not missing, f'lacks {", ".join(missing)}')
    check(manifest['data_set'] == name, f"is for '{manifest['data_set']}', not for '{name}'")
    size = len(labels)
    check(manifest['num_examples'] == size, f'is for {manifest["num_examples"]} examples, not for {size}')
    for key in ('labeled', 'validation'):
        values = manifest[key]
        valid = isinstance(values, list) and all(type(v) is int and 0 <= v < size for v in values)
        check(valid, f"'{key}' must be a list of integers from 0 to {size - 1}")
    chosen = manifest['labeled'] + manifest['validation']
    check(len(set(chosen)) == len(chosen), 'an example is listed twice')
    labeled, validation = (np.array(manifest[key], np.int64) for key in ('labeled', 'validation'))
    check(labels[labeled].tolist() == manifest['classes'], 'its classes are not those of the data')
    split = _split(labeled, validation, size)
    same = manifest['sha256'] == _fingerprint(split, images)
    check(same, 'its images are not those of the data (another order or version)')
    return split


def _balanced(total: int, have: np.ndarray, what: str) -> np.ndarray:
    per_class, left_over = divmod(total, len(have))
    if left_over:
        raise UserError(
            f'{total} {what} cannot be shared equally by {len(have)} classes: use a multiple of it, '
            "or the protocol 'proportional'."
        )
    for c, n in enumerate(have):
        if n < per_class:
            need = f'{total} balanced {what} need {per_class} of class {c}, which has {n}'
            raise UserError(f"{need}: use fewer, or the protocol 'proportional'.")
    return np.full(len(have), per_class)


def _proportional(total: int, have: np.ndarray, what: str) -> np.ndarray:
    """Returns the number of examples of each class, taken one by one from the class furthest below its share."""
    if total > have.sum():
        raise UserError(f'{total} {what} were asked for, but only {have.sum()} labeled examples are left.')
    share = have / max(have.max(), 1)
    take = np.zeros_like(have)
    for _ in range(total):
        lack = np.where(take < have, share - take / max(take.max(), 1), -np.inf)
        take[np.argmax(lack)] += 1
    return take


def _split(labeled: np.ndarray, validation: np.ndarray, size: int) -> Split:
    unlabeled = np.setdiff1d(np.arange(size), validation)
    return Split(np.sort(labeled), unlabeled, np.sort(validation))


def _fingerprint(split: Split, images: np.ndarray) -> str:
    chosen = images[np.concatenate([split.labeled, split.validation])]
    return hashlib.sha256(chosen.tobytes()).hexdigest()
