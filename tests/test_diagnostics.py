"""What the log says of pseudo-labels, and when it warns."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from methods.base import LABELED, ROTATED, STRONG
from models import pretrained
from train import diagnostics
from train import run as run_lib


def test_histogram_is_described_by_entropy_and_largest_class():
    counts = np.array([1.0, 0.0, 6.5, 2.5])
    described = diagnostics.describe_histogram(counts)
    assert described['entropy'] == pytest.approx(scipy.stats.entropy(counts))
    assert (described['top_class'], described['top_class_share']) == (2, pytest.approx(0.65))
    assert diagnostics.describe_histogram(np.full(10, 3.0))['entropy'] == pytest.approx(np.log(10))
    assert diagnostics.describe_histogram(np.array([0.0, 5.0]))['entropy'] == 0
    assert set(diagnostics.describe_histogram(np.zeros(3)).values()) == {None}


def follow(rows, caplog, **options):
    """Returns the warnings about rows of a run of 100 steps, one row every two steps."""
    watch = diagnostics.Watch(100, **options)
    for i, row in enumerate(rows):
        watch.row(2 * i + 2, row)
    return [record.getMessage() for record in caplog.records]


def loss(value):
    return {'loss': 1.0, 'supervised/loss': 1.0, 'uda/loss': value, 'learning_rate': 0.0}


def labels(share, top=3):
    return {'uda/loss': 1.0, 'uda/pseudo_label_top_class_share': share, 'uda/pseudo_label_top_class': top}


def test_a_loss_of_exactly_zero_for_a_tenth_of_training_is_reported_once(caplog):
    (message,) = follow([loss(0.3), *[loss(0.0)] * 20], caplog)
    assert 'Steps 4 to 14: uda/loss was exactly 0' in message
    assert 'methods.uda.threshold' in message


def test_shorter_stretches_and_small_losses_are_not_reported(caplog):
    stretch = [loss(0.0)] * 5 + [loss(1e-8)]
    assert not follow(stretch * 4, caplog)


def test_a_second_stretch_is_reported_again(caplog):
    stretch = [loss(0.0)] * 8 + [loss(0.1)]
    assert len(follow(stretch * 2, caplog)) == 2


def test_a_loss_that_begins_later_by_design_is_not_reported_before(caplog):
    assert not follow([loss(0.0)] * 20, caplog, silent_steps={'uda': 40})
    assert len(follow([loss(0.0)] * 40, caplog, silent_steps={'uda': 40})) == 1


def test_one_class_with_nearly_all_pseudo_labels_is_reported_with_what_to_try(caplog):
    (message,) = follow([labels(0.95)] * 10, caplog)
    assert 'nearly all pseudo-labels of uda were class 3' in message
    assert 'optimizer.learning_rate' in message


def test_many_of_a_class_or_none_at_all_are_no_collapse(caplog):
    assert not follow([labels(0.6)] * 20 + [labels(None, None)] * 20, caplog)


def test_a_run_logs_and_warns_of_pseudo_labels(make_settings, data_dir, tmp_path, caplog):
    """Of one method that uses no pseudo-label, and of one that uses all."""
    settings = make_settings('fixmatch', steps=4)
    methods = {'supervised': {}, 'fixmatch': {'threshold': 1.0}, 'pseudo_label': {'threshold': 0.0}}
    run_lib.run(dataclasses.replace(settings, methods=methods), tmp_path / 'run', data_dir)
    assert caplog.text.count('fixmatch/loss was exactly 0') == 1
    assert 'pseudo_label/loss was exactly 0' not in caplog.text
    rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    rows = [row for row in rows if 'fixmatch/loss' in row]
    assert len(rows) == 2
    for row in rows:
        assert row['fixmatch/mask_rate'] == row['fixmatch/loss'] == 0
        assert row['fixmatch/pseudo_label_accuracy'] is row['fixmatch/pseudo_label_entropy'] is None
        assert 0 <= row['fixmatch/pseudo_label_accuracy_all'] <= 1
        assert row['pseudo_label/mask_rate'] == 1
        assert row['pseudo_label/pseudo_label_accuracy'] == row['pseudo_label/pseudo_label_accuracy_all']
        assert 0 <= row['pseudo_label/pseudo_label_entropy'] <= np.log(10) + 1e-6
        assert 0.1 <= row['pseudo_label/pseudo_label_top_class_share'] <= 1


@pytest.mark.parametrize(
    ('name', 'wrong', 'right', 'text'),
    [
        ('rotation_accuracy', 0.26, 0.6, 'no better than by chance'),
        ('embedding_std', 0.02, 0.9, 'they have collapsed'),
    ],
)
def test_a_pretext_task_that_teaches_nothing_is_reported(name, wrong, right, text, caplog):
    (message,) = follow([{f's4l/{name}': right}, *[{f's4l/{name}': wrong}] * 20], caplog)
    assert text in message
    assert 's4l' in message
    caplog.clear()
    assert not follow([{f's4l/{name}': right}] * 30, caplog)


def test_running_statistics_that_do_not_fit_are_reported_after_two_evaluations(caplog):
    trained, fits, does_not = {'supervised/accuracy': 0.9}, {'labeled_accuracy': 0.72}, {'labeled_accuracy': 0.68}
    assert not follow([does_not, trained, does_not, trained, fits, trained, does_not], caplog)
    (message,) = follow([trained, does_not, trained, does_not, does_not], caplog)
    assert 'Steps 4 to 8: 90% of the labeled images' in message
    assert '68% with the running statistics' in message
    assert 'model.bn_momentum' in message


def test_a_run_with_running_statistics_that_hardly_move_says_so(make_settings, data_dir, tmp_path, caplog):
    """Labels learned by heart in training, and statistics that are still those of the start."""
    settings = make_settings('supervised', steps=60, eval_steps=10, checkpoint_steps=60, log_steps=10)
    model = {**settings.model, 'bn_momentum': 0.9999}
    run_lib.run(dataclasses.replace(settings, model=model), tmp_path / 'run', data_dir)
    assert caplog.text.count('running statistics') == 1
    rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert all(0 <= row['labeled_accuracy'] <= 1 for row in rows if 'test_accuracy' in row)


def test_running_statistics_that_nothing_has_set_are_reported(caplog):
    diagnostics.check_statistics(False, None)
    diagnostics.check_statistics(True, pretrained.Weights({}, 'own', {}, {}))
    assert not caplog.records
    diagnostics.check_statistics(True, None)
    assert 'model.pretrained' in caplog.text


def test_a_flip_that_hides_rotations_is_reported(caplog):
    diagnostics.check_views([LABELED, ROTATED], vertical_flip=False)
    diagnostics.check_views([LABELED, STRONG], vertical_flip=True)
    assert not caplog.records
    diagnostics.check_views([ROTATED], vertical_flip=True)
    assert 'vertical_flip' in caplog.records[0].getMessage()
