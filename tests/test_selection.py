"""Choosing a step without labels of the target, and what features are worth, against NumPy, SciPy and scikit-learn."""

import itertools
import types

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from errors import UserError
from train import evaluation, selection, transfer
from train.settings import Transfer

RULES = ('validation', 'entropy', 'information', 'iwcv', 'dev')


def rng(seed=0):
    return np.random.default_rng(seed)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Density ratio and distance of domains


@pytest.mark.parametrize(('n', 'm'), [(4000, 4000), (6000, 2000)])
def test_the_density_ratio_of_two_gaussians(n, m):
    """Source N(0, I) and target N((1, 0), I): the ratio is exp(x_0 - 1/2), whatever the sample sizes."""
    source, target = rng(0).standard_normal((n, 2)), rng(1).normal([1, 0], 1, (m, 2))
    query = rng(2).standard_normal((500, 2))
    weights, _ = selection.density_ratio(source, target, query)
    truth = np.exp(query[:, 0] - 0.5)
    assert weights.shape == (500,)
    assert stats.spearmanr(weights, truth)[0] > 0.99
    assert np.abs(np.log(weights / truth)).max() < 0.35
    assert weights.mean() == pytest.approx(1, abs=0.1)  # as over the source it must be


def test_the_density_ratio_does_not_change_with_the_scale_of_the_features():
    source, target, query = (rng(seed).standard_normal((300, 3)) + shift for seed, shift in ((0, 0), (1, 0.5), (2, 0)))
    usual, distance = selection.density_ratio(source, target, query)
    change = [100.0, 1e-3, 7.0]
    scaled, same = selection.density_ratio(*(x * change + 5 for x in (source, target, query)))
    np.testing.assert_allclose(scaled, usual, rtol=1e-3)
    assert same == pytest.approx(distance, abs=0.02)


def test_the_distance_is_two_between_domains_apart_and_zero_between_equal_ones():
    a, b = rng(0).standard_normal((1000, 4)), rng(1).standard_normal((1000, 4))
    assert selection.density_ratio(a, b + 10, None)[1] == pytest.approx(2, abs=0.01)
    assert selection.density_ratio(a, b, None)[1] == pytest.approx(0, abs=0.25)
    # Of equal images the best guess is right half of the time; of N(0) and N(2) with probability Phi(1).
    middle = selection.density_ratio(a, b + np.float64([2, 0, 0, 0]), None)
    assert middle[1] == pytest.approx(2 * (2 * stats.norm.cdf(1) - 1), abs=0.1)
    assert middle[0] is None


def test_the_distance_is_of_images_that_were_not_learned_from():
    """Features of so many dimensions that any 60 of them can be told apart, by chance alone."""
    a, b = rng(0).standard_normal((60, 200)), rng(1).standard_normal((60, 200))
    assert abs(selection.density_ratio(a, b, None)[1]) < 1


def test_domains_far_apart_have_finite_weights():
    a, b = rng(0).standard_normal((200, 3)), rng(1).standard_normal((200, 3)) + 50
    for query in (a, b, b + 1e4):
        assert np.isfinite(selection.density_ratio(a, b, query)[0]).all()


# Scores


def saved_arrays(seed, classes=4, n=60, shift=0.7):
    """Features and logits of an evaluation, as they are saved, and the classes of the held-out source images."""
    random = rng(seed)
    parts = {}
    for part, offset in (('source', 0), ('target', shift), ('validation', 0)):
        parts[f'{part}_features'] = random.standard_normal((n, 5)) + offset
        parts[f'{part}_logits'] = 2 * random.standard_normal((n, classes))
    return parts, random.integers(0, classes, n)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_scores_against_their_definitions(seed):
    arrays, labels = saved_arrays(seed)
    values, distance = selection.scores(arrays, labels)
    assert set(values) == set(RULES)
    p = softmax(arrays['target_logits'])
    conditional = stats.entropy(p, axis=1).mean()
    assert values['entropy'] == pytest.approx(-conditional)
    assert values['information'] == pytest.approx(stats.entropy(p.mean(0)) - conditional)
    wrong = arrays['validation_logits'].argmax(1) != labels
    assert values['validation'] == pytest.approx(1 - wrong.mean())
    parts = [arrays[f'{part}_features'] for part in ('source', 'target', 'validation')]
    weights, expected_distance = selection.density_ratio(*parts)
    assert distance == expected_distance
    weighted = [w * e for w, e in zip(weights, wrong, strict=True)]
    assert values['iwcv'] == pytest.approx(-np.mean(weighted))
    # You et al. 2019, algorithm 1: eta = -Cov(L, W) / Var(W); R = mean(L) + eta mean(W) - eta.
    n = len(weights)
    covariance = sum((w - weights.mean()) * (x - np.mean(weighted)) for w, x in zip(weights, weighted, strict=True))
    variance = sum((w - weights.mean()) ** 2 for w in weights)
    eta = -(covariance / (n - 1)) / (variance / (n - 1))
    assert values['dev'] == pytest.approx(-(np.mean(weighted) + eta * weights.mean() - eta))
    assert values['dev'] != pytest.approx(values['iwcv'])


@pytest.mark.parametrize('constant', [1.0, 1.3])
def test_dev_is_iwcv_where_all_weights_are_the_same(monkeypatch, constant):
    arrays, labels = saved_arrays(3)
    monkeypatch.setattr(selection, 'density_ratio', lambda *_: (np.full(60, constant), 0.0))
    values, _ = selection.scores(arrays, labels)
    assert values['dev'] == pytest.approx(values['iwcv'])
    assert values['iwcv'] == pytest.approx(constant * (values['validation'] - 1))


def test_dev_is_the_error_where_all_are_wrong():
    """Where every image is wrong the weighted loss is the weight, whose mean is known to be one."""
    arrays, _ = saved_arrays(4)
    labels = (arrays['validation_logits'].argmax(1) + 1) % 4
    values, _ = selection.scores(arrays, labels)
    assert values['validation'] == 0
    assert values['dev'] == pytest.approx(-1)


def test_dev_varies_less_than_iwcv():
    """The control variate does what it is for: over many draws both have one mean and dev the smaller variance."""
    draws = []
    for seed in range(40):
        random = rng(seed)
        source, target, query = (random.standard_normal((200, 1)) + shift for shift in (0, 1, 0))
        logits = np.zeros((200, 4))
        logits[np.arange(200), random.integers(0, 2, 200)] = 1  # wrong half of the time
        arrays = dict(
            zip((f'{p}_features' for p in ('source', 'target', 'validation')), (source, target, query), strict=True)
        )
        arrays |= {'target_logits': random.standard_normal((200, 4)), 'validation_logits': logits}
        values, _ = selection.scores(arrays, np.zeros(200, int))
        draws.append([values['iwcv'], values['dev']])
    iwcv, dev = np.array(draws).T
    assert dev.std() < 0.8 * iwcv.std()
    assert dev.mean() == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize(
    ('counts', 'expected'),
    [
        ([40, 0, 0, 0], True),
        ([39, 1, 0, 0], True),
        ([20, 20, 0, 0], False),  # exactly two of four classes
        ([21, 19, 0, 0], True),
        ([10, 10, 10, 10], False),
        ([37, 1, 1, 1], True),  # all four, but hardly
        ([25, 5, 5, 5], False),
    ],
)
def test_predictions_have_collapsed_where_fewer_than_half_of_the_classes_are_left(counts, expected):
    classes = np.repeat(np.arange(4), counts)
    assert expected == (np.exp(stats.entropy(np.array(counts) / 40)) < 2 - 1e-9)
    assert selection.collapsed(np.eye(4)[classes]) == expected


# Choosing


def saved(folder, evaluations):
    """Saves evaluations as a run does, and returns the rows of its log."""
    rows = []
    for i, (arrays, accuracy) in enumerate(evaluations):
        features, logits = (
            {key.partition('_')[0]: np.float32(x) for key, x in arrays.items() if key.endswith(kind)}
            for kind in ('features', 'logits')
        )
        selection.save(folder / 'features', 10 * i, features, logits)
        rows.append({'step': 10 * i, 'test_accuracy': accuracy})
    return rows


def test_what_is_saved_is_what_was_seen(tmp_path):
    arrays, _ = saved_arrays(0)
    saved(tmp_path, [(arrays, 0.5)])
    assert [path.name for path in (tmp_path / 'features').iterdir()] == ['0.npz']
    with np.load(tmp_path / 'features/0.npz') as file:
        assert set(file) == set(arrays)
        for name, x in arrays.items():
            np.testing.assert_allclose(file[name], x, rtol=1e-3 if name.endswith('features') else 1e-6, atol=1e-4)


def test_the_step_with_the_best_score_is_chosen(tmp_path):
    evaluations, labels = [], saved_arrays(0)[1]
    for seed in range(6):
        arrays, _ = saved_arrays(seed)
        evaluations.append((arrays, round(0.1 * seed + 0.05, 2)))
    rows = saved(tmp_path, evaluations)
    chosen = selection.choose(tmp_path / 'features', rows, labels)
    assert set(chosen) == set(RULES)
    every = []
    for arrays, _ in evaluations:
        kept = {k: np.float64(np.float16(x) if k.endswith('features') else np.float32(x)) for k, x in arrays.items()}
        every.append(selection.scores(kept, labels))
    for rule in RULES:
        best = int(np.argmax([values[rule] for values, _ in every]))
        assert chosen[rule]['step'] == 10 * best
        assert chosen[rule]['test_accuracy'] == evaluations[best][1]
        assert chosen[rule]['score'] == pytest.approx(every[best][0][rule])
        assert chosen[rule]['a_distance'] == pytest.approx(every[best][1])
        assert chosen[rule]['test_accuracy'] <= max(row['test_accuracy'] for row in rows)
    assert len({result['step'] for result in chosen.values()}) > 1
    # The test accuracies choose nothing.
    other = [{**row, 'test_accuracy': 1 - row['test_accuracy']} for row in rows]
    for rule, result in selection.choose(tmp_path / 'features', other, labels).items():
        assert result['step'] == chosen[rule]['step']


def test_a_collapsed_evaluation_is_never_chosen(tmp_path):
    """One class for everything, with certainty: the least entropy, and the best validation accuracy."""
    arrays, labels = saved_arrays(0)
    worse, _ = saved_arrays(1)
    for part in ('target', 'validation'):
        arrays[f'{part}_logits'] = 100 * np.eye(4)[np.zeros(60, int) if part == 'target' else labels]
    assert selection.scores(arrays, labels)[0]['entropy'] > selection.scores(worse, labels)[0]['entropy']
    rows = saved(tmp_path, [(worse, 0.1), (arrays, 0.9), (saved_arrays(2)[0], 0.2)])
    for result in selection.choose(tmp_path / 'features', rows, labels).values():
        assert result['step'] in (0, 20)
    nothing = selection.choose(tmp_path / 'features', rows[1:2], labels)
    assert set(nothing) == set(RULES)
    assert all(
        set(result.values()) == {None} and set(result) == {'step', 'score', 'test_accuracy', 'a_distance'}
        for result in nothing.values()
    )


def test_without_source_images_held_out_only_rules_of_the_target_are_left(tmp_path):
    def without(arrays):
        return {key: x for key, x in arrays.items() if not key.startswith('validation')}

    rows = saved(tmp_path, [(without(saved_arrays(seed)[0]), 0.5) for seed in range(3)])
    for some in (rows, rows[:1]):
        assert set(selection.choose(tmp_path / 'features', some, None)) == {'entropy', 'information'}
    values, distance = selection.scores(without(saved_arrays(0)[0]), None)
    assert set(values) == {'entropy', 'information'}
    assert -2 <= distance <= 2


def test_features_are_saved_of_training_images_and_held_out_source_images_only():
    images = rng().integers(0, 256, (3000, 2, 2, 1)).astype(np.uint8)
    streams = types.SimpleNamespace(
        images=images,
        indices={'labeled': np.arange(0, 1200), 'unlabeled': np.arange(1500, 3000)},
        held_out={'test': (images[:5], np.zeros(5)), 'validation': (images[1300:1310], np.zeros(10))},
    )
    arrays = selection.images(streams)
    assert set(arrays) == {'source', 'target', 'validation'}
    np.testing.assert_array_equal(arrays['source'], images[:1000])
    np.testing.assert_array_equal(arrays['target'], images[1500:2500])
    np.testing.assert_array_equal(arrays['validation'], images[1300:1310])
    del streams.held_out['validation']
    assert set(selection.images(streams)) == {'source', 'target'}


# What features are worth


def labelled(seed, n, classes=4, spread=1.0):
    random = rng(seed)
    y = random.integers(0, classes, n)
    centres = rng(99).standard_normal((classes, 6)) * [3, 1, 1, 0.3, 1, 1]
    return centres[y] + spread * random.standard_normal((n, 6)), y


def vote(train, test, k, temperature, metric, standardize):
    """Accuracy of a vote of the k nearest, by hand."""
    (x, y), (test_x, test_y) = train, test
    if standardize:
        mean, std = x.mean(0), x.std(0)
        x, test_x = (x - mean) / std, (test_x - mean) / std
    right = 0
    for features, label in zip(test_x, test_y, strict=True):
        if metric == 'cosine':
            distance = 1 - x @ features / np.linalg.norm(x, axis=1) / np.linalg.norm(features)
        else:
            distance = np.linalg.norm(x - features, axis=1)
        votes = np.zeros(y.max() + 1)
        for i in np.argsort(distance, kind='stable')[:k]:
            votes[y[i]] += np.exp(-distance[i] / temperature) if temperature else 1
        right += votes.argmax() == label
    return right / len(test_y)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('temperature', [0.0, 0.07, 0.5])
@pytest.mark.parametrize('standardize', [False, True])
@pytest.mark.parametrize('k', [1, 7, 500])
def test_nearest_neighbours_by_hand(metric, temperature, standardize, k):
    train, test = labelled(0, 60, spread=2.0), labelled(1, 150, spread=2.0)
    train = train[0] + 1, train[1]
    test = test[0] + 1, test[1]
    chosen = Transfer(k=k, temperature=temperature, metric=metric, standardize=standardize)
    assert evaluation.neighbours(chosen, train, test) == pytest.approx(
        vote(train, test, k, temperature, metric, standardize)
    )


def test_the_settings_of_the_neighbours_make_a_difference():
    train, test = labelled(0, 60, spread=2.0), labelled(1, 150, spread=2.0)
    train, test = ((x + 1, y) for x, y in (train, test))
    settings = itertools.product([1, 7, 500], [0.0, 0.5], ['cosine', 'euclidean'], [False, True])
    assert len({round(vote(train, test, *chosen), 4) for chosen in settings}) > 10


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_neighbours_far_away_still_vote(metric):
    """At a small temperature exp(-distance / temperature) is zero for all; the nearest decides."""
    train = np.float64([[1, 0], [0, 1]]) * 1000, np.array([0, 1])
    test = np.float64([[1, 2], [2, 1]]), np.array([1, 0])
    assert evaluation.neighbours(Transfer(k=2, temperature=1e-6, metric=metric), train, test) == 1


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'metric': 'cosin'}, "Unknown transfer.metric 'cosin'. Did you mean 'cosine'"),
        ({'k': 0}, 'transfer.k must be at least 1'),
        ({'temperature': -0.1}, 'temperature'),
    ],
)
def test_impossible_neighbours_are_an_error(fields, message):
    with pytest.raises(UserError, match=message):
        Transfer(**fields)


def test_the_linear_probe_is_logistic_regression_on_standardised_features():
    train, test = labelled(2, 80, spread=2.0), labelled(3, 200, spread=2.0)
    scale = [1e3, 1, 1e-3, 1, 10, 1]
    train, test = ((x * scale + 7, y) for x, y in (train, test))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(*train)
    expected = pipeline.score(*test)
    assert transfer.linear_probe(train, test) == pytest.approx(expected)
    assert 0.4 < expected < 0.95
    assert transfer.linear_probe(train, train) == pytest.approx(pipeline.score(*train))


def test_the_table_has_a_line_for_each_number_of_labels_and_start():
    rows = [
        {'labels': 50, 'start': 'random', 'neighbours': 0.5, 'linear_probe': 0.61234, 'finetune': 1.0},
        {'labels': 1297, 'start': 'pretrained', 'neighbours': 0.75, 'linear_probe': 0.8, 'finetune': 0.9},
    ]
    head, *lines = transfer.table(rows).splitlines()
    assert [line.split() for line in lines] == [
        ['50', 'random', '50.00', '61.23', '100.00'],
        ['1297', 'pretrained', '75.00', '80.00', '90.00'],
    ]
    for name in ('labels', 'start', 'neighbours', 'linear probe', 'fine-tuning'):
        assert name in head
    # Columns end where their names do.
    for name, text in (('neighbours', '50.00'), ('linear probe', '61.23'), ('fine-tuning', '100.00')):
        assert head.index(name) + len(name) == lines[0].index(text) + len(text)


def test_features_beyond_half_precision_can_be_saved_and_chosen_from(tmp_path):
    rng = np.random.default_rng(0)
    features = {part: 1e6 * rng.standard_normal((40, 3)) for part in ('source', 'target', 'validation')}
    logits = {part: np.eye(4)[np.arange(40) % 4] for part in features}
    selection.save(tmp_path / 'features', 5, features, logits)
    chosen = selection.choose(tmp_path / 'features', [{'step': 5, 'test_accuracy': 0.5}], np.arange(40) % 4)
    assert {choice['step'] for choice in chosen.values()} == {5}
