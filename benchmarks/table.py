"""Prints the test accuracy of finished runs, mean and standard deviation over seeds, as Markdown tables.

    python -m benchmarks.table runs/digits/*/result.json [--write=results/digits.jsonl]
    python -m benchmarks.table results/digits.jsonl

Takes result.json files, or a file with one on each line, which --write makes. Runs whose settings are equal but for
the seed make up a cell; every run counts. Cells are mean ± standard deviation (ddof 1) in %, and the number of runs.
"""

import argparse
import json
import pathlib
import statistics

RULES = {'last': 'last', 'median_last_20': 'median of the last 20'}
OF_DOMAINS = {'last': 'last', 'selected': 'selected without target labels', 'best_on_test': 'best on test (a leak)'}


def read(paths: list[str]) -> list[dict]:
    """Returns the contents of result.json files, or of files with several, in the order given."""
    results = []
    for path in paths:
        text, decoder = pathlib.Path(path).read_text().strip(), json.JSONDecoder()
        while text:
            result, end = decoder.raw_decode(text)
            results.append(result)
            text = text[end:].lstrip()
    return results


def tables(results: list[dict]) -> list[str]:
    """Returns the lines of a table for each selection rule: a row for the methods' settings, a column for the data."""
    cells: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        settings = result['settings']
        data, target = settings['data'], settings['data'].get('target')
        labels = f'{data["labels"]:6}' if data['labels'] >= 0 else 'all'
        column = f'{data["name"]} -> {target}' if target else f'{data["name"]}, {labels}'
        cells.setdefault((_name(settings['methods']) + _network(settings), column), []).append(result)
    for runs in cells.values():
        if len({json.dumps({**run['settings'], 'seed': None}, sort_keys=True) for run in runs}) > 1:
            raise SystemExit(f'Runs of {runs[0]["settings"]["methods"]} differ in more than the seed.')
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = sorted({column for _, column in cells})
    lines = []
    for rule, title in (OF_DOMAINS if any('->' in column for column in columns) else RULES).items():
        heads = [' '.join(column.split()) for column in columns]
        lines += [f'| {title} | ' + ' | '.join(heads) + ' |', '|---|' + '---|' * len(columns)]
        for row in rows:
            found = [_cell(cells.get((row, column), []), rule) for column in columns]
            lines.append(f'| {row} | ' + ' | '.join(found) + ' |')
        lines.append('')
    return lines


def _name(methods: dict[str, dict]) -> str:
    """The methods of a run but for the labeled term beside them, with what sets variants of one apart."""
    names = [name for name in methods if name != 'supervised' or len(methods) == 1]
    usual = {
        'fixmatch': {'alignment': False, 'temperature': 0.0, 'weak_batch_norm': 'no_grad'},
        'dash': {'select': 'weak'},
        'self_training': {'view': 'weak', 'restart': True},
        's4l': {'all_copies': True},
        'mmd': {'joint': False},
    }
    parts = []
    for name in names:
        shown = {key: methods[name][key] for key, value in usual.get(name, {}).items() if methods[name][key] != value}
        parts.append(name + ''.join(f', {key} {value}' for key, value in shown.items()))
    return ' + '.join(parts)


def _network(settings: dict) -> str:
    """What a run trains, where that is not all of the data set's own network."""
    model, optimizer = settings['model'], settings['optimizer']
    if model['name'] == 'wide_resnet' and not model.get('pretrained'):
        usual = model.get('batch_norm', 'joint') == 'joint'
        return '' if usual else f', batch_norm {model["batch_norm"]}'
    parts = [model['name'], 'pretrained' if model['pretrained'] else 'from scratch']
    for key, usual in (('layer_rates', []), ('layer_decay', 1.0), ('unfreeze_step', 0)):
        if optimizer[key] != usual:
            parts.append(f'{key} {optimizer[key]}')
    parts += ['cached features'] * settings['data']['cache_features']
    parts += ['frozen statistics'] * model['frozen_statistics']
    return ', ' + ', '.join(parts)


def _cell(runs: list[dict], rule: str) -> str:
    return _mean([100 * run['test_accuracy'][rule] for run in runs if run['test_accuracy'][rule] is not None])


def _mean(values: list[float]) -> str:
    if not values:
        return ''
    spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{spread} ({len(values)})'


def transfer(results: list[dict]) -> list[str]:
    """Returns the lines of a table of what features learned without labels are worth (train/transfer.py)."""
    keys = {'neighbours': 'nearest neighbours', 'linear_probe': 'linear probe', 'finetune': 'fine-tuning'}
    cells: dict[tuple, dict[int, dict]] = {}  # by seed: random weights are the same beside every method
    for result in results:
        settings = result['settings']
        for row in result.get('transfer', []):
            start = _name(settings['methods']) if row['start'] == 'pretrained' else 'random'
            cells.setdefault((settings['data']['name'], row['labels'], start), {})[settings['seed']] = row
    lines = ['| data, labels | start | ' + ' | '.join(keys.values()) + ' |', '|---|---|' + '---|' * len(keys)]
    for (data, labels, start), rows in sorted(cells.items(), key=lambda cell: cell[0][:2]):
        values = ' | '.join(_mean([100 * row[key] for row in rows.values()]) for key in keys)
        lines.append(f'| {data}, {labels} | {start} | {values} |')
    return [*lines, ''] if cells else []


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+')
    parser.add_argument('--write', type=pathlib.Path, help='file to write the results to, one a line')
    args = parser.parse_args()
    results = read(args.files)
    if args.write:
        args.write.write_text(''.join(json.dumps(result) + '\n' for result in results))
    print('\n'.join(transfer(results) or tables(results)))


if __name__ == '__main__':
    main()
