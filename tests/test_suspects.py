"""What looks wrong to a network: nearly equal pictures, and labels that are mistakes."""

import numpy as np
from PIL import Image
from skimage import data as photographs

from deploy import suspects


def test_a_cropped_and_compressed_copy_is_near_and_other_photographs_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(suspects, 'BATCH', 8)
    paths = []
    for name in ('chelsea', 'rocket', 'coffee', 'astronaut'):
        picture = Image.fromarray(getattr(photographs, name)())
        width, height = picture.size
        picture.save(tmp_path / f'{name}.png')
        picture.crop((width // 20, 0, width, height * 19 // 20)).save(tmp_path / f'{name}.jpg', quality=60)
        paths += [f'{name}.png', f'{name}.jpg']
    features = suspects.features(tmp_path, paths)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert suspects.near_pairs(features).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_near_pairs_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 3))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    expected = [[i, j] for i in range(600) for j in range(i + 1, 600) if features[i] @ features[j] >= suspects.NEAR]
    assert suspects.near_pairs(features).tolist() == expected
    assert suspects.near_pairs(features[:0]).tolist() == []


def test_wrong_labels_are_those_of_cleanlab():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 200)
    labels = true.copy()
    changed = rng.choice(200, 30, replace=False)
    labels[changed] = rng.integers(0, 4, 30)
    probabilities = rng.dirichlet(np.ones(4), 200) * 0.6 + 0.4 * np.eye(4)[true]
    # cleanlab 2.9.0: find_label_issues(labels, probabilities, filter_by='confident_learning')
    expected = [3, 5, 24, 27, 29, 35, 40, 61, 139, 140, 151, 153, 156]
    found, guesses = map(np.array, zip(*suspects.mislabeled(probabilities, labels), strict=True))
    assert sorted(found.tolist()) == expected
    assert (guesses != labels[found]).all()
    own = probabilities[found, labels[found]]
    assert (np.diff(own) >= 0).all()  # the most suspicious first


def test_planted_errors_are_found_out_of_sample():
    rng = np.random.default_rng(1)
    true = np.arange(120) % 3
    features = rng.normal(size=(120, 10)) + 2 * np.eye(3, 10)[true]
    planted = rng.choice(120, 8, replace=False)
    labels = true.copy()
    labels[planted] = (labels[planted] + 1) % 3
    probabilities = suspects.out_of_sample(features, labels, 4)  # a class without images, too
    assert np.allclose(probabilities.sum(1), 1)
    assert (probabilities[:, 3] == 0).all()
    found = suspects.mislabeled(probabilities, labels)
    right = [(i, true[i]) for i in planted]
    assert len(set(found) & set(right)) >= 6
    assert len(found) <= 16


def test_classes_of_one_image_are_not_suspected():
    features = np.random.default_rng(0).normal(size=(6, 4))
    for labels in ([0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 2, 3]):
        labels = np.array(labels)
        single = np.flatnonzero(np.bincount(labels)[labels] == 1)
        found = suspects.mislabeled(suspects.out_of_sample(features, labels, 6), labels)
        assert not {i for i, _ in found} & set(single)
