"""One line instead of what JAX's C++ code writes to standard error when another process of a run is gone.

JAX then ends this process by abort(), after a page of text, and has no setting or callback for it that works from
Python. So its text goes through this filter, a process that outlives the abort. Started by train/processes.py, never
by hand: it reads the text from standard input and imports nothing that takes time.
"""

import re
import sys

# The start of a line of JAX's coordination service, or of a line from train/processes.py.
LOST = re.compile(rb'[EF]\d{4} .*(coordination|distributed service)')
LINE = (
    b'error: Another process of this run has ended or cannot be reached; what it wrote says why. '
    b'The same command, in all processes, continues from the last checkpoint.\n'
)


def main() -> None:
    """Copies lines from standard input to standard error up to the first that matches LOST, and writes LINE then."""
    for text in sys.stdin.buffer:
        lost = LOST.match(text)
        sys.stderr.buffer.write(LINE if lost else text)
        sys.stderr.buffer.flush()
        if lost:
            sys.stdin.buffer.read()  # to its end: who writes it must not stop at a closed pipe
            return


if __name__ == '__main__':
    main()
