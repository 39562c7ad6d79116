"""What all benchmarks share: rounds in random order, and a warning if other programs were running."""

import math
import os
import random
import time
from collections.abc import Callable, Mapping

BUSY = 0.1  # cores used by others from which figures do not count
SETTLE_SECONDS = 0.5  # until the threads of the contestant before have stopped spinning
_WATCH_SECONDS = 0.5


def measure(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Lets every contestant run once in each round, in random order, and prints how busy other programs were.

    Args:
        contestants: {name: function that does the work once and returns what it measured}.
        rounds: How often each one runs.

    Returns:
        {name: what it measured, a list over the rounds}.
    """
    results: dict[str, list[float]] = {name: [] for name in contestants}
    busy = []
    for _ in range(rounds):
        time.sleep(SETTLE_SECONDS)
        busy.append(busy_cores())
        for name in random.sample(list(contestants), len(contestants)):
            results[name].append(contestants[name]())
    print(verdict(sum(busy) / rounds))
    return results


def busy_cores() -> float:
    """Returns how many cores are in use while this process sleeps, NaN where the system does not say (not Linux)."""
    try:
        before, start = _cpu_seconds(), time.perf_counter()
        time.sleep(_WATCH_SECONDS)
        return (_cpu_seconds() - before) / (time.perf_counter() - start)
    except OSError:
        return float('nan')


def _cpu_seconds() -> float:
    """Returns the time that all cores together have been busy since boot, that of other virtual machines included."""
    with open('/proc/stat') as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')


def verdict(busy: float) -> str:
    """Returns the line that says whether the figures count, for so many cores used by others between the rounds."""
    if math.isnan(busy):
        return 'How busy other programs were is not known here: make sure that nothing else runs.'
    share = f'other programs used {busy:.1f} of {os.cpu_count()} cores between the rounds'
    return f'NOT IDLE, these figures do not count: {share}.' if busy > BUSY else f'Idle: {share}.'
