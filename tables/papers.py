"""Published results, as printed beside ours: numbers, where they are from, and the protocol they were reached under.

Rows and columns are called as in configs/tables. A protocol's tags and words are those of tables/record.py, so that
what differs from ours can be listed. Left out are numbers that could not be confirmed (Pi-Model, Pseudo-Label and Mean
Teacher of FixMatch's table), and USB's Mean Teacher, whose unlabeled loss was always zero.
"""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Paper:
    """A published table."""

    title: str
    source: str
    protocol: Mapping[str, str | Mapping[str, str]]  # {tag: text}, or {tag: {data set: text, '': for the others}}
    error: bool  # error rates in %; else accuracies
    results: Mapping[str, Mapping[str, str]]  # {row: {column: '13.81±3.37', or '74.1' where no spread is given}}


def _by_labels(text: str) -> dict[str, dict[str, str]]:
    """Reads blocks of a data set's name and numbers of labels, and below it a row a line; as `_table` for the rest."""
    results: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in text.strip().splitlines():
        if ':' in line:
            data, *numbers = re.split(r':?\s+', line.strip())
            columns = [f'{data}, {number} labels' for number in numbers]
        else:
            for name, found in _table(columns, line).items():
                results.setdefault(name, {}).update(found)
    return results


def _table(columns: list[str], text: str) -> dict[str, dict[str, str]]:
    """Reads a row a line, its name and numbers set apart by two blanks or more."""
    results = {}
    for line in text.strip().splitlines():
        name, *numbers = re.split(r'\s{2,}', line.strip())
        results[name] = dict(zip(columns, numbers, strict=True))
    return results


_WIDE = {'': 'WRN-28-2', 'CIFAR-100': 'WRN-28-8', 'STL-10': 'WRN-37-2'}
_EXTRA = {'': 'balanced', 'SVHN': 'balanced, with the extra images, mirrored'}
_TORCHSSL = 'torchssl (weak: methods without a strong view)'

PAPERS = {
    'fixmatch': Paper(
        title='FixMatch, table 2',
        source=(
            'Sohn et al. 2020, arXiv:2001.07685, table 2 (FixMatch with RandAugment), second-hand: FixMatch on CIFAR '
            'as in the README of github.com/kekmodel/FixMatch-pytorch at 040be3b, the rest as in a summary of the paper'
        ),
        protocol={
            'augmentation': 'google (CTAugment: ReMixMatch; weak: MixMatch)',
            'split': {'': 'balanced', 'SVHN': 'proportional', 'STL-10': "the data set's own folds"},
            'backbone': _WIDE,
            'steps': '1048576',
            'seeds': '5',
            'selection': 'median_last_20',
        },
        error=True,
        results=_by_labels(
            """
    CIFAR-10:     40           250          4000
    MixMatch      47.54±11.50  11.05±0.86   6.42±0.10
    UDA           29.05±5.93   8.82±1.08    4.88±0.18
    ReMixMatch    19.10±9.64   5.44±0.05    4.72±0.13
    FixMatch      13.81±3.37   5.07±0.65    4.26±0.05
    CIFAR-100:    400          2500         10000
    MixMatch      67.61±1.32   39.94±0.37   28.31±0.33
    UDA           59.28±0.88   33.13±0.22   24.50±0.25
    ReMixMatch    44.28±2.06   27.43±0.31   23.03±0.56
    FixMatch      48.85±1.75   28.29±0.11   22.60±0.12
    SVHN:         40           250          1000
    MixMatch      42.55±14.53  3.98±0.23    3.50±0.28
    UDA           52.63±20.51  5.69±2.76    2.46±0.24
    ReMixMatch    3.34±0.20    2.92±0.48    2.65±0.08
    FixMatch      3.96±2.17    2.48±0.38    2.28±0.11
    STL-10:       1000
    MixMatch      10.41±0.61
    UDA           7.66±0.56
    ReMixMatch    5.23±0.45
    FixMatch      7.98±1.50
    """
        ),
    ),
    'torchssl': Paper(
        title='TorchSSL',
        source=(
            'README of github.com/TorchSSL/TorchSSL at f26e1d4, accuracies there turned into errors; it calls the '
            'spread a standard error'
        ),
        protocol={
            'augmentation': _TORCHSSL,
            'split': _EXTRA,
            'backbone': _WIDE,
            'steps': '1048576',
            'seeds': '3',
            'selection': 'best_on_test',
        },
        error=True,
        results=_by_labels(
            """
    CIFAR-10:     40           250          4000
    Pi-Model      74.34±1.76   46.24±1.29   13.13±0.59
    Pseudo-Label  74.61±0.26   46.49±2.20   15.08±0.19
    Mean Teacher  70.09±1.60   37.46±3.30   8.10±0.21
    VAT           74.66±2.12   41.03±1.79   10.51±0.12
    MixMatch      36.19±6.48   13.63±0.59   6.66±0.26
    ReMixMatch    9.88±1.03    6.30±0.05    4.84±0.01
    UDA           10.62±3.75   5.16±0.06    4.29±0.07
    FixMatch      7.47±0.28    4.86±0.05    4.21±0.08
    FlexMatch     4.97±0.06    4.98±0.09    4.19±0.01
    CIFAR-100:    400          2500         10000
    Pi-Model      86.96±0.80   58.80±0.66   36.65±0.00
    Pseudo-Label  87.45±0.85   57.74±0.28   36.55±0.24
    Mean Teacher  81.11±1.44   45.17±1.06   31.75±0.23
    VAT           85.20±1.40   46.84±0.79   32.14±0.19
    MixMatch      67.59±0.66   39.76±0.48   27.78±0.29
    ReMixMatch    42.75±1.05   26.03±0.35   20.02±0.27
    UDA           46.39±1.59   27.73±0.21   22.49±0.23
    FixMatch      46.42±0.82   28.03±0.16   22.20±0.12
    FlexMatch     39.94±1.62   26.49±0.20   21.90±0.15
    STL-10:       40           250          1000
    Pi-Model      74.31±0.85   55.13±1.50   32.78±0.40
    Pseudo-Label  74.68±0.99   55.45±2.43   32.64±0.71
    Mean Teacher  71.72±1.45   56.49±2.75   33.90±1.37
    VAT           74.74±0.38   56.42±1.97   37.95±1.12
    MixMatch      54.93±0.96   34.52±0.32   21.70±0.68
    ReMixMatch    32.12±6.24   12.49±1.28   6.74±0.14
    UDA           37.42±8.44   9.72±1.15    6.64±0.17
    FixMatch      35.97±4.14   9.81±1.04    6.25±0.33
    FlexMatch     29.15±4.16   8.23±0.39    5.77±0.18
    SVHN:         40           250          1000
    Pi-Model      67.48±0.95   13.30±1.12   7.16±0.11
    Pseudo-Label  64.61±5.60   15.59±0.95   9.40±0.32
    Mean Teacher  36.09±3.98   3.45±0.03    3.27±0.05
    VAT           74.75±3.38   4.33±0.12    4.11±0.20
    MixMatch      30.60±8.39   4.56±0.32    3.69±0.37
    ReMixMatch    24.04±9.13   6.36±0.22    5.16±0.31
    UDA           5.12±4.27    1.92±0.05    1.89±0.01
    FixMatch      3.81±1.18    2.02±0.02    1.96±0.03
    FlexMatch     8.19±3.20    6.59±2.29    6.72±0.30
    """
        ),
    ),
    'usb': Paper(
        title='USB',
        source='results/classic_cv.csv of github.com/microsoft/Semi-supervised-learning at 1ef4cbe',
        protocol={
            'augmentation': _TORCHSSL,
            'split': _EXTRA,
            'backbone': 'WRN-28-2',
            'steps': '1048576',
            'seeds': '3',
            'selection': 'best_on_test',
        },
        error=True,
        results=_by_labels(
            """
    CIFAR-10:     40           250          4000
    Supervised    77.58±1.82   55.96±1.95   15.51±0.18
    Pseudo-Label  76.29±1.08   48.28±2.10   14.90±0.20
    Pi-Model      75.56±2.02   47.69±1.52   12.80±0.09
    VAT           76.42±2.57   42.58±6.67   10.97±0.19
    MixMatch      70.67±1.25   37.28±0.61   7.38±0.06
    ReMixMatch    14.50±2.58   9.21±0.55    4.88±0.05
    AdaMatch      5.05±0.04    5.01±0.11    4.29±0.06
    UDA           8.01±1.34    5.12±0.15    4.32±0.07
    FixMatch      8.33±1.41    4.97±0.05    4.29±0.10
    FlexMatch     5.21±0.36    5.00±0.05    4.28±0.05
    Dash          15.01±3.70   5.13±0.26    4.35±0.09
    CoMatch       5.44±0.05    5.33±0.12    4.29±0.04
    SimMatch      5.18±0.15    4.99±0.12    4.51±0.08
    FreeMatch     4.97±0.09    4.85±0.10    4.14±0.19
    SoftMatch     5.06±0.02    4.84±0.10    4.27±0.12
    SVHN:         40           250          1000
    Supervised    82.21±1.72   25.70±2.42   12.46±0.45
    Pseudo-Label  75.95±3.39   16.60±1.13   9.33±0.58
    Pi-Model      77.38±5.36   13.55±0.42   7.24±0.19
    VAT           77.00±6.59   4.59±0.13    4.09±0.21
    MixMatch      79.63±5.78   3.71±0.20    3.12±0.09
    ReMixMatch    31.27±18.79  6.38±1.09    5.34±0.45
    AdaMatch      2.32±0.17    2.14±0.10    2.04±0.02
    UDA           2.03±0.02    2.03±0.03    1.96±0.01
    FixMatch      2.08±0.08    1.99±0.05    2.00±0.04
    FlexMatch     3.36±0.37    5.02±1.20    5.43±0.46
    Dash          2.08±0.09    1.97±0.01    2.03±0.03
    CoMatch       9.51±5.59    2.21±0.20    1.96±0.07
    SimMatch      3.19±0.74    2.26±0.11    2.08±0.06
    FreeMatch     3.79±0.03    4.09±0.66    4.31±0.00
    SoftMatch     2.31±0.00    2.15±0.05    2.08±0.04
    CIFAR-100:    400          2500         10000
    Supervised    89.87±0.47   61.25±0.54   38.99±0.14
    Pseudo-Label  87.15±0.87   59.09±0.61   38.86±0.09
    Pi-Model      87.13±1.25   60.08±0.61   39.10±0.16
    VAT           83.11±0.27   53.17±0.57   36.58±0.21
    MixMatch      79.95±0.29   49.58±0.62   32.10±0.13
    ReMixMatch    57.10±0.00   34.77±0.32   26.18±0.23
    AdaMatch      47.82±1.48   33.26±0.55   27.53±0.12
    UDA           53.44±2.06   34.37±0.28   27.52±0.10
    FixMatch      53.37±2.15   34.29±0.43   28.28±0.18
    FlexMatch     50.15±1.51   33.35±0.33   27.12±0.04
    Dash          53.98±2.31   34.47±0.12   27.72±0.13
    CoMatch       60.98±0.77   37.24±0.24   28.15±0.16
    SimMatch      48.82±1.07   32.54±0.27   26.42±0.18
    FreeMatch     49.24±2.16   32.79±0.21   27.17±0.11
    SoftMatch     49.64±1.46   33.05±0.05   27.26±0.03
    """
        ),
    ),
    'tllib_digits': Paper(
        title='TLlib, digits',
        source='docs/dalib/benchmarks/image_classification.rst, github.com/thuml/Transfer-Learning-Library at 40df20b',
        protocol={
            'augmentation': 'weak',
            'split': 'all labels',
            'backbone': 'dtn (SVHN -> MNIST) / lenet (MNIST -> USPS; USPS -> MNIST)',
            'steps': '50000',
            'seeds': '1',
            'selection': 'best_on_test',
            'test images': 'inductive',
        },
        error=False,
        results=_table(
            ['SVHN -> MNIST', 'MNIST -> USPS', 'USPS -> MNIST'],
            """
    Source only   74.1    82.1    74.6
    DANN          90.8    91.7    95.2
    DAN           82.1    86.0    89.5
    JAN           90.3    84.0    86.8
    CDAN          93.8    96.0    97.7
    MCC           76.6    95.1    94.6
    """,
        ),
    ),
    'ganin': Paper(
        title='DANN, Ganin et al.',
        source='README of github.com/wogong/pytorch-dann at f81f06d, which quotes Ganin and Lempitsky, ICML 2015',
        protocol={'split': 'all labels', 'backbone': 'small networks of their own'},
        error=False,
        results=_table(
            ['MNIST -> MNIST-M', 'SVHN -> MNIST'],
            """
    Source only   52.25   54.90
    DANN          76.66   73.85
    """,
        ),
    ),
    'tllib_office31': Paper(
        title='TLlib, Office-31',
        source=(
            'README of examples/domain_adaptation/image_classification, github.com/thuml/Transfer-Learning-Library at '
            'c4aa59e; steps from the scripts there'
        ),
        protocol={
            'augmentation': "weak (timm's RandAugment: FixMatch)",
            'split': 'all labels',
            'backbone': 'resnet50',
            'steps': '2500 (Source only) / 20000 (DANN; CDAN; FixMatch) / 10000 (MCC; DAN; JAN)',
            'seeds': '1 (3 for adversarial methods)',
            'selection': 'best_on_test',
            'test images': 'transductive',
        },
        error=False,
        results=_table(
            ['A -> W', 'D -> W', 'W -> D', 'A -> D', 'D -> A', 'W -> A'],
            """
    Source only   75.8    95.5    99.0    79.3    63.6    63.8
    DANN          91.4    97.9    100     83.6    73.3    70.4
    DAN           84.2    98.4    100     87.3    66.9    65.2
    JAN           93.7    98.4    100     89.4    69.2    71.0
    CDAN          93.8    98.5    100     89.9    73.4    70.4
    MCC           94.1    98.4    99.8    95.6    75.5    74.2
    FixMatch      86.4    98.2    100     95.4    70.0    68.1
    """,
        ),
    ),
    'rotnet': Paper(
        title='RotNet with few labels',
        source=(
            'RotNet + convolutions (Gidaris et al. 2018, arXiv:1803.07728) on CIFAR-10, 200 epochs of rotations, as '
            'quoted by a survey of autoencoding transformations'
        ),
        protocol={
            'backbone': 'NIN',
            'steps': '78000',
            'evaluation': 'a block of convolutions on the features of the second block',
        },
        error=True,
        results=_table(
            ['200 labels', '1000 labels', '4000 labels', '10000 labels', '50000 labels'],
            """
    Rotation      35.37   24.72   17.16   13.57   8.05
    """,
        ),
    ),
    'solo_learn': Paper(
        title='solo-learn',
        source='README of github.com/vturrisi/solo-learn at 9187ea3, CIFAR-10, one run each',
        protocol={
            'augmentation': 'crops with colour jitter, gray and blur',
            'backbone': 'resnet18_small',
            'steps': '195000 (1000 epochs)',
            'seeds': '1',
            'evaluation': 'linear_probe, trained along',
        },
        error=False,
        results=_table(
            ['50000 labels'],
            """
    SimCLR        90.74
    SimSiam       90.51
    BYOL          92.58
    """,
        ),
    ),
    'lightly': Paper(
        title='lightly',
        source=(
            'docs/source/getting_started/benchmarks.rst of github.com/lightly-ai/lightly at e8d317f, CIFAR-10, 200 '
            'epochs of batches of 128'
        ),
        protocol={
            'augmentation': 'crops with colour jitter, no blur',
            'backbone': 'resnet18_small',
            'steps': '78000',
            'seeds': '1',
            'evaluation': 'neighbours, k 200, best epoch on test',
        },
        error=False,
        results=_table(
            ['50000 labels'],
            """
    SimCLR        84.7
    SimSiam       81.9
    BYOL          86.9
    """,
        ),
    ),
}
