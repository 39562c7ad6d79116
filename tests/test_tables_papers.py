"""The published tables are whole, and what they say of their protocols is in the words of ours.

That every number has a cell in a table of ours is in tests/test_tables_configs.py.
"""

import importlib
import pathlib

import pytest

from tables import record, report, spec
from tables.papers import PAPERS

_WITH_STRONG_VIEWS = {'augmentation', 'selection'}
_OTHER_NETWORK = {'backbone', 'evaluation', 'steps', 'seeds', 'augmentation'}

# {(table, paper): what differs between them}, from the papers and not from the code.
DIFFERENCES = {
    ('cifar10', 'fixmatch'): {'augmentation', 'seeds'},  # CTAugment in ReMixMatch
    ('cifar10', 'torchssl'): _WITH_STRONG_VIEWS,
    ('cifar10', 'usb'): _WITH_STRONG_VIEWS,
    ('cifar100', 'fixmatch'): {'augmentation', 'seeds'},
    ('cifar100', 'torchssl'): _WITH_STRONG_VIEWS,
    ('cifar100', 'usb'): _WITH_STRONG_VIEWS | {'backbone'},
    ('svhn', 'fixmatch'): {'augmentation', 'seeds'},
    ('svhn', 'torchssl'): _WITH_STRONG_VIEWS | {'split'},  # the extra images
    ('svhn', 'usb'): _WITH_STRONG_VIEWS | {'split'},
    ('stl10', 'fixmatch'): {'augmentation', 'seeds', 'split'},  # the folds
    ('stl10', 'torchssl'): _WITH_STRONG_VIEWS,
    ('digits_domains', 'tllib_digits'): {'seeds', 'selection'},
    ('digits_domains', 'ganin'): {'backbone'},
    ('office31', 'tllib_office31'): {'augmentation', 'seeds', 'selection'},
    ('cifar10_features', 'rotnet'): {'backbone', 'evaluation'},
    ('cifar10_features', 'solo_learn'): _OTHER_NETWORK,
    ('cifar10_features', 'lightly'): _OTHER_NETWORK - {'steps'},
}


def test_every_paper_is_whole():
    # 4 methods at 10 numbers of labels, 9 at 12, 15 at 9; 6 on 3 pairs, 2 on 2, 7 on 6; 1 at 5; 3.
    sizes = {name: sum(map(len, paper.results.values())) for name, paper in PAPERS.items()}
    assert sizes == {
        **{'fixmatch': 40, 'torchssl': 108, 'usb': 135},
        **{'tllib_digits': 18, 'ganin': 4, 'tllib_office31': 42},
        **{'rotnet': 5, 'solo_learn': 5, 'lightly': 4},
    }
    for name, paper in PAPERS.items():
        assert paper.source, name
        assert len({frozenset(numbers) for numbers in paper.results.values()}) == 1, name
        assert paper.settings.keys() <= paper.results.keys(), name


@pytest.mark.parametrize(
    ('name', 'weight'), [('cifar10', ''), ('cifar100', 'weight 150 instead of 100, '), ('svhn', '')]
)
def test_settings_of_a_paper_are_those_for_the_data_set(name, weight):
    table = spec.from_config(importlib.import_module(f'configs.tables.{name}').get_config())
    content = record.collect(table, spec.expand(table), pathlib.Path('nowhere'), {}, {})
    (usb,) = (paper for paper in content['papers'] if paper['title'] == 'USB')
    assert usb['settings']['MixMatch'] == f'{weight}one lambda of MixUp a batch, a ramp over 0.4 of training'
    assert ('FreeMatch' in usb['settings']) == (name == 'svhn')
    # FixMatch's own settings are those of our row: mixmatch.py of its code.
    rows = [run.settings.methods['mixmatch'] for run in spec.expand(table) if run.row == 'MixMatch']
    assert {(row['alpha'], row['weight']) for row in rows} == {(0.5, 100.0)}


@pytest.mark.parametrize('name', sorted({table for table, _ in DIFFERENCES}))
def test_what_is_equal_in_a_papers_protocol_is_not_listed_as_different(name):
    table = spec.from_config(importlib.import_module(f'configs.tables.{name}').get_config())
    content = record.collect(table, spec.expand(table), pathlib.Path('nowhere'), {}, {})
    differences = {
        (name, key): {text.split(':')[0] for text in report.differences(content, paper)}
        for key, paper in zip(table.papers, content['papers'], strict=True)
    }
    assert differences == {key: tags for key, tags in DIFFERENCES.items() if key[0] == name}
