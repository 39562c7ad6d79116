"""Says what is wrong with a folder of pictures, what training does about it, and what to do. It changes nothing.

python -m data.check photos/                        the exit status is 1 where training would not be what it seems
python -m data.check photos/ --json                 the same for programs, with every file
python -m data.check photos/ --files=unreadable     the files of one kind, one a line
"""

import argparse
import collections
import dataclasses
import json
import shlex
import sys

from data.pictures import rules
from errors import UserError, unknown

LISTED = 3  # files that are named of each kind


def report(name: str, pictures: rules.Pictures) -> str:
    """Returns the report on a folder, for people to read."""
    lines = [f'{name}: {rules.summary(pictures)}', '']
    counts = collections.Counter((entry.label, entry.split) for entry in pictures.entries)
    width = max([len(label) for label in pictures.classes], default=0)
    for label in pictures.classes:
        parts = [f'{counts[label, split]:5} {split}' for split in rules.SPLITS if counts[label, split]]
        lines.append(f'  {label:{width}} {", ".join(parts)}')
    for finding in pictures.findings:
        kind = rules.KINDS[finding.kind]
        pairs = zip(finding.files, finding.details, strict=True)
        some = [_shown(file) + f' ({_shown(detail)})' * bool(detail) for file, detail in pairs]
        more = f' and {len(some) - LISTED} more' * (len(some) > LISTED)
        text = f'{len(some)} {kind.what}: {", ".join(some[:LISTED])}{more}' if finding.files[0] else kind.what + some[0]
        lines += ['', f'{finding.level}: {text}']
        lines += [f'  Training {kind.rule}.'] * bool(kind.rule) + [f'  To do: {mend(name, finding)}'] * bool(kind.mend)
    return '\n'.join(lines)


def _shown(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def mend(name: str, finding: rules.Finding) -> str:
    """Returns what to do about a finding."""
    quoted = shlex.quote(name)
    move = f"python -m data.check {quoted} --files='{finding.kind}' | (cd {quoted} && xargs -d '\\n' mv -t ELSEWHERE)"
    return rules.KINDS[finding.kind].mend.format(name=quoted, move=move)


def main(args: list[str] | None = None) -> int:
    """Runs the command line, returns the exit status."""
    parser = argparse.ArgumentParser(
        'python -m data.check', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', help='folder of pictures, or a CSV file of paths, labels and maybe splits')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument('--files', metavar='KIND', help='print the files of one kind')
    flags = parser.parse_args(args)
    try:
        if flags.files and flags.files not in rules.KINDS:
            raise unknown('kind', flags.files, rules.KINDS)
        pictures = rules.examine(flags.folder)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    findings = {finding.kind: finding for finding in pictures.findings}
    if flags.files:
        sys.stdout.reconfigure(errors='surrogateescape')  # type: ignore[union-attr]  # names may be any bytes
        for file in findings[flags.files].files if flags.files in findings else ():
            print(file)
    elif flags.json:
        print(
            json.dumps(
                {
                    'classes': pictures.classes,
                    'findings': [dataclasses.asdict(f) | {'level': f.level} for f in pictures.findings],
                },
                indent=2,
            )
        )
    else:
        print(report(flags.folder, pictures))
    return int(any(finding.level != rules.NOTE for finding in pictures.findings))


if __name__ == '__main__':
    sys.exit(main())
