"""Times the way from the command to the first step of configs/fixmatch.py, and its parts.

    python -m benchmarks.startup [--config=configs/fixmatch.py] [--rounds=3]

Each round runs the command twice, until its first step is done: with an empty compilation cache, and with the one that
is then there. Seconds are medians over the rounds. The first rows follow one another and add up to the whole. The last
are what JAX says of all of them together: tracing Python, lowering to StableHLO, compiling or reading from the cache.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from benchmarks import rounds

PHASES = ('imports', 'config', 'data and network', 'checks', 'initial state', 'first step')
EVENTS = {
    '/jax/core/compile/jaxpr_trace_duration': 'tracing',
    '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lowering',
    '/jax/core/compile/backend_compile_duration': 'compiling or reading',
}


class _Done(BaseException):
    """Ends the run after its first step."""


def child(began: float, arguments: Sequence[str]) -> dict[str, float]:
    """Runs main.py up to the first step.

    Args:
        began: When the command was given, by time.time().
        arguments: Of main.py.

    Returns:
        {part: seconds}.
    """
    from train import startup

    startup.use_huge_pages()
    import jax

    import main
    from train import loop, run, step
    from train.log import Log

    times: dict[str, float] = {}
    seconds: collections.Counter[str] = collections.Counter()
    last = began

    def passed(phase: str) -> None:
        nonlocal last
        if threading.current_thread() is threading.main_thread():  # the loop compiles in another one
            times[phase], last = time.time() - last, time.time()

    def after(module, name: str, phase: str, before: str = '') -> None:
        inner = getattr(module, name)

        def timed(*args, **kwargs):
            if before:
                passed(before)
            result = inner(*args, **kwargs)
            passed(phase)
            return result

        setattr(module, name, timed)

    def first(log, number, metrics):
        jax.block_until_ready(metrics)
        passed('first step')
        times['in all'] = time.time() - began
        raise _Done

    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: seconds.update({EVENTS[event]: duration} if event in EVENTS else {})
    )
    passed('imports')
    after(run, 'prepare', 'data and network', before='config')
    after(step, 'check', 'checks')
    after(loop, '_latest_or_new', 'initial state')
    Log.step = first  # type: ignore[method-assign]
    with contextlib.suppress(_Done), contextlib.redirect_stdout(io.StringIO()):
        main._parse_flags(['main.py', *arguments])
        main.main(['main.py'])
    return {phase: times[phase] for phase in (*PHASES, 'in all')} | {name: seconds[name] for name in EVENTS.values()}


def measure(arguments: Sequence[str], cache: pathlib.Path) -> dict[str, float]:
    """Returns {part: seconds} of a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, '-m', 'benchmarks.startup', f'--child={time.time()}')
        given = (*arguments, f'--workdir={folder}/run')
        environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': f'{cache}'}
        process = subprocess.run((*command, *given), stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/fixmatch.py', help='(default: configs/fixmatch.py)')
    parser.add_argument('--rounds', type=int, default=3, help='measured rounds (default: 3)')
    parser.add_argument('--child', type=float, help=argparse.SUPPRESS)
    args, more = parser.parse_known_args(arguments)
    given = (f'--config={args.config}', *more)
    if args.child:
        print(json.dumps(child(args.child, given)))
        return
    measured: dict[str, list[dict[str, float]]] = {'empty cache': [], 'warm cache': []}
    busy = []
    for _ in range(args.rounds):
        busy.append(rounds.busy_cores())
        with tempfile.TemporaryDirectory() as cache:
            for values in measured.values():
                values.append(measure(given, pathlib.Path(cache)))
    print(rounds.verdict(statistics.mean(busy)))
    print(f'{"seconds":<24}' + ''.join(f'{name:>13}' for name in measured))
    for name in (*PHASES, 'in all', *EVENTS.values()):
        figures = (statistics.median(part[name] for part in values) for values in measured.values())
        print(f'{name:<24}' + ''.join(f'{figure:>13.1f}' for figure in figures))


if __name__ == '__main__':
    main()
