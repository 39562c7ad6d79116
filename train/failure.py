"""One line instead of what JAX's C++ code writes to standard error when another process of a run is gone.

JAX then ends this process by abort(), after a page of text, and has no setting or callback for it that works from
Python. So its text goes through this filter, a process that outlives the abort. Started by train/processes.py, never
by hand: it reads the text from standard input and imports nothing that takes time.
"""

import re
import signal
import sys

LINE = (
    'error: Another process of this run has ended or cannot be reached; what it wrote says why. '
    'The same command, in all processes, continues from the last checkpoint.'
)
LOST = re.compile(rb'[EF]\d{4} .*(coordination|distributed service)')  # a line of JAX's coordination service


def main() -> None:
    """Copies lines from standard input to standard error, but for LINE nothing from the first on that matches LOST.

    Nothing follows LINE itself, either, which train/processes.py writes where it notices first.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # they are for the process whose text this is
        signal.signal(number, signal.SIG_IGN)
    for text in sys.stdin.buffer:
        lost = LOST.match(text)
        sys.stderr.buffer.write(f'{LINE}\n'.encode() if lost else text)
        sys.stderr.buffer.flush()
        if lost or text.startswith(LINE.encode()):
            sys.stdin.buffer.read()  # to its end: who writes it must not stop at a closed pipe
            return


if __name__ == '__main__':
    main()
