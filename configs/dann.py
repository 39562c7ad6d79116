"""Domain adaptation: labels in one domain, images without labels in another; DANN and what it is compared with.

    python main.py --config=configs/dann.py                                          digits -> digits_m
    python main.py --config=configs/dann.py:methods=cdan+mcc
    python main.py --config=configs/dann.py:mnist,target=usps                        and usps, target=mnist
    python main.py --config=configs/dann.py:svhn_cropped,target=mnist                and mnist, target=mnist_m
    python main.py --config=configs/dann.py:office31/amazon,target=office31/webcam   and any other pair of them
    python main.py --config=configs/dann.py:office_home/art,target=office_home/clipart
    python main.py --config=configs/dann.py:visda/train,target=visda/validation
    python main.py --config=configs/dann.py:domainnet/real,target=domainnet/sketch

methods is one of, or several of with + between,

    source_only       labels of the source, nothing of the target
    adabn             the same, normalised and evaluated with the target's own statistics
    dann, cdan, mcc, coral, mmd (DAN), jan
    fixmatch, adamatch: as in their configs
    target            the upper bound: labels of the target, nothing of the source

Measured here: results/README.md. Published results are printed nowhere beside ours: TLlib (thuml), whose settings the
sets other than digits -> digits_m have, evaluates on the very images it adapts to (`--config.data.protocol=transductive`,
but for the digits) and reports the best epoch by their labels. Here the target's test images are new, a fifth of its
images where it has no test set, and the accuracy is the last one. No run on those sets has been made yet.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, fixmatch
from errors import UserError, unknown

_ADVERSARY = {'weight': 1.0, 'gamma': 10.0, 'widths': (1024, 1024), 'batch_norm': True}
_MMD = {'weight': 1.0, 'scales': (0.125, 0.25, 0.5, 1.0, 2.0)}

# {name: {method: hyper-parameters}}, beside the labeled term
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    'source_only': {},
    'adabn': {},
    'target': {},
    'dann': {'dann': _ADVERSARY},
    'cdan': {'cdan': {**_ADVERSARY, 'entropy': True, 'randomized': 0}},
    'mcc': {'mcc': {'weight': 1.0, 'temperature': 2.5}},
    'coral': {'coral': {'weight': 1.0, 'output': 'logits'}},
    'mmd': {'mmd': {**_MMD, 'joint': False}},
    'jan': {'mmd': {**_MMD, 'joint': True}},
    'fixmatch': {'fixmatch': {**fixmatch.get_config().methods.fixmatch, 'threshold': 0.9}},
    'adamatch': {'adamatch': {}},
}
