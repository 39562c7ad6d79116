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
        column = f'{settings["data"]["name"]}, {settings["data"]["labels"]}'
        cells.setdefault((_name(settings['methods']) + _network(settings), column), []).append(result)
    for runs in cells.values():
        if len({json.dumps({**run['settings'], 'seed': None}, sort_keys=True) for run in runs}) > 1:
            raise SystemExit(f'Runs of {runs[0]["settings"]["methods"]} differ in more than the seed.')
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = sorted({column for _, column in cells}, key=lambda c: (c.split(',')[0], int(c.split(',')[1])))
    lines = []
    for rule, title in RULES.items():
        lines += [f'| {title} | ' + ' | '.join(columns) + ' |', '|---|' + '---|' * len(columns)]
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
        return ''
    parts = [model['name'], 'pretrained' if model['pretrained'] else 'from scratch']
    for key, usual in (('layer_rates', []), ('layer_decay', 1.0), ('unfreeze_step', 0)):
        if optimizer[key] != usual:
            parts.append(f'{key} {optimizer[key]}')
    parts += ['cached features'] * settings['data']['cache_features']
    parts += ['frozen statistics'] * model['frozen_statistics']
    return ', ' + ', '.join(parts)


def _cell(runs: list[dict], rule: str) -> str:
    values = [100 * run['test_accuracy'][rule] for run in runs]
    if not values:
        return ''
    spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{spread} ({len(values)})'


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+')
    parser.add_argument('--write', type=pathlib.Path, help='file to write the results to, one a line')
    args = parser.parse_args()
    results = read(args.files)
    if args.write:
        args.write.write_text(''.join(json.dumps(result) + '\n' for result in results))
    print('\n'.join(tables(results)))


if __name__ == '__main__':
    main()
