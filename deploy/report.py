"""Says how good a finished run is, and where it errs.

    python -m deploy.report runs/NAME                  runs/NAME/report/: report.html, report.json and pictures
    python -m deploy.report runs/ONE runs/OTHER        both side by side, in the first one's folder

report.html is one file with everything in it.
"""

import argparse
import base64
import dataclasses
import functools
import html
import io
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from scipy import stats
from sklearn import metrics

from data.pictures import folder as pictures
from data.pictures import rules
from deploy import calibration, finished, suspects
from deploy.finished import Finished
from errors import UserError
from train import mesh, run_folder

SHOWN = 24  # pictures in a grid
COVERAGES = (0.5, 0.8, 0.9, 1.0)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 0 1rem; color: #222; }
h1 { overflow-wrap: anywhere; } .runs { display: grid; gap: 1rem; }
@media (min-width: 60rem) { .two { grid-template-columns: 1fr 1fr; } }
.runs > div { min-width: 0; } .wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; } th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A run's predictions for its test images.

    Attributes:
        run: The finished run.
        images: uint8 `[N, H, W, C]`.
        labels: Their classes, int `[N]`.
        logits: float32 `[N, C]`.
        temperature: That of the probabilities, fitted on held-out images.
        fitted_on: Which these were.
        labeled: Classes of the labeled images, int `[L]`.
        suspects: (image, its class, what it looks like) of labeled images whose labels are probably wrong.
    """

    run: Finished
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    temperature: float
    fitted_on: str
    labeled: np.ndarray
    suspects: Sequence[tuple[np.ndarray, int, int]]

    @property
    def predicted(self) -> np.ndarray:
        """Predicted classes, int `[N]`."""
        return self.logits.argmax(-1)

    @property
    def right(self) -> np.ndarray:
        """Whether they are right, bool `[N]`."""
        return self.predicted == self.labels

    @property
    def confidences(self) -> np.ndarray:
        """Calibrated probabilities of the predicted classes, float64 `[N]`."""
        return calibration.probabilities(self.logits, self.temperature).max(-1)


def analyse(run: Finished, data_dir: str | None = None) -> Analysis:
    """Predicts a run's test images.

    Raises:
        UserError: Its data cannot be read.
    """
    streams = run.streams(data_dir)
    images, labels = streams.held_out['test']
    logits, _ = run.predict(images)
    if 'validation' in streams.held_out:
        part, classes = streams.held_out['validation']
        temperature, fitted_on = calibration.temperature(run.predict(part)[0], classes), 'the validation images'
    else:
        temperature, fitted_on = calibration.temperature(logits, labels), 'the test images themselves'
    labeled = streams.labels[streams.indices['labeled']]
    suspected = [(streams.images[i], int(streams.labels[i]), guess) for i, guess in suspects.labels(run, streams)]
    return Analysis(run, images, labels, logits, temperature, fitted_on, labeled, suspected)


def wilson(right: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's confidence interval of a share, in [0, 1]."""
    interval = stats.binomtest(right, count).proportion_ci(level, 'wilson')
    return float(interval.low), float(interval.high)


def summary(analysis: Analysis) -> dict[str, Any]:
    """Returns the content of report.json."""
    run, labels, predicted, right = analysis.run, analysis.labels, analysis.predicted, analysis.right
    classes = np.arange(len(run.class_names))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    present = support > 0
    raw = calibration.probabilities(analysis.logits)
    order = np.argsort(-analysis.confidences, kind='stable')
    risk = np.cumsum(~right[order]) / np.arange(1, len(right) + 1)
    ranks = (analysis.logits > analysis.logits[np.arange(len(labels)), labels][:, None]).sum(-1)
    return {
        'run': run.folder.name,
        'step': run.step,
        'test_images': len(labels),
        'accuracy': float(right.mean()),
        'accuracy_interval': wilson(int(right.sum()), len(right)),
        'balanced_accuracy': float(recall[present].mean()),
        'top_k': {str(k): float((ranks < k).mean()) for k in (2, 3, 5) if k < len(classes)},
        'macro': {name: float(v[present].mean()) for name, v in _named(precision, recall, f1)},
        'weighted': {name: float(np.average(v, weights=support)) for name, v in _named(precision, recall, f1)},
        'classes': {
            name: {
                'precision': float(precision[i]),
                'recall': float(recall[i]),
                'f1': float(f1[i]),
                'test_images': int(support[i]),
                'labeled_images': int((analysis.labeled == i).sum()),
            }
            for i, name in enumerate(run.class_names)
        },
        'confusion': metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
        'calibration_error': calibration.expected_error(raw.max(-1), right),
        'calibration_error_with_temperature': calibration.expected_error(analysis.confidences, right),
        'temperature': analysis.temperature,
        'temperature_fitted_on': analysis.fitted_on,
        'accuracy_at_coverage': {str(c): 1 - float(risk[max(round(c * len(risk)), 1) - 1]) for c in COVERAGES},
        'pseudo_labels': pseudo_labels(run),
        'findings': findings(run),
        'settings': dataclasses.asdict(run.settings),
        'versions': run.result['versions'],
        'git_commit': run.result['git_commit'],
        'seconds': run.result['seconds'],
        'device': run.result['device'],
    }


def _named(precision: np.ndarray, recall: np.ndarray, f1: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [('precision', precision), ('recall', recall), ('f1', f1)]


def pseudo_labels(run: Finished) -> dict[str, float]:
    """Returns the last {metric: value} of a run that tell how its pseudo-labels fared."""
    ends = ('mask_rate', 'label_accuracy', 'label_accuracy_all')
    found = ((key, value) for row in run_folder.rows(run.folder) for key, value in row.items() if key.endswith(ends))
    return {key: value for key, value in found if value is not None}


def findings(run: Finished) -> list[str]:
    """Returns what is wrong with a run's folder of pictures, a line each; [] if its data are none."""
    names = filter(pictures.is_folder, (run.settings.data.name, run.settings.data.target))
    return [rules.line(finding) for name in names for finding in rules.examine(name).findings]


# --- Pictures


def confusion(analysis: Analysis) -> plt.Figure:
    """Draws the confusion matrix: counts, on the colours of the share of the true class."""
    names = analysis.run.class_names
    counts = metrics.confusion_matrix(analysis.labels, analysis.predicted, labels=np.arange(len(names)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(2.5 + 0.45 * len(names), 30)
    figure, axis = plt.subplots(figsize=(side, side), layout='constrained')
    axis.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    if len(names) <= 30:
        for i, j in np.argwhere(counts):
            axis.text(j, i, counts[i, j], ha='center', va='center', color='white' if shares[i, j] > 0.5 else 'black')
    axis.set_xticks(range(len(names)), _plain(names), rotation=90)
    axis.set_yticks(range(len(names)), _plain(names))
    axis.set(xlabel='predicted', ylabel='true')
    return figure


def reliability(analysis: Analysis) -> plt.Figure:
    """Draws accuracy by confidence, before and after the temperature, and accuracy by coverage."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout='constrained')
    raw = calibration.probabilities(analysis.logits).max(-1)
    for values, name in ((raw, 'as trained'), (analysis.confidences, f'temperature {analysis.temperature:.2f}')):
        _, confidence, accuracy = zip(*calibration.reliability(values, analysis.right), strict=True)
        left.plot(confidence, accuracy, 'o-', label=name)
    left.plot([0, 1], [0, 1], color='gray', linewidth=1)
    left.set(xlabel='confidence', ylabel='accuracy', xlim=(0, 1), ylim=(0, 1.02))
    left.legend(frameon=False)
    order = np.argsort(-analysis.confidences, kind='stable')
    count = np.arange(1, len(order) + 1)
    right.plot(count / len(order), np.cumsum(analysis.right[order]) / count)
    right.set(xlabel='share of the images that are answered', ylabel='accuracy on them', xlim=(0, 1))
    return figure


def curves(run: Finished) -> plt.Figure:
    """Draws accuracies and the loss by step."""
    table = run_folder.rows(run.folder)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout='constrained')
    for axis, ends in ((left, ('accuracy', 'mask_rate')), (right, ('loss',))):
        names = sorted({key for row in table for key in row if key.endswith(ends)})
        for name in names:
            points = [(row['step'], row[name]) for row in table if row.get(name) is not None]
            axis.plot(*zip(*points, strict=True), label=name)
        axis.set(xlabel='step')
        axis.legend(frameon=False, fontsize=7)
    return figure


def grid(images: np.ndarray, titles: Sequence[str] | np.ndarray, maps: np.ndarray | None = None) -> plt.Figure:
    """Draws images, each below its title.

    Args:
        images: uint8 `[n, H, W, C]`.
        titles: One for each.
        maps: Of `activation_maps`, to lay over them, float32 `[n, h, w]`.
    """
    across, (height, width) = 6, images.shape[1:3]
    down = -(-len(images) // across)
    figure, axes = plt.subplots(down, across, figsize=(1.7 * across, 2.1 * down), layout='constrained', squeeze=False)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for axis in axes.flat:
        axis.axis('off')
    for i, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(image.squeeze(), cmap='gray', vmin=0, vmax=255)
        if maps is not None:
            axis.imshow(maps[i], cmap='jet', alpha=0.4, interpolation='bilinear', extent=extent)
        axis.set_title(titles[i], fontsize=8)
    return figure


def activation_maps(run: Finished, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns where in images a network sees classes.

    If the features are the average of a feature map, these are class activation maps (Zhou et al. 2016,
    arXiv:1512.04150, eq. 2): the map times the classifier's column. Otherwise it is Grad-CAM (Selvaraju et al. 2017,
    arXiv:1610.02391, eqs. 1 and 2) on the last feature map.

    Args:
        run: The finished run.
        images: uint8 `[N, H, W, C]`.
        classes: int `[N]`.

    Returns:
        float32 `[N, h, w]`: class activation maps, whose mean is the logit without its bias, or Grad-CAM, from 0.
    """
    outputs = run.forward(images)
    # In the order of the forward pass. Outputs of convolutions have the names of layers.
    *_, name = (name for name, x in outputs.items() if x.ndim == 4 and name not in run.variables['params'])
    averaged = name == 'map' and not run.model.network.bottleneck_width
    if averaged:
        weights = run.variables['params']['head']['kernel'][:, classes].T
    else:
        weights = gradients(run, images, classes, name).mean((1, 2))
    maps = np.einsum('nhwc,nc->nhw', outputs[name], weights)
    return maps if averaged else np.maximum(maps, 0)


def gradients(run: Finished, images: np.ndarray, classes: np.ndarray, name: str) -> jax.Array:
    """Returns the gradient of each image's logit of a class in the output `name`, of the shape of that output.

    Args:
        run: The finished run.
        images: uint8 `[N, H, W, C]`.
        classes: int `[N]`.
        name: An output that the network computes on the way to the logits.
    """

    def forward(images: Any) -> tuple[jax.Array, jax.Array]:
        outputs = run.forward(images)
        return outputs[name], outputs['logits']

    program = jax.make_jaxpr(forward)(images)
    value, logits = program.jaxpr.outvars
    # The same program with the output as an input: what would compute it is left out.
    kept = [equation for equation in program.eqns if value not in equation.outvars]
    rest = program.jaxpr.replace(invars=[value, *program.jaxpr.invars], outvars=[logits], eqns=kept)

    def score(value: jax.Array) -> jax.Array:
        (logits,) = jax.core.eval_jaxpr(rest, program.consts, value, images)
        return logits[np.arange(len(classes)), classes].sum()

    return jax.grad(score)(forward(images)[0])


def _plain(names: Sequence[str]) -> list[str]:
    """Returns names that matplotlib shows as they are, and not too long."""
    return [(name if len(name) <= 20 else f'{name[:19]}…').replace('$', r'\$') for name in names]


# --- The page


def drawings(analysis: Analysis) -> dict[str, tuple[str, Callable[[], plt.Figure]]]:
    """Returns {name of a picture: (its title, function that draws it)}."""
    wrong = np.flatnonzero(~analysis.right)
    mistakes = wrong[np.argsort(-analysis.confidences[wrong], kind='stable')][:SHOWN]
    doubtful = np.argsort(analysis.confidences, kind='stable')[:SHOWN]
    names = _plain(analysis.run.class_names)
    titles = np.array(
        [
            f'{names[label]}\n{names[guess]} {confidence:.0%}'
            for label, guess, confidence in zip(analysis.labels, analysis.predicted, analysis.confidences, strict=True)
        ]
    )
    drawn: dict[str, tuple[str, Callable[[], plt.Figure]]] = {
        'confusion': (
            'Confusion matrix: number of images; the colour is the share of the true class',
            functools.partial(confusion, analysis),
        ),
        'reliability': (
            'Calibration, and accuracy where the most doubtful images are not answered',
            functools.partial(reliability, analysis),
        ),
        'curves': ('Learning curves', functools.partial(curves, analysis.run)),
    }
    if len(mistakes):
        title = 'Most confident mistakes: true class, predicted class, confidence'
        images = analysis.images[mistakes]
        drawn['mistakes'] = title, functools.partial(grid, images, titles[mistakes])
        maps = activation_maps(analysis.run, images, analysis.predicted[mistakes])
        title = 'What speaks for the predicted class there'
        drawn['activations'] = title, functools.partial(grid, images, titles[mistakes], maps)
    title = 'Least confident images'
    drawn['doubtful'] = title, functools.partial(grid, analysis.images[doubtful], titles[doubtful])
    if analysis.suspects:
        images, labels, guesses = zip(*analysis.suspects[:SHOWN], strict=True)
        title = 'Training images whose labels are probably wrong: label, what they look like'
        both = [f'{names[label]}\n{names[guess]}' for label, guess in zip(labels, guesses, strict=True)]
        drawn['suspects'] = title, functools.partial(grid, np.stack(images), both)
    return drawn


def write(analyses: Sequence[Analysis], out: pathlib.Path) -> None:
    """Writes report.html, report.json and pictures.

    Args:
        analyses: Of one run or of two.
        out: The folder.
    """
    matplotlib.use('agg')
    out.mkdir(parents=True, exist_ok=True)
    summaries = [summary(analysis) for analysis in analyses]
    sections: list[str] = []
    for analysis, content in zip(analyses, summaries, strict=True):
        fared = [f'{name}: {value:.3f}' for name, value in content['pseudo_labels'].items()]
        parts = [_classes(content), _list('Pseudo-labels, at the end', fared)]
        for name, (title, draw) in drawings(analysis).items():
            figure = draw()
            file = io.BytesIO()
            figure.savefig(file, dpi=90, format='png')
            plt.close(figure)
            number = f'-{len(sections) + 1}' * (len(analyses) > 1)
            (out / f'{name}{number}.png').write_bytes(file.getvalue())
            source = base64.b64encode(file.getvalue()).decode()
            parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{source}">')
        parts.append(_list('What was found in the folder', content['findings']))
        settings = html.escape(json.dumps(content['settings'], indent=1))
        parts.append(f'<h2>Settings</h2><details><summary>all</summary><pre>{settings}</pre></details>')
        sections.append(f'<div>{"".join(parts)}</div>')
    title = html.escape(' and '.join(content['run'] for content in summaries))
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{_numbers(summaries)}{_paired(analyses)}'
        f'<div class="runs{" two" * (len(analyses) > 1)}">{"".join(sections)}</div></html>'
    )
    (out / 'report.html').write_text(page, encoding='utf-8')
    (out / 'report.json').write_text(json.dumps(summaries[0] if len(summaries) == 1 else summaries, indent=2) + '\n')


def _numbers(summaries: Sequence[dict]) -> str:
    lines = []
    for content in summaries:
        low, high = content['accuracy_interval']
        top = {f'top-{k} accuracy': f'{v:.2%}' for k, v in content['top_k'].items()}
        coverage = content['accuracy_at_coverage'].items()
        lines.append(
            {
                'run': content['run'],
                'accuracy': f'{content["accuracy"]:.2%}',
                '95 % confidence interval': f'{low:.2%} to {high:.2%}',
                'test images': str(content['test_images']),
                'balanced accuracy': f'{content["balanced_accuracy"]:.2%}',
                'macro F1': f'{content["macro"]["f1"]:.3f}',
                'weighted F1': f'{content["weighted"]["f1"]:.3f}',
                **top,
                'calibration error': f'{content["calibration_error"]:.3f}',
                f'the same, with a temperature fitted on {content["temperature_fitted_on"]}': (
                    f'{content["calibration_error_with_temperature"]:.3f} (temperature {content["temperature"]:.2f})'
                ),
                **{f'accuracy on the most confident {float(c):.0%}': f'{v:.2%}' for c, v in coverage if c != '1.0'},
                'trained': f'{content["seconds"]:.0f} s on {content["device"]}',
                'git commit': str(content['git_commit']),
                'versions': ', '.join(f'{k} {v}' for k, v in content['versions'].items()),
            }
        )
    keys = list(dict.fromkeys(key for line in lines for key in line))
    return _table([], [[key, *(line.get(key, '') for line in lines)] for key in keys])


def _paired(analyses: Sequence[Analysis]) -> str:
    """Returns McNemar's exact test of two runs with the same test images."""
    if len(analyses) != 2 or not np.array_equal(analyses[0].images, analyses[1].images):
        return ''
    one, other = (analysis.right for analysis in analyses)
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    p = stats.binomtest(only_one, only_one + only_other).pvalue if only_one + only_other else 1.0
    return (
        f'<p>Of the same test images, only the first run is right on {only_one}, only the second on {only_other} '
        f"(McNemar's exact test: p = {p:.2g}).</p>"
    )


def _classes(content: dict) -> str:
    header = ['class', 'precision', 'recall', 'F1', 'test images', 'labeled images']
    lines = [
        [name, *(f'{c[key]:.3f}' for key in ('precision', 'recall', 'f1')), c['test_images'], c['labeled_images']]
        for name, c in content['classes'].items()
    ]
    return f'<h2>Classes</h2>{_table(header, lines)}'


def _table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    def row(cells: Sequence[Any], tag: str) -> str:
        return '<tr>' + ''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells) + '</tr>'

    body = ''.join(row(line, 'td') for line in lines)
    return f'<div class="wide"><table>{row(header, "th") if header else ""}{body}</table></div>'


def _list(title: str, lines: Sequence[str]) -> str:
    items = ''.join(f'<li>{html.escape(line)}</li>' for line in lines)
    return f'<h2>{title}</h2><ul>{items}</ul>' if lines else ''


def main(args: list[str] | None = None) -> int:
    """Runs the command line, returns the exit status."""
    parser = argparse.ArgumentParser(
        'python -m deploy.report', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folder of a finished run, or two')
    parser.add_argument('--out', metavar='DIR', help='folder to write, by default report/ in that of the run')
    parser.add_argument('--data_dir', metavar='DIR', help='prepared data sets (default: $TFDS_DATA_DIR)')
    flags = parser.parse_args(args)
    mesh.configure()
    try:
        if len(flags.runs) > 2:
            raise UserError('A report is on one run or on two.')
        analyses = [analyse(finished.load(name), flags.data_dir) for name in flags.runs]
        out = pathlib.Path(flags.out) if flags.out else analyses[0].run.folder / 'report'
        write(analyses, out)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'{out / "report.html"}: {(out / "report.html").stat().st_size / 1e6:.1f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
