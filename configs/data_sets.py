"""One record for each data set that has a recipe; any other one gets its record from the prepared data.

A new data set is a record in `RECORDS`, or nothing: after `python -m data.prepare NAME` every config takes it.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

from data.aliases import ALIASES
from data.pictures import folder
from data.splits import ALL
from methods.base import NO_GRAD, SEPARATE
from train.settings import Data, Settings, idle

SIDE = 64  # pixels that images are brought to where they differ in size, are not square or are larger than LARGEST
LARGEST = 96


def in_parts(split: str) -> tuple[str, str]:
    """Returns training and test images of a set that has only one split."""
    return f'{split}[:80%]', f'{split}[80%:]'


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """A recipe of domain adaptation, for a source.

    Attributes:
        settings: {setting: value} that all methods have, where it differs from the defaults.
        network: Name of the network, '' for the default.
        methods: {method of configs/dann.py: {setting: value}} that it has where it is the only one; of several, each
            has its 'methods.*'.
        ramp_steps: The adversarial lambda has gamma = steps / ramp_steps; 0 for the method's default.
    """

    settings: Mapping[str, Any]
    network: str = ''
    methods: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    ramp_steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """What configs know of a data set before it is read.

    Attributes:
        name: As `data.datasets.load` takes it; the record 'office31' is that of 'office31/amazon', too.
        classes: Number of classes.
        channels: 1 or 3.
        size: Side of the images in pixels; 0 where it has to be chosen.
        train: Number of training images, in the smallest domain where there are several.
        unlabeled: Number of further training images, without labels.
        unlabeled_split: Where they are; '' for none.
        mirrored: Whether a mirrored image may be of the same class.
        turned: Whether a turned image may be of the same class.
        mean: Of the pixels in [0, 1], that of every channel, for their normalisation.
        std: Their standard deviation, as `mean`.
        label_protocol: How labels are drawn, one of data.splits.PROTOCOLS.
        splits: Of training and test images.
        recipe: {setting: value} in which semi-supervised training differs from the FixMatch paper's for CIFAR-10; None
            for MINUTES.
        small: Whether that recipe is ours, for a run of minutes; methods have settings of their own for it.
        adaptation: Recipe of domain adaptation from this set; None for ours.
        known_labels: Number of labels where none is asked for; 0 for that which follows from the classes.
        validation_split: Of the images to select by; '' for none.
        note: On the images, for people to read.
    """

    name: str
    classes: int
    channels: int
    size: int
    train: int
    unlabeled: int = 0
    unlabeled_split: str = ''
    mirrored: bool = True
    turned: bool = True
    mean: float = Data.mean[0]
    std: float = Data.std[0]
    label_protocol: str = Data.label_protocol
    splits: tuple[str, str] = ('train', 'test')
    recipe: Mapping[str, Any] | None = None
    small: bool = True
    adaptation: Adaptation | None = None
    known_labels: int = 0
    validation_split: str = ''
    note: str = ''

    @property
    def side(self) -> int:
        """Side of the images in training, in pixels."""
        return self.size or SIDE

    @property
    def natural(self) -> bool:
        """Whether these are pictures in colour, as those of published weights, and not known as characters."""
        return self.channels == 3 and self.mirrored

    @property
    def labels(self) -> int:
        """Number of labels where none is asked for."""
        return self.known_labels or (20 if 20 % self.classes == 0 else 4 * self.classes)

    @property
    def summary(self) -> str:
        """Classes and images, for people to read."""
        size = f'{self.size}x{self.size} pixels, ' if self.size else ''
        note = f'; {self.note}' if self.note else ''
        return f'{self.classes} classes, {size}{"gray" if self.channels == 1 else "RGB"}{note}'

    def least_crop(self, published: float) -> float:
        """Returns the least area of a random crop, as a fraction of the image: the published one, if it shows enough.

        That is 5x5 pixels, and of a character, which is told by its parts, at least a fifth.
        """
        return max(published, 25 / self.side**2, 0.0 if self.mirrored else 0.2)

    @property
    def settings(self) -> dict[str, Any]:
        """{setting: value} that follow from the images."""
        return {
            'data.name': self.name,
            'data.image_size': 0 if self.size else SIDE,
            'data.label_protocol': self.label_protocol,
            **self.normalisation(self.channels),
            'data.weak.flip': self.mirrored,
            **augmentation(self.side),
            'data.distorted.scale': (self.least_crop(0.2), 1.0),
        }

    def normalisation(self, channels: int) -> dict[str, tuple[float, ...]]:
        """Returns the settings of normalisation; gray images have three channels beside a domain in colour."""
        return {'data.mean': (self.mean,) * channels, 'data.std': (self.std,) * channels}


def augmentation(side: int) -> dict[str, int]:
    """Returns the settings of augmentation for images of that side in pixels, in proportion to those of CIFAR-10."""
    return {
        'data.weak.pad': side // 8,
        'data.strong.translate': round(side * 10 / 32),
        'data.strong.cutout': side // 2,
    }


def at(side: int) -> dict[str, int]:
    """Returns the settings for images that are brought to that side in pixels before they are augmented."""
    return {'data.image_size': side, **augmentation(side), 'model.resolution': side}


def get(name: str) -> DataSet:
    """Returns the record of a data set, made from the prepared data where `RECORDS` has none.

    Raises:
        UserError: There is no such data set, it is not prepared, or it is not of images with one label each.
    """
    if (record := _recorded(name)) is not None:
        return record
    from data import datasets  # only now: tfds takes a while to import

    info = datasets.describe(name)
    height, width, channels = info.shape
    train = 'train' if 'train' in info.splits else max(info.splits, key=lambda split: info.splits[split])
    test = next((split for split in ('test', 'validation') if split in info.splits and split != train), None)
    own: dict[str, Any] = {}
    if info.summary:  # a folder of pictures: all labels that there are, and every part of it
        own = {split: split if split in info.splits else '' for split in ('unlabeled', 'validation')}
        own = {f'{split}_split': value for split, value in own.items()}
        own |= {'known_labels': ALL, 'unlabeled': info.splits.get('unlabeled', 0), 'note': info.summary}
    return DataSet(
        name=name,
        classes=info.num_classes,
        channels=channels,
        size=height if height == width and height and height <= LARGEST else 0,
        train=info.splits[train] if test else round(0.8 * info.splits[train]),
        mirrored=channels == 3,  # sets of gray images are mostly of characters
        label_protocol='proportional',  # a class may have few images, or none
        splits=(train, test) if test else in_parts(train),
        **own,
    )


def assumed(settings: Settings) -> str:
    """Returns one line on what a run assumes of data sets without a recipe, '' where there is none.

    Args:
        settings: Settings of the run. Of what follows from the data, the line has what they agree with and use.
    """
    # Only domain adaptation has the schedule 'inverse'; its recipes are others.
    adapts = settings.data.target or settings.optimizer.schedule == 'inverse'
    records = []
    for name in filter(None, (settings.data.name, settings.data.target)):
        record = _recorded(name)
        if record is None or (record.recipe is None and not adapts):
            records.append(record or get(name))
    if not records:
        return ''
    recipe = MINUTES_OF_ADAPTATION.settings if adapts else MINUTES
    follows = {**records[0].settings, 'data.labels': records[0].labels, 'steps': recipe['steps']}
    del follows['data.name']
    if records[0].size:
        del follows['data.image_size']
    elif settings.data.image_size == LARGEST:  # from pretrained weights
        follows |= {key: value for key, value in at(LARGEST).items() if key != 'model.resolution'}
    if records[0].natural and settings.model.get('frozen_statistics'):
        follows['model.frozen_statistics'] = True
    values, without_effect = dataclasses.asdict(settings), idle(settings).keys()
    agreed = [
        f'{name}={value}'
        for name, value in follows.items()
        if functools.reduce(operator.getitem, name.split('.'), values) == value
        and not without_effect & {name, name.rpartition('.')[0]}
    ]
    images = ' and '.join(f'{record.name} ({record.summary})' for record in records)
    return f'{images}: no recipe in configs/data_sets.py, assumed {", ".join(agreed)}'


def _recorded(name: str) -> DataSet | None:
    """Returns the record of a data set, or of that which it is a domain of; None if `RECORDS` has none."""
    if folder.is_folder(name):
        return None
    name = ALIASES.get(name, name)
    record = RECORDS.get(name) or RECORDS.get(name.partition('/')[0])
    return record and dataclasses.replace(record, name=name)


# --- Recipes. Ours take minutes on two cores.

MINUTES = {
    'steps': 1000,
    'batch_size': 16,
    'data.unlabeled_ratio': 3,
    'model.blocks': (1, 1, 1),
    'model.width': 1,
    'model.bn_momentum': 0.99,
    'ema_decay': 0.99,
    'log_steps': 25,
    'eval_steps': 50,
    'checkpoint_steps': 250,
}
# From pretrained weights, on every small data set. Images get the side in pixels that the network sees before they are
# augmented: strong views of thumbnails that are enlarged afterwards are not what the weights know.
PRETRAINED = {
    'steps': 300,
    'batch_size': 16,
    'data.unlabeled_ratio': 3,
    **at(SIDE),
    'model.crop': 1.0,
    'model.frozen_statistics': False,
    'optimizer.learning_rate': 0.02,
    'optimizer.cosine_cycles': 0.5,
    'optimizer.weight_decay': 0.0,
    'ema_decay': 0.0,
    'log_steps': 10,
    'eval_steps': 50,
    'checkpoint_steps': 150,
}
# Beside it, on pictures in colour, whose running statistics the weights know.
NATURAL = {
    'data.unlabeled_ratio': 1,
    'model.frozen_statistics': True,
    'optimizer.learning_rate': 0.001,
}
TEACHER_DECAY = 0.95  # of methods that learn from the averaged network: it follows a short training
PRETRAINED_ADAPTATION = {
    'batch_size': 32,
    'data.unlabeled_ratio': 1,
}
_DIGITS = MINUTES | {
    'steps': 2000,
    'batch_size': 8,
    'model.width': 2,
    'optimizer.weight_decay': 2e-3,
    'log_steps': 50,
    'checkpoint_steps': 500,
}
_ADAPTATION = {
    'steps': 1500,
    'batch_size': 32,
    'data.unlabeled_ratio': 1,
    'optimizer.weight_decay': 1e-3,
    'eval_steps': 100,
    'checkpoint_steps': 500,
}
# Methods that are not trained on the weak view, a third less work, and an average that follows a short training.
_MINUTES_METHODS: dict[str, dict[str, Any]] = {
    'fixmatch': {'methods.fixmatch.statistics': NO_GRAD},
    'adamatch': {'methods.adamatch.statistics': NO_GRAD, 'methods.adamatch.decay': 0.99},
}
MINUTES_OF_ADAPTATION = Adaptation(MINUTES | _ADAPTATION, methods=_MINUTES_METHODS)

# TLlib's (github.com/thuml/Transfer-Learning-Library at c4aa59e, examples/domain_adaptation/image_classification: the
# scripts *.sh, and the defaults in *.py). AdaBN and the upper bound train as its ERM (source only), CORAL as its DANN,
# and AdaMatch, too, with the ratio and the averaging of its own code (google-research/adamatch). What differs: weight
# decay is on kernels only, and FixMatch's strong view, timm's 'rand-m10-n2-mstd2' there, is FixMatch's own RandAugment
# without cutout, with translations by up to timm's 45 % of the side.


def _steps(steps: int, gamma: float = 1e-3) -> dict[str, Any]:
    """Returns a training of that length; TLlib's schedule is by step, learning rate / (1 + gamma * step)^0.75."""
    return {'steps': steps, 'optimizer.inverse_gamma': round(gamma * steps, 3)}


def _rate(learning_rate: float) -> dict[str, Any]:
    return {'optimizer.learning_rate': learning_rate}


def _tllib(
    network: str, steps: tuple[int, int, int], settings: Mapping[str, Any], **methods: Mapping[str, Any]
) -> Adaptation:
    """Returns a recipe of TLlib.

    Args:
        network: Name of the network.
        steps: Of adversarial methods and others, of ERM, of DAN and JAN.
        settings: {setting: value} of all methods.
        **methods: {setting: value} of a method.
    """
    base = {'batch_size': 32, 'ema_decay': 0.0, 'model.bottleneck_width': 256, 'optimizer.weight_decay': 1e-3}
    erm, dan = ({**_steps(n, 3e-4), 'optimizer.weight_decay': 5e-4} for n in steps[1:])
    jan = dan | {'model.dropout': 0.5}
    shared: dict[str, Mapping[str, Any]] = {
        'source_only': erm | {'model.bottleneck_width': 0},
        'mmd': jan | {'model.bottleneck_norm': False},
        'jan': jan,
        'adamatch': {'data.unlabeled_ratio': 3, 'ema_decay': 0.999},
    }
    merged = {name: {**shared.get(name, {}), **methods.get(name, {})} for name in {**shared, **methods}}
    merged |= dict.fromkeys(('adabn', 'target'), merged['source_only'])
    if 'cdan' in merged:
        merged['cdan_e'] = merged['cdan']
    return Adaptation({**base, **_steps(steps[0]), **settings}, network, merged, ramp_steps=1000)


_DIGITS_IMAGES = {
    'batch_size': 128,
    'data.weak.pad': 0,
    'eval_steps': 2500,
    'checkpoint_steps': 2500,
}
_DIGITS_STEPS = 50_000, 50_000, 50_000
_PHOTOGRAPHS = {
    'data.image_size': 256,
    'optimizer.learning_rate': 0.01,
    'optimizer.layer_rates': ('head|bottleneck: 1', '.*: 0.1'),
    'eval_steps': 1000,
    'checkpoint_steps': 1000,
}
_CROPPED = _PHOTOGRAPHS | {'data.weak.min_area': 0.08}
_MOMENTS = {'mmd': _rate(3e-3), 'jan': _rate(3e-3)}
_SLOW = _MOMENTS | {'source_only': _rate(1e-3)}
_MCC = _rate(5e-3) | {'batch_size': 36}
_FIXMATCH = _rate(3e-3) | {
    **_steps(20_000, 4e-4),
    'methods.fixmatch.threshold': 0.9,
    'methods.fixmatch.statistics': SEPARATE,  # a forward pass for each view
    'data.strong.translate': 115,
    'data.strong.cutout': 0,
}


# --- Records

_CIFAR: dict[str, Any] = {'channels': 3, 'size': 32, 'train': 50_000, 'small': False}
_CHARACTERS: dict[str, Any] = {'classes': 10, 'mirrored': False, 'turned': False}
_OBJECTS: dict[str, Any] = {'channels': 3, 'size': 0}

RECORDS = {
    record.name: record
    for record in (
        DataSet(name='cifar10', classes=10, recipe={}, **_CIFAR),
        DataSet(name='cifar100', classes=100, recipe={'model.width': 8, 'optimizer.weight_decay': 1e-3}, **_CIFAR),
        # 96x96 pixels: one more stage. The paper uses the data set's own folds of 1,000 labels, which tfds leaves out:
        # give their indices as a manifest to have the same.
        DataSet(
            name='stl10',
            classes=10,
            channels=3,
            size=96,
            train=5000,
            unlabeled=100_000,
            unlabeled_split='unlabelled',
            small=False,
            recipe={
                'data.strong.translate': 10,
                'data.strong.cutout': 16,
                'model.blocks': (4, 4, 4, 4),
            },
        ),
        # The 73,257 training images without 'extra', as in the paper.
        DataSet(
            name='svhn_cropped',
            channels=3,
            size=32,
            train=73_257,
            small=False,
            recipe={},
            label_protocol='proportional',
            adaptation=_tllib(
                'dtn',
                _DIGITS_STEPS,
                _DIGITS_IMAGES,  # and its learning rate, 0.03, is the default
                source_only=_rate(0.1),
                mmd=_rate(0.01),
                cdan=_rate(0.01),
                mcc=_rate(0.01),
            ),
            **_CHARACTERS,
        ),
        DataSet(name='fashion_mnist', classes=10, channels=1, size=28, train=60_000, recipe=MINUTES),
        DataSet(
            name='digits',
            channels=1,
            size=8,
            train=1297,
            recipe=_DIGITS,
            adaptation=Adaptation(_DIGITS | _ADAPTATION | {'data.validation': 200}, methods=_MINUTES_METHODS),
            **_CHARACTERS,
        ),
        DataSet(name='emoji', classes=10, channels=3, size=64, train=229),
        DataSet(name='digits_m', channels=3, size=8, train=1297, **_CHARACTERS),
        DataSet(
            name='mnist',
            channels=1,
            size=28,
            train=60_000,
            adaptation=_tllib('lenet', _DIGITS_STEPS, _DIGITS_IMAGES | _rate(0.01)),
            **_CHARACTERS,
        ),
        DataSet(name='mnist_m', channels=3, size=28, train=60_000, **_CHARACTERS),
        DataSet(
            name='usps',
            channels=1,
            size=16,
            train=7291,
            adaptation=_tllib('lenet', _DIGITS_STEPS, _DIGITS_IMAGES | _rate(0.1) | {'data.image_size': 28}),
            **_CHARACTERS,
        ),
        DataSet(
            name='office31',
            classes=31,
            train=398,
            splits=in_parts('train'),
            adaptation=_tllib(
                'resnet50',
                (20_000, 2500, 10_000),
                _CROPPED,
                **_SLOW,
                mcc=_MCC | _steps(10_000) | {'model.bottleneck_width': 1024},
                fixmatch=_FIXMATCH | _rate(1e-3) | {'data.unlabeled_ratio': 3},
            ),
            **_OBJECTS,
        ),
        DataSet(
            name='office_home',
            classes=65,
            train=1942,
            splits=in_parts('train'),
            adaptation=_tllib(
                'resnet50',
                (30_000, 2500, 10_000),
                _CROPPED,
                **_SLOW,
                mcc=_MCC | {'model.bottleneck_width': 2048},
                fixmatch=_FIXMATCH | {'model.bottleneck_width': 1024},
            ),
            **_OBJECTS,
        ),
        DataSet(
            name='visda',
            classes=12,
            train=44_310,
            splits=in_parts('train'),
            adaptation=_tllib(
                'resnet101',
                (30_000, 20_000, 10_000),
                _PHOTOGRAPHS | {'data.weak.pad': 0},  # no crop but the centre
                **_SLOW,
                mcc=_MCC | _rate(2e-3) | {'methods.mcc.temperature': 3.0},
                fixmatch=_FIXMATCH
                | {'methods.fixmatch.threshold': 0.8, 'data.unlabeled_ratio': 2, 'model.bottleneck_width': 2048},
            ),
            **_OBJECTS,
        ),
        DataSet(
            name='domainnet',
            classes=345,
            train=33_525,
            adaptation=_tllib(
                'resnet101',
                (75_000, 50_000, 75_000),
                _CROPPED | {'model.bottleneck_width': 1024},
                **_MOMENTS,
                cdan={'methods.cdan.randomized': 51_200},
                mcc=_rate(5e-3)
                | {'methods.mcc.weight': 10.0, 'methods.mcc.temperature': 2.0, 'model.bottleneck_width': 2048},
            ),
            **_OBJECTS,
        ),
    )
}
