"""Prints the test accuracy of finished runs, mean and standard deviation over seeds, as a Markdown table.

    python -m benchmarks.table results/digits/*.json

Takes result.json files. Runs whose settings are equal but for the seed make up a row; every run counts.
"""

import json
import math
import pathlib
import statistics
import sys


def rows(results: list[dict]) -> list[str]:
    """Returns the table's lines for the contents of result.json files."""
    groups: dict[str, list[dict]] = {}
    for result in results:
        settings = {**result['settings'], 'seed': None}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(result)
    lines = ['| methods | data, labels | last | median of last 20 | seconds | n |', '|---|---|---|---|---|---|']
    for runs in groups.values():
        settings = runs[0]['settings']
        columns = [[run['test_accuracy'][rule] for run in runs] for rule in ('last', 'median_last_20')]
        scores = [f'{100 * statistics.mean(c):.2f} ± {100 * _std(c):.2f}' for c in columns]
        seconds = math.ceil(max(run['seconds'] for run in runs))
        methods = ' + '.join(
            name + ''.join(f', {key} {value}' for key, value in fields.items())
            for name, fields in settings['methods'].items()
        )
        data = f'{settings["data"]["name"]}, {settings["data"]["labels"]}'
        lines.append(f'| {methods} | {data} | {scores[0]} | {scores[1]} | at most {seconds} | {len(runs)} |')
    return lines


def _std(values: list[float]) -> float:
    """The sample standard deviation (ddof 1), not a number for one value."""
    return statistics.stdev(values) if len(values) > 1 else float('nan')


if __name__ == '__main__':
    print('\n'.join(rows([json.loads(pathlib.Path(path).read_text()) for path in sys.argv[1:]])))
