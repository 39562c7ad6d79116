"""What is done with a finished run: predictions, a report, and exported models that are the same as in JAX."""

import asyncio
import base64
import csv
import dataclasses
import html
import html.parser
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from drawn import pixels, write
from PIL import Image
from scipy import stats
from sklearn import metrics

import deploy
import models
from data import datasets
from data.pictures import rules
from data.pictures.folder import Entry
from deploy import auto, calibration, check, export, finished, predict, report, serve, suspects
from train import run, settings

EVIL = '<img src=x onerror=alert(1)>'


@pytest.fixture(scope='module')
def trained(tmp_path_factory, make_settings):
    """Returns the folders of pictures of three classes, one of them of an evil name, and of a finished run on them."""
    root = tmp_path_factory.mktemp('deploy')
    os.environ['TFDS_DATA_DIR'], before = str(root / 'prepared'), os.environ.get('TFDS_DATA_DIR')
    colours = {'red': (200, 40, 40), 'blue': (40, 40, 200), EVIL: (40, 180, 40)}
    for c, (name, colour) in enumerate(colours.items()):
        for i in range(12):
            (root / 'photos' / name).mkdir(parents=True, exist_ok=True)
            noise = pixels(100 * c + i).astype(float) - 128
            image = np.clip(np.array(colour) + 0.7 * noise, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / 'photos' / name / f'{i}.png')
    for i in range(3):
        write(root / 'photos' / 'unlabeled' / f'{i}.png', 1000 + i)
    sizes = {'data.image_size': 16, 'data.weak.pad': 2, 'data.strong.translate': 2, 'data.strong.cutout': 4}
    settings = make_settings('fixmatch', f'{root}/photos/', **sizes)
    run.run(settings, root / 'run')
    yield root / 'photos', root / 'run'
    if before is None:
        del os.environ['TFDS_DATA_DIR']
    else:
        os.environ['TFDS_DATA_DIR'] = before


@pytest.fixture(scope='module')
def loaded(trained):
    return finished.load(str(trained[1]))


# --- Predictions


def test_predictions_are_those_of_the_runs_own_evaluation(trained, loaded):
    photos, _ = trained
    arrays = datasets.load(f'{photos}/', 'test', size=16)
    rows = list(predict.rows(loaded, [photos / file for file in arrays.files]))
    names = [arrays.class_names[label] for label in arrays.labels]
    right = np.mean([row['label'] == name for row, name in zip(rows, names, strict=True)])
    assert right == loaded.result['test_accuracy']['last']
    for row in rows:
        assert row['probability'] + row['probability_2'] + row['probability_3'] == pytest.approx(1)
        assert row['probability'] >= row['probability_2'] >= row['probability_3']
        assert {row['label'], row['label_2'], row['label_3']} == set(arrays.class_names)


def test_a_prediction_depends_on_no_other_picture(trained, loaded):
    photos, _ = trained
    paths = sorted(photos.rglob('*.png'))
    expected = {row['file']: row for row in predict.rows(loaded, paths)}
    assert len(expected) == 39
    shuffled = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
    for order, at_once in ((paths[::-1], 100), (shuffled, 7), (shuffled[:5], 1)):
        rows = list(predict.rows(loaded, order, at_once=at_once))
        assert rows == [expected[str(path)] for path in order]  # bitwise


def test_a_damaged_picture_is_a_row_with_its_error(trained, loaded, tmp_path):
    photos, folder = trained
    shutil.copytree(photos / 'red', tmp_path / 'new')
    (tmp_path / 'new' / '1.png').write_bytes((photos / 'red' / '1.png').read_bytes()[:100])
    (tmp_path / 'new' / 'page.jpg').write_text(EVIL)
    (tmp_path / 'new' / 'notes.txt').write_text('no picture')
    assert predict.main([str(folder), str(tmp_path / 'new'), f'--out={tmp_path}/out.csv']) == 0
    with open(tmp_path / 'out.csv', newline='') as file:
        rows = {pathlib.Path(row['file']).name: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted([*(f'{i}.png' for i in range(12)), 'page.jpg'])
    errors = {name for name, row in rows.items() if row['error']}
    assert errors == {'1.png', 'page.jpg'}
    assert all(bool(row['label']) != bool(row['error']) for row in rows.values())
    assert predict.main([str(folder), str(tmp_path / 'new' / 'page.jpg')]) == 1  # none can be read


def test_a_table_of_paths_is_read_and_may_not_lead_out(trained, tmp_path, capsys):
    photos, folder = trained
    (photos / 'list.csv').write_text('file;note\nred/0.png;x\nblue/none.png;y\n')
    assert predict.main([str(folder), str(photos / 'list.csv'), f'--out={tmp_path}/out.jsonl', '--top=1']) == 0
    first, second = map(json.loads, (tmp_path / 'out.jsonl').read_text().splitlines())
    assert (first['file'], 'label_2' in first, first['error']) == (str(photos / 'red/0.png'), False, '')
    assert 'No such file' in second['error']
    (photos / 'list.csv').write_text('file\n../secret.png\n')
    assert predict.main([str(folder), str(photos / 'list.csv')]) == 1
    assert 'lead out of its folder' in capsys.readouterr().err
    (photos / 'list.csv').unlink()


def test_doubts_follow_the_risk_and_the_distance(trained, loaded):
    photos, _ = trained
    arrays = datasets.load(f'{photos}/', 'test', size=16)
    doubts = predict.Doubts.learn(loaded, 0.0)
    rows = list(predict.rows(loaded, [photos / file for file in arrays.files], doubts=doubts))
    names = [arrays.class_names[label] for label in arrays.labels]
    right = [row['label'] == name for row, name in zip(rows, names, strict=True)]
    accepted = [ok for ok, row in zip(right, rows, strict=True) if not row['abstain']]
    best = max(zip(rows, right, strict=True), key=lambda pair: pair[0]['probability'])[1]
    assert bool(accepted) == best  # where the most certain one is right, some are accepted
    assert all(accepted)
    far = dataclasses.replace(doubts, distance=-1.0)
    assert all(row['unlike'] for row in predict.rows(loaded, [photos / arrays.files[0]], doubts=far))
    every = predict.Doubts.learn(loaded, 1.0)
    held_out = [photos / file for file in arrays.files]
    assert not any(row['abstain'] for row in predict.rows(loaded, held_out, doubts=every))
    labeled = datasets.load(f'{photos}/', 'train', size=16).files
    for row in predict.rows(loaded, [photos / file for file in labeled], doubts=doubts):
        assert row['distance'] == pytest.approx(0, abs=1e-5)
        assert not row['unlike']


def test_without_its_data_a_run_predicts_without_doubts(trained, tmp_path, capsys):
    photos, folder = trained
    arguments = [str(folder), str(photos / 'red'), f'--out={tmp_path}/out.csv', f'--data_dir={tmp_path}']
    shutil.copytree(photos, tmp_path / 'photos')
    write(photos / 'red' / 'another.png', 5000)
    try:
        assert predict.main(arguments) == 0
    finally:
        (photos / 'red' / 'another.png').unlink()
    assert 'no columns abstain' in capsys.readouterr().err
    assert 'abstain' not in (tmp_path / 'out.csv').read_text().splitlines()[0]


def test_what_is_no_finished_run_is_one_line(trained, tmp_path, capsys):
    for name in (str(tmp_path), str(tmp_path / 'none'), str(trained[0])):
        assert predict.main([name, str(trained[0])]) == 1
        assert capsys.readouterr().err == f'error: {name} is not the folder of a finished run.\n'


@pytest.fixture(scope='module')
def digits(tmp_path_factory, make_settings, data_dir):
    """Returns the folder of a finished run on gray images with a validation part."""
    folder = tmp_path_factory.mktemp('digits') / 'run'
    steps = {'steps': 8, 'eval_steps': 2, 'checkpoint_steps': 2, 'log_steps': 2}
    run.run(make_settings('supervised', 'digits,labels=40', **steps, **{'data.validation': 30}), folder, data_dir)
    return folder


def test_gray_images_are_predicted_and_with_a_validation_part_by_the_checkpoint_that_it_selects(
    digits, data_dir, tmp_path
):
    loaded = finished.load(str(digits))
    rows = [json.loads(line) for line in (digits / 'metrics.jsonl').read_text().splitlines()]
    accuracy = {row['step']: row['validation_accuracy'] for row in rows if 'validation_accuracy' in row}
    assert accuracy[loaded.step] == max(accuracy.values())
    arrays = datasets.load('digits', 'test', data_dir)
    for i in range(20):
        Image.fromarray(arrays.images[i, ..., 0]).save(tmp_path / f'{i}.png')
    logits, _ = loaded.predict(arrays.images[:20])
    for i, row in enumerate(predict.rows(loaded, [tmp_path / f'{i}.png' for i in range(20)])):
        assert row['label'] == arrays.class_names[logits[i].argmax()]
    content = report.summary(report.analyse(loaded, data_dir))
    (best,) = {row['test_accuracy'] for row in rows if row.get('step') == loaded.step and 'test_accuracy' in row}
    assert content['accuracy'] == pytest.approx(best)
    assert content['temperature_fitted_on'] == 'the validation images'


def test_features_without_a_classifier_are_refused(make_settings, data_dir, tmp_path, capsys):
    settings = make_settings('rotation', **{'transfer.labels': (), 'transfer.layer': 'features', 'steps': 3})
    run.run(settings, tmp_path / 'run', data_dir)
    assert predict.main([str(tmp_path / 'run'), str(tmp_path)]) == 1
    assert 'no classifier that was trained' in capsys.readouterr().err


def test_pictures_that_are_added_later_are_predicted_when_they_are_complete(trained, tmp_path):
    photos, _ = trained
    raw = (photos / 'red' / '0.png').read_bytes()
    (tmp_path / 'first.png').write_bytes(raw)
    (tmp_path / 'growing.png').write_bytes(raw[:100])
    found = predict.watched([str(tmp_path)], seconds=0.05)
    assert next(found).name == 'first.png'  # both had their size for two looks
    assert next(found).name == 'growing.png'

    def write():
        for end in (200, 300, len(raw)):
            time.sleep(0.04)
            (tmp_path / 'later.png').write_bytes(raw[:end])

    writer = threading.Thread(target=write)
    writer.start()
    later = next(found)
    writer.join()
    assert (later.name, later.stat().st_size) == ('later.png', len(raw))
    found.close()


# --- Calibration


def test_temperature_has_the_least_cross_entropy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 5)) * 2
    labels = np.array([rng.choice(5, p=np.exp(row / 3) / np.exp(row / 3).sum()) for row in logits])
    found = calibration.temperature(logits, labels)

    def loss(t):
        return metrics.log_loss(labels, calibration.probabilities(logits, t), labels=range(5))

    assert found == pytest.approx(min(np.linspace(1, 6, 501), key=loss), rel=0.03)
    assert found == pytest.approx(3, rel=0.3)


def test_a_few_right_images_do_not_make_every_picture_certain():
    logits = np.random.default_rng(0).normal(size=(20, 3)) + 5 * np.eye(3)[np.arange(20) % 3]
    for count in (1, 20):
        found = calibration.temperature(logits[:count], np.arange(count) % 3)
        assert calibration.probabilities(np.array([[0.1, 0.0, -0.1]]), found).max() < 0.9


def test_calibration_error_and_least_probability_are_those_of_plain_loops():
    rng = np.random.default_rng(1)
    confidences = np.round(rng.uniform(size=300), 2)
    right = rng.uniform(size=300) < confidences**0.5
    error = 0.0
    for b in range(15):
        inside = [i for i in range(300) if b / 15 <= confidences[i] < (b + 1) / 15 or (b == 14 and confidences[i] == 1)]
        if inside:
            error += len(inside) / 300 * abs(np.mean(confidences[inside]) - np.mean(right[inside]))
    assert calibration.expected_error(confidences, right) == pytest.approx(error)
    for risk in (0.0, 0.05, 0.2, 1.0):
        fitting = [p for p in confidences if np.mean(~right[confidences >= p]) <= risk]
        assert calibration.least_probability(confidences, right, risk) == min(fitting, default=np.inf)


# --- Report


class _Page(html.parser.HTMLParser):
    """Counts tags, and checks that they are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.count = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope='module')
def reported(trained):
    assert report.main([str(trained[1])]) == 0
    return trained[1] / 'report'


def test_a_reports_numbers_are_those_of_scikit_learn(trained, loaded, reported):
    content = json.loads((reported / 'report.json').read_text())
    arrays = datasets.load(f'{trained[0]}/', 'test', size=16)
    logits, _ = loaded.predict(arrays.images)
    guesses = logits.argmax(-1)
    assert (
        content['accuracy'] == metrics.accuracy_score(arrays.labels, guesses) == loaded.result['test_accuracy']['last']
    )
    assert content['balanced_accuracy'] == pytest.approx(metrics.balanced_accuracy_score(arrays.labels, guesses))
    table = metrics.classification_report(arrays.labels, guesses, output_dict=True, zero_division=0)
    for name, key in (('macro', 'macro avg'), ('weighted', 'weighted avg')):
        expected = {'precision': table[key]['precision'], 'recall': table[key]['recall'], 'f1': table[key]['f1-score']}
        assert content[name] == pytest.approx(expected)
    assert content['top_k'] == {'2': pytest.approx(metrics.top_k_accuracy_score(arrays.labels, logits, k=2))}
    assert np.sum(content['confusion']) == len(arrays.labels)
    n, p, z = len(guesses), content['accuracy'], stats.norm.ppf(0.975)
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    assert content['accuracy_interval'] == pytest.approx([low, high])
    assert sum(c['labeled_images'] for c in content['classes'].values()) == 30
    assert {key for key in content['pseudo_labels']} >= {'fixmatch/mask_rate', 'fixmatch/pseudo_label_accuracy'}


def test_a_report_is_one_file_that_runs_nothing_and_loads_nothing(reported):
    text = (reported / 'report.html').read_text()
    page = _Page(text)
    assert page.open == []
    assert page.count.get('script', 0) == 0
    assert html.escape(EVIL) in text  # the name of a class, which is no tag
    assert page.count['img'] == len(list(reported.glob('*.png'))) >= 4
    assert 'http' not in text.partition('<pre>')[0]
    for name in reported.glob('*.png'):
        with Image.open(name) as picture:
            assert min(picture.size) > 100


def test_two_runs_are_reported_side_by_side(trained, loaded, tmp_path):
    folder = str(trained[1])
    assert report.main([folder, folder, f'--out={tmp_path}']) == 0
    text = (tmp_path / 'report.html').read_text()
    assert 'only the first run is right on 0, only the second on 0' in text
    assert len(json.loads((tmp_path / 'report.json').read_text())) == 2
    assert report.main([folder] * 3) == 1


def test_a_class_activation_map_averages_to_the_logit(loaded):
    images = np.stack([pixels(i, 16) for i in range(4)])
    classes = np.array([0, 1, 2, 0])
    maps = report.activation_maps(loaded, images, classes)
    logits, _ = loaded.predict(images)
    bias = np.asarray(loaded.variables['params']['head']['bias'])
    assert np.allclose(maps.mean((1, 2)), logits[np.arange(4), classes] - bias[classes], atol=1e-5)
    assert maps.std((1, 2)).min() > 0


def unfinished(name, shape, **values):
    """Returns a stand-in for a finished run, with random parameters."""
    model = models.create(name, 3, **values)
    variables = model.init(jax.random.key(0), shape)
    variables['params']['head']['bias'] = np.float32([1, 2, 3])
    return finished.Finished(pathlib.Path('run'), None, {'image_shape': shape}, model, variables, 1)


@pytest.mark.parametrize(
    ('shape', 'values', 'output'),
    [
        ((20, 20, 1), {'name': 'lenet'}, 'stage2'),
        ((8, 8, 3), {'name': 'wide_resnet', 'blocks': (1,), 'width': 1, 'bottleneck_width': 6}, 'map'),
    ],
)
def test_with_layers_between_map_and_classifier_a_map_is_grad_cam_by_finite_differences(shape, values, output):
    made = unfinished(shape=shape, **values)
    params = jax.tree.map(np.float64, made.variables['params'])
    images = np.random.default_rng(1).integers(0, 256, (4, *shape), np.uint8)
    classes = np.array([0, 1, 2, 1])
    features = np.float64(made.forward(images)[output])

    def score(features):
        """Returns the logits of the classes, `[4]`, for feature maps, `[4, h, w, c]`."""
        if values['name'] == 'lenet':
            x, layer = features.reshape(4, -1), params['dense']
        else:
            x, layer = features.mean((1, 2)), params['bottleneck']
        x = x @ layer['kernel'] + layer['bias']
        if 'bottleneck_norm' in params:  # whose running statistics are their first values
            x = x / np.sqrt(1 + 1e-5) * params['bottleneck_norm']['scale'] + params['bottleneck_norm']['bias']
        return (np.maximum(x, 0) @ params['head']['kernel'] + params['head']['bias'])[np.arange(4), classes]

    assert np.allclose(score(features), made.predict(images)[0][np.arange(4), classes], atol=1e-4)
    _, height, width, channels = features.shape
    steps = 1e-6 * np.eye(channels)  # in every pixel of a channel: the sum of the gradients there
    sums = np.stack([(score(features + step) - score(features - step)) / 2e-6 for step in steps], -1)
    expected = np.maximum(np.einsum('nhwc,nc->nhw', features, sums / (height * width)), 0)
    maps = report.activation_maps(made, images, classes)
    assert np.allclose(maps, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert expected.max((1, 2)).min() > 0  # something is to be seen


def test_grad_cam_before_its_relu_is_proportional_to_a_class_activation_map(loaded):
    images = np.stack([pixels(i, 16) for i in range(4)])
    classes = np.array([0, 1, 2, 0])
    features = np.asarray(loaded.forward(images)['map'])
    weights = report.gradients(loaded, images, classes, 'map').mean((1, 2))
    grad_cam = np.einsum('nhwc,nc->nhw', features, weights)
    maps = report.activation_maps(loaded, images, classes)
    assert np.allclose(grad_cam * features[0, ..., 0].size, maps, rtol=1e-4, atol=1e-6)


# --- Export


def test_an_export_has_all_that_belongs_to_it(trained, tmp_path, capsys):
    pytest.importorskip('flatbuffers')
    folder = tmp_path / 'run'
    shutil.copytree(trained[1], folder)
    assert export.main([str(folder), '--to=stablehlo']) == 0
    out = folder / 'export' / 'stablehlo'
    assert {path.name for path in out.iterdir()} == {'model.stablehlo', 'model.json', 'README.md', 'reference.npz'}
    record = json.loads((out / 'model.json').read_text())
    assert record['classes'] == sorted(record['classes'])
    assert record['input']['shape'] == ['N', 16, 16, 3]
    assert record['data_sha256']
    assert record['parity']['images'] == 6 + 33
    assert 'Accuracy' in (out / 'README.md').read_text()
    with np.load(out / 'reference.npz') as reference:
        call = jax.export.deserialize(bytearray((out / 'model.stablehlo').read_bytes())).call
        assert np.allclose(call(reference['images'])[0], reference['logits'], atol=1e-5)


def test_an_export_replaces_an_export_and_nothing_else(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip('flatbuffers')
    shutil.copytree(trained[1], tmp_path / 'run')
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert export.main(['run', '--to=stablehlo', '--out=out']) == 0  # a relative path, twice
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'letter.txt').write_text('dear')
    for name in ('mine', '.', 'run'):
        assert export.main(['run', '--to=stablehlo', f'--out={name}']) == 1
        assert 'is no export' in capsys.readouterr().err
    assert (tmp_path / 'mine' / 'letter.txt').exists()
    assert (tmp_path / 'run' / 'result.json').exists()


def test_a_model_that_differs_is_an_error_and_not_written(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip('flatbuffers')
    made, other = finished.load(str(trained[1])), finished.load(str(trained[1]))
    write = export.write
    head = made.variables['params']['head']
    head['bias'] = head['bias'] + np.float32([0.01, 0, 0]) * 100
    monkeypatch.setattr(finished, 'load', lambda name: made)
    monkeypatch.setattr(export, 'write', lambda run, *arguments: write(other, *arguments))
    assert export.main([str(trained[1]), '--to=stablehlo', f'--out={tmp_path}/out']) == 1
    assert 'is not the same model' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_a_format_says_which_to_install(trained, tmp_path, monkeypatch, capsys):
    most, tensorflow = '-r requirements-deploy.txt', 'tensorflow-cpu'
    needed = {'onnx': ('onnx', most), 'litert_converter': ('tflite', most), 'tensorflow': ('savedmodel', tensorflow)}
    for package, (kind, packages) in needed.items():
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f'deploy.{kind}_writer', raising=False)
        monkeypatch.delattr(deploy, f'{kind}_writer', raising=False)
        assert export.main([str(trained[1]), f'--to={kind}', f'--out={tmp_path}/out']) == 1
        assert f'pip install {packages} (' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- Looking for faults with a network


def test_a_finished_run_finds_wrong_labels(trained, tmp_path, capsys):
    photos, folder = trained
    assert check.main([f'{photos}/', '--fast', f'--run={folder}', '--json']) == 0
    findings = {finding['kind']: finding for finding in json.loads(capsys.readouterr().out)['findings']}
    loaded = finished.load(str(folder))
    files = datasets.load(f'{photos}/', 'train', size=16).files
    expected = [files[i] for i, _ in suspects.labels(loaded, loaded.streams())]
    assert [*findings.get('label', {'files': []})['files']] == expected
    assert check.main([f'{photos}/', '--fast', f'--run={tmp_path}']) == 2


# --- Choosing


def labeled(counts, unlabeled=0):
    """Returns pictures with {class: number of labels}."""
    entries = [Entry(f'{name}{i}', name, 'train') for name, count in counts.items() for i in range(count)]
    return rules.Pictures(tuple(counts), (*entries, *(Entry(f'{i}', '', 'unlabeled') for i in range(unlabeled))), ())


def test_what_is_chosen_fits_into_the_minutes():
    for seconds in (0.01, 0.3, 2.0):
        for minutes in (1, 10, 60):
            choice = auto.choose(
                'a/', labeled({'a': 9, 'b': 9}), minutes, lambda choice, seconds=seconds: (20.0, seconds)
            )
            takes = 20 + choice.steps * seconds * (choice.side / 64) ** 2
            assert takes <= 60 * minutes or (choice.side, choice.steps) == (64, auto.LEAST_STEPS)
            assert auto.LEAST_STEPS <= choice.steps <= auto.MOST_STEPS
            assert choice.steps % 10 == 0
    sides = [auto.choose('a/', labeled({'a': 9, 'b': 9}), m, lambda choice: (20.0, 0.2)).side for m in (1, 5, 10, 60)]
    assert sides == sorted(sides)
    assert sides[0] == 64 < sides[-1]


def test_unlabeled_pictures_and_rare_classes_decide_on_the_method():
    def chosen(*arguments):
        choice = auto.choose('a/', labeled(*arguments), 10, lambda choice: (20.0, 0.2))
        return choice.config, choice.adjusted

    assert chosen({'a': 10, 'b': 10}) == ('finetune', False)
    assert chosen({'a': 10, 'b': 10}, 40) == ('fixmatch', False)
    assert chosen({'a': 40, 'b': 10}, 10) == ('finetune', True)
    assert chosen({'a': 40, 'b': 10}, 100) == ('fixmatch', True)


def test_a_config_is_written_once(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(auto, 'timed', lambda choice: (1.0, 0.2))
    assert auto.main([f'{trained[0]}/', '--minutes=2']) == 0
    assert 'python main.py --config=auto_photos.py' in capsys.readouterr().out
    compile((tmp_path / 'auto_photos.py').read_text(), 'auto_photos.py', 'exec')
    for wrong in ('--minutes=2', '--out=none/a.py', '--minutes=nan --out=b.py'):
        assert auto.main([f'{trained[0]}/', *wrong.split()]) == 1
        assert capsys.readouterr().err.startswith('error: ')


def test_names_of_classes_are_no_code_in_a_written_config(trained):
    why = ('"""+boom+"""', "'''", 'a\nboom', '\\user')
    choice = auto.Choice(f'{trained[0]}/', 'finetune', False, 64, 500, why)
    assert choice.config_dict().steps == 500


@pytest.mark.parametrize(('config', 'adjusted'), [('finetune', True), ('fixmatch', True), ('fixmatch', False)])
def test_the_written_config_is_one_that_runs(trained, config, adjusted):
    choice = auto.Choice(f'{trained[0]}/', config, adjusted, 96, 500, ('It is so',))
    made = settings.from_config(choice.config_dict())
    assert (made.steps, made.data.image_size, made.model['resolution']) == (500, 96, 96)
    labeled_term = 'supervised' if (config, adjusted) == ('fixmatch', False) else 'finetune'
    assert set(made.methods) == {labeled_term, config}
    assert made.methods[labeled_term].get('logit_adjustment', 0) == adjusted
    assert '# - It is so.' in choice.text()


# --- Serving


@pytest.fixture(scope='module')
def served(trained):
    """Returns the address of a running server, which takes pictures of up to 0.1 MB."""
    pytest.importorskip('starlette')
    uvicorn = pytest.importorskip('uvicorn')
    run = finished.load(str(trained[1]))
    application = serve.create(run, predict.Doubts.learn(run, 0.05), megabytes=0.1)
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level='error', lifespan='off'))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
    server.should_exit = True
    thread.join()


def post(address, raw):
    """Returns the status and the content of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f'{address}/predict', raw)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_a_server_answers_as_deploy_predict(trained, loaded, served):
    path = trained[0] / 'red' / '0.png'
    (row,) = predict.rows(loaded, [path], doubts=predict.Doubts.learn(loaded, 0.05))
    status, answer = post(served, path.read_bytes())
    assert status == 200
    assert answer == {key: value for key, value in row.items() if key not in ('file', 'error')}


def test_a_server_refuses_what_is_no_picture_or_too_large(served):
    assert post(served, b'<html>')[0] == 415
    assert post(served, b'')[0] == 415
    assert post(served, bytes(100_001)) == (413, {'error': 'more than 0.1 MB'})
    with io.BytesIO() as file:
        Image.new('1', (10_001, 10_000)).save(file, 'PNG')
        status, answer = post(served, file.getvalue())
    assert status == 415
    assert 'pixels are more than' in answer['error']
    with pytest.raises(urllib.error.HTTPError, match='405'):
        urllib.request.urlopen(f'{served}/predict')


# --- In a real browser


@pytest.mark.skipif(not shutil.which('chromium'), reason='no Chromium to look at the page with')
@pytest.mark.parametrize('width', [360, 1400])
def test_a_report_fits_a_browser(reported, tmp_path, width):
    script = 'document.title = document.documentElement.scrollWidth + " " + document.images.length'
    page = tmp_path / 'page.html'
    page.write_text((reported / 'report.html').read_text().replace('</html>', f'<script>{script}</script></html>'))
    command = ['chromium', '--headless', '--no-sandbox', '--disable-gpu', f'--window-size={width},900', '--dump-dom']
    dom = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60, check=True).stdout
    scroll, images = dom.partition('<title>')[2].partition('</title>')[0].split()
    assert int(scroll) <= max(width, 500)  # headless Chromium is at least so wide
    assert int(images) == len(list(reported.glob('*.png')))


async def _drop(folder, address, raw):
    """Drops a file on a page in Chromium, over its DevTools protocol. Returns the text that the page shows then."""
    websocket = pytest.importorskip('tornado.websocket')
    command = ['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-port=0']
    browser = subprocess.Popen([*command, f'--user-data-dir={folder}', address], stderr=subprocess.DEVNULL)
    try:
        while not (folder / 'DevToolsActivePort').exists():
            await asyncio.sleep(0.05)
        port = (folder / 'DevToolsActivePort').read_text().split()[0]
        pages = []
        while not pages:
            with urllib.request.urlopen(f'http://127.0.0.1:{port}/json') as listed:
                pages = [page for page in json.load(listed) if page['url'].startswith(address)]
        connection = await websocket.websocket_connect(pages[0]['webSocketDebuggerUrl'])
        script = f"""(async () => {{
            while (!document.getElementById('drop')) await new Promise(done => setTimeout(done, 20));
            const bytes = Uint8Array.from(atob('{base64.b64encode(raw).decode()}'), c => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], 'a.png'));
            document.getElementById('drop').dispatchEvent(new DragEvent('drop', {{dataTransfer: data}}));
            while (!document.getElementById('result').rows.length) await new Promise(done => setTimeout(done, 20));
            return document.body.innerText + (document.getElementById('picture').naturalWidth || '');
        }})()"""
        parameters = {'expression': script, 'awaitPromise': True}
        answer = {}
        while 'result' not in answer:  # it is an error while the page is being loaded
            await connection.write_message(json.dumps({'id': 1, 'method': 'Runtime.evaluate', 'params': parameters}))
            answer = json.loads(await asyncio.wait_for(connection.read_message(), 30))
        connection.close()
        return answer['result']['result']['value']
    finally:
        browser.kill()
        browser.wait()


@pytest.mark.skipif(not shutil.which('chromium'), reason='no Chromium to look at the page with')
def test_a_picture_that_is_dropped_on_the_page_is_answered(trained, served, tmp_path):
    raw = (trained[0] / 'red' / '0.png').read_bytes()
    _, answer = post(served, raw)
    shown = asyncio.run(_drop(tmp_path / 'profile', f'{served}/', raw))
    for key in ('label', 'label_2', 'label_3'):
        assert answer[key] in shown  # one of them is EVIL, and is text
    assert f'{100 * answer["probability"]:.1f} %' in shown
