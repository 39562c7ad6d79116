"""Says what is wrong with a folder of pictures, what training does about it, and what to do. It changes nothing.

python -m deploy.check photos/                      the exit status is 1 where training would not be what it seems
python -m deploy.check photos/ --json               the same for programs, with every file
python -m deploy.check photos/ --files=unreadable   the files of one kind, one a line
python -m deploy.check photos/ --run=runs/NAME      also labels that are probably wrong
"""

import argparse
import collections
import dataclasses
import json
import shlex
import sys

from data import datasets
from data.pictures import folder as folder_lib
from data.pictures import rules
from deploy import finished, suspects
from errors import UserError, unknown


def report(name: str, pictures: rules.Pictures) -> str:
    """Returns the report on a folder, for people to read."""
    lines = [f'{name}: {rules.summary(pictures)}', '']
    counts = collections.Counter((entry.label, entry.split) for entry in pictures.entries)
    width = max([len(label) for label in pictures.classes], default=0)
    for label in pictures.classes:
        parts = [f'{counts[label, split]:5} {split}' for split in rules.SPLITS if counts[label, split]]
        lines.append(f'  {rules.shown(label):{width}} {", ".join(parts)}')
    for finding in pictures.findings:
        kind = rules.KINDS[finding.kind]
        lines += ['', rules.line(finding)]
        lines += [f'  Training {kind.rule}.'] * bool(kind.rule) + [f'  To do: {mend(name, finding)}'] * bool(kind.mend)
    return '\n'.join(lines)


def mend(name: str, finding: rules.Finding) -> str:
    """Returns what to do about a finding."""
    folder = shlex.quote(str(folder_lib.resolve(name)[0]))
    listed = f"python -m deploy.check {shlex.quote(name)} --files='{finding.kind}'"
    # A name may be there twice, from folders of two classes.
    move = f"{listed} | (cd {folder} && xargs -r -d '\\n' mv --backup=numbered -t ELSEWHERE --)"
    return rules.KINDS[finding.kind].mend.format(name=folder, move=move)


def main(args: list[str] | None = None) -> int:
    """Runs the command line, returns the exit status."""
    parser = argparse.ArgumentParser(
        'python -m deploy.check', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', help='folder of pictures, or a CSV file of paths, labels and maybe splits')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument('--files', metavar='KIND', help='print the files of one kind')
    parser.add_argument('--run', help='folder of a finished run on it, to look for wrong labels with')
    parser.add_argument('--fast', action='store_true', help='look for nearly equal pictures without a network')
    parser.add_argument('--data_dir', metavar='DIR', help='prepared data sets (default: $TFDS_DATA_DIR)')
    flags = parser.parse_args(args)
    try:
        if flags.files and flags.files not in rules.KINDS:
            raise unknown('kind', flags.files, rules.KINDS)
        pictures = rules.examine(flags.folder, None if flags.fast else suspects.near)
        if flags.run:
            run = finished.load(flags.run)
            if run.settings.data.name != flags.folder:
                raise UserError(f'{flags.run} was trained on {run.settings.data.name}, not on {flags.folder}.')
            pictures = _with_suspects(pictures, run, flags.data_dir)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    findings = {finding.kind: finding for finding in pictures.findings}
    if flags.files:
        sys.stdout.reconfigure(errors='surrogateescape')  # type: ignore[union-attr]  # names may be any bytes
        for file in findings[flags.files].files if flags.files in findings else ():
            print(file)
    elif flags.json:
        listed = [{'level': finding.level, **dataclasses.asdict(finding)} for finding in pictures.findings]
        print(json.dumps({'classes': pictures.classes, 'findings': listed}, indent=2))
    else:
        print(report(flags.folder, pictures))
    return int(any(finding.level != rules.NOTE for finding in pictures.findings))


def _with_suspects(pictures: rules.Pictures, run: finished.Finished, data_dir: str | None) -> rules.Pictures:
    data, streams = run.settings.data, run.streams(data_dir)
    found = suspects.labels(run, streams)
    if not found:
        return pictures
    files = datasets.load(data.name, data.train_split, data_dir, data.image_size).files
    names = run.class_names
    details = tuple(f'labeled {names[streams.labels[i]]}, looks like {names[guess]}' for i, guess in found)
    finding = rules.Finding('label', tuple(files[i] for i, _ in found), details)
    return dataclasses.replace(pictures, findings=(*pictures.findings, finding))


if __name__ == '__main__':
    sys.exit(main())
