"""Statistics of pseudo-labels for the log, and warnings of the usual failures of training."""

from collections.abc import Iterable, Mapping

import numpy as np
from absl import logging

from methods.base import View
from models.pretrained import Weights

_STRETCH = 0.1  # fraction of all steps that a failure has to last for a warning
_NEARLY_ALL = 0.9  # share of pseudo-labels
_CHANCE = 0.3  # accuracy of predicting four rotations; guessing has 0.25
_GAP = 0.2  # between the accuracy on labeled images in training and in evaluation
_NO_SPREAD = 0.1  # standard deviation of embeddings; 1 if they are spread over the sphere


def describe_histogram(counts: np.ndarray) -> dict[str, float | None]:
    """Describes the pseudo-labels that were used.

    Args:
        counts: Number of pseudo-labels of each class, `[C]`.

    Returns:
        A dict, with values of None if there are no pseudo-labels:
        - 'entropy': Entropy of the class frequencies, in nats: 0 for a single class, log C for equal frequencies.
        - 'top_class': The most frequent class.
        - 'top_class_share': Its share.
    """
    if not counts.sum() > 0:
        return dict.fromkeys(('entropy', 'top_class', 'top_class_share'))
    p = counts / counts.sum()
    entropy = abs(float(np.sum(p[p > 0] * np.log(p[p > 0]))))
    return {'entropy': entropy, 'top_class': int(p.argmax()), 'top_class_share': float(p.max())}


class Watch:
    """Follows the logged rows of a run and warns if a method stops learning, once for each such period."""

    def __init__(self, steps: int, silent_steps: Mapping[str, int] | None = None):
        """Begins to follow a run.

        Args:
            steps: Number of steps of the run.
            silent_steps: {method: step up to which a loss of exactly 0 is expected}.
        """
        self._silent_steps = silent_steps or {}
        self._stretch = max(1, round(_STRETCH * steps))
        self._since: dict[str, int] = {}  # {failure: step at which it began}
        self._warned: set[str] = set()
        self._accuracy: float | None = None  # on labeled images in training, over the newest steps

    def row(self, step: int, row: Mapping[str, float | None]) -> None:
        """Checks a row of training metrics, means over the steps since the row before, or of scores."""
        if self._accuracy is not None and (evaluated := row.get('labeled_accuracy')) is not None:
            message = _RUNNING.format(training=self._accuracy, evaluation=evaluated)
            self._check('running', self._accuracy - evaluated > _GAP, step, message, stretch=1)
        for key, value in row.items():
            method, _, name = key.partition('/')
            if name == 'accuracy':
                self._accuracy = value
            elif name == 'loss' and step > self._silent_steps.get(method, 0):
                self._check(f'{method}/loss', value == 0, step, _ZERO.format(method=method))
            elif name == 'pseudo_label_top_class_share':
                top = row[f'{method}/pseudo_label_top_class']
                collapsed = value is not None and value >= _NEARLY_ALL
                self._check(f'{method}/collapse', collapsed, step, _COLLAPSE.format(method=method, top=top))
            elif name == 'rotation_accuracy':
                self._check(key, value is not None and value < _CHANCE, step, _ROTATION.format(method=method))
            elif name == 'embedding_std':
                self._check(key, value is not None and value < _NO_SPREAD, step, _EMBEDDING.format(method=method))

    def _check(self, what: str, wrong: bool, step: int, message: str, stretch: int | None = None) -> None:
        if not wrong:
            self._since.pop(what, None)
            self._warned.discard(what)
            return
        began = self._since.setdefault(what, step)
        if step - began >= (stretch or self._stretch) and what not in self._warned:
            self._warned.add(what)
            logging.warning('Steps %d to %d: %s', began, step, message)


_RUNNING = (
    '{training:.0%} of the labeled images are classified right with the statistics of a batch, as in training, and '
    '{evaluation:.0%} with the running statistics, as in evaluation. They do not fit: let them follow faster (a '
    "smaller model.bn_momentum), keep strong views out of them (statistics='separate' of a method), use a larger "
    'batch_size, or keep those of the pretrained network (model.frozen_statistics=True).'
)
_ZERO = (
    '{method}/loss was exactly 0: {method} contributes no gradient. If {method}/mask_rate is 0, no pseudo-label is '
    'confident enough: lower the threshold (--config.methods.{method}.threshold, where there is one) or train longer; '
    'otherwise check that the unlabeled images differ between views (data.weak, data.strong).'
)
_COLLAPSE = (
    'nearly all pseudo-labels of {method} were class {top}. Unless the unlabeled images are like that, try a lower '
    'optimizer.learning_rate, more steps or labels, or a method with distribution alignment '
    '(a setting of some methods, a part of others); in domain adaptation a smaller weight of its loss.'
)
_ROTATION = (
    '{method} guessed the rotation of images no better than by chance. Either they look the same from all sides '
    '(textures, microscopy, aerial pictures: rotation prediction cannot work there), an augmentation hides it '
    '(data.weak.vertical_flip), or the learning rate is wrong.'
)
_EMBEDDING = (
    'the embeddings of {method} have nearly no spread: they have collapsed, and its loss is no longer meaningful. '
    'Try a lower optimizer.learning_rate or a larger batch (data.unlabeled_ratio).'
)


def check_statistics(frozen: bool, weights: Weights | None) -> None:
    """Warns of running statistics that are kept and that nothing has ever set."""
    if frozen and weights is None:
        logging.warning(
            'model.frozen_statistics=True keeps the running statistics of random weights, mean 0 and variance 1: set '
            'it to False, or model.pretrained to weights.'
        )


def check_micro_batches(number: int, apart: list[str]) -> None:
    """Warns of what sees a part of the batch only."""
    if apart:
        logging.warning(
            'micro_batches=%d: only a part of the batch at a time is seen by %s.', number, ' and '.join(apart)
        )


def check_views(views: Iterable[View], vertical_flip: bool) -> None:
    """Warns of an augmentation with which rotations cannot be told apart."""
    if vertical_flip and any(view.augmentation == 'rotated' for view in views):
        logging.warning(
            'data.weak.vertical_flip turns images over, which with a mirror image is a rotation by 180 degrees: '
            'rotations cannot be told apart. Set it to False.'
        )
