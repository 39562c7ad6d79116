"""The settings of a run, as frozen dataclasses: each setting with its default and its valid values.

Defaults are the recipe of the FixMatch paper for CIFAR-10 (section 4 and appendix B of arXiv:2001.07685, and
github.com/google-research/fixmatch). A config file starts from `to_config` and states what differs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

import methods
import models
from data import augment
from errors import UserError, build, check_range, defaults, unknown
from methods.base import LABELED, WEAK

PROTOCOLS = ('inductive', 'transductive')
OPTIMIZERS = ('sgd', 'adamw', 'lars', 'lamb')
SCHEDULES = ('cosine', 'steps', 'inverse')
METRICS = ('cosine', 'euclidean')
# Rules that choose `selected`: the first by validation accuracy, the others without labels of the target domain.
SELECTIONS = ('validation', 'entropy', 'information', 'iwcv', 'dev')


@dataclasses.dataclass(frozen=True)
class Data:
    """The data. Labeled, unlabeled and test images are of one data set, or the last two of `target`."""

    name: str = 'cifar10'  # a tfds data set or one of data/builders/
    train_split: str = 'train'  # split of the labeled images
    unlabeled_split: str = ''  # further unlabeled images, beside those of train_split; '' for none
    test_split: str = 'test'
    labels: int = 40  # number of labeled training images; -1: all
    label_protocol: str = 'balanced'  # or 'proportional' to the classes' frequencies
    label_seed: int = -1  # of the label split; -1: the run's seed
    manifest: str = ''  # labels.json of an earlier run, instead of drawing labels
    validation: int = 0  # training images held out to select a checkpoint
    validation_split: str = ''  # or a split that is held out for it; '' for none
    target: str = ''  # domain adaptation: the data set of unlabeled and test images
    target_split: str = ''  # of the target's unlabeled images; '' for the name in train_split
    protocol: str = 'inductive'  # test images are new; 'transductive': they are the unlabeled images
    image_size: int = 0  # side in pixels that images are resized to when they are read; 0: no resizing
    cache_features: bool = False  # run the frozen backbone over all images once, not augmented, and train on features
    unlabeled_ratio: int = 7  # mu: unlabeled images per labeled image in a step
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # per channel, of pixels in [0, 1]
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    weak: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of data.augment.Weak
    strong: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of data.augment.Strong, beside those of weak
    rotated: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of Rotated, beside those of weak
    distorted: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of Distorted, beside weak's flips
    unlabeled_min_area: float = 0.0  # min_area of unlabeled images' crops; 0: weak.min_area, that of all

    def __post_init__(self):
        if self.labels < -1 or self.labels == 0:
            raise UserError(f'data.labels must be at least 1, or -1 for all, not {self.labels}.')
        check_range('data.unlabeled_ratio', self.unlabeled_ratio, 1)
        check_range('data.label_seed', self.label_seed, -1)
        check_range('data.validation', self.validation, 0)
        check_range('data.image_size', self.image_size, 0)
        check_range('data.unlabeled_min_area', self.unlabeled_min_area, 0, 1)
        if self.unlabeled_min_area and not self.weak.get('min_area'):
            raise UserError('data.unlabeled_min_area is for random crops: set data.weak.min_area, too.')
        if not self.std or not min(self.std) > 0 or len(self.mean) != len(self.std):
            raise UserError(f'data.mean {self.mean} and data.std {self.std} need one value a channel, std above 0.')
        if self.protocol not in PROTOCOLS:
            raise unknown('data.protocol', self.protocol, PROTOCOLS)
        if self.protocol == 'transductive' and not self.target:
            raise UserError('data.protocol=transductive is for domain adaptation: name the data.target.')
        if self.validation and self.validation_split:
            raise UserError('Set data.validation, a number of training images, or data.validation_split, not both.')
        if self.target and self.unlabeled_split:
            raise UserError('With a data.target, unlabeled images come from it: leave data.unlabeled_split empty.')


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer, with a learning rate that may differ from layer to layer."""

    name: str = 'sgd'  # SGD with Nesterov momentum, or 'adamw', 'lars', 'lamb'
    learning_rate: float = 0.03
    momentum: float = 0.9  # of SGD and LARS
    beta1: float = 0.9  # of AdamW and LAMB
    beta2: float = 0.999  # likewise
    epsilon: float = 1e-8  # likewise
    trust_coefficient: float = 1e-3  # of LARS, of the ratio of norms
    clip_norm: float = 0.0  # of the whole gradient at most; 0: no limit
    weight_decay: float = 5e-4  # on kernels only; of SGD and LARS the L2 gradient, of AdamW and LAMB decoupled
    schedule: str = 'cosine'  # learning rate times cos(pi * cosine_cycles * progress), 'steps' or 'inverse'
    cosine_cycles: float = 7 / 16  # 0.5 ends at zero
    boundaries: tuple[float, ...] = ()  # of 'steps': progress at which the learning rate is divided by 10
    inverse_gamma: float = 10.0  # of 'inverse': learning rate / (1 + gamma * progress)^power
    inverse_power: float = 0.75
    warmup: float = 0.0  # progress up to which the learning rate rises linearly from zero
    layer_rates: tuple[str, ...] = ()  # 'regular expression: factor', the first match of a parameter; 0 freezes it
    layer_decay: float = 1.0  # factor from each block to the one below it; the classifier has 1
    unfreeze_step: int = 0  # until then only the classifier and other heads are trained

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise unknown('optimizer.name', self.name, OPTIMIZERS)
        if self.schedule not in SCHEDULES:
            raise unknown('optimizer.schedule', self.schedule, SCHEDULES)
        for name, value in (('warmup', self.warmup), *(('boundaries', boundary) for boundary in self.boundaries)):
            if not 0 <= value <= 1:
                raise UserError(f'optimizer.{name} is a part of training, from 0 to 1, not {value} steps.')
        check_range('optimizer.momentum', self.momentum, 0, 1)
        for name in ('beta1', 'beta2'):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f'optimizer.{name} must be from 0 to less than 1, not {getattr(self, name)}.')
        if self.epsilon <= 0:
            raise UserError(f'optimizer.epsilon must be above 0, not {self.epsilon}.')
        for name in (
            'trust_coefficient',
            'clip_norm',
            'learning_rate',
            'weight_decay',
            'cosine_cycles',
            'inverse_gamma',
            'inverse_power',
        ):
            check_range(f'optimizer.{name}', getattr(self, name), 0)
        check_range('optimizer.unfreeze_step', self.unfreeze_step, 0)
        if not 0 < self.layer_decay <= 1:
            raise UserError(f'optimizer.layer_decay must be in (0, 1], not {self.layer_decay}.')


@dataclasses.dataclass(frozen=True)
class Transfer:
    """How features are evaluated. Published protocols differ (solo-learn: k 20, temperature 0.07)."""

    labels: tuple[int, ...] = ()  # numbers of labels to evaluate with (-1: all); () for no evaluation
    layer: str = 'features'  # output to evaluate, averaged over space; earlier ones ('stage2') are more general
    k: int = 20  # neighbours that vote
    temperature: float = 0.07  # the weight of a vote is exp(-distance / temperature); 0: equal weights
    metric: str = 'cosine'  # or 'euclidean'
    standardize: bool = False  # for the neighbours: features by mean and standard deviation of the labeled images
    method: str = 'supervised'  # that fine-tunes
    steps: int = 300  # of fine-tuning
    batch_size: int = 16
    learning_rate: float = 0.03

    def __post_init__(self):
        if self.method not in methods.names():
            raise unknown('transfer.method', self.method, methods.names())
        if self.metric not in METRICS:
            raise unknown('transfer.metric', self.metric, METRICS)
        if not self.k >= 1 or not self.temperature >= 0:
            raise UserError(f'transfer.k must be at least 1 and temperature 0, not {self.k} and {self.temperature}.')
        for labels in self.labels:
            if labels < -1 or labels == 0:
                raise UserError(f'transfer.labels must be at least 1, or -1 for all, not {labels}.')
        check_range('transfer.steps', self.steps, 1)
        check_range('transfer.batch_size', self.batch_size, 1)
        check_range('transfer.learning_rate', self.learning_rate, 0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run. Equal settings give equal runs, so their hash names the folder of a run."""

    seed: int = 0
    steps: int = 2**20
    batch_size: int = 64  # labeled images in a step
    micro_batches: int = 1  # parts of a batch that pass the network one after another, which takes less memory
    micro_batches_apart: bool = False  # even where batch norm or a method would look at the whole batch
    data: Data = dataclasses.field(default_factory=Data)
    model: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {'name': 'wide_resnet'})  # models.settings
    methods: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # {name: its fields}; losses add
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    ema_decay: float = 0.999  # of the averaged parameters that are evaluated
    ema_statistics: bool = False  # evaluate with running statistics that are averaged likewise
    log_steps: int = 128
    eval_steps: int = 1024
    checkpoint_steps: int = 4096
    selection: str = 'validation'  # rule that chooses the accuracy `selected`, one of SELECTIONS
    transfer: Transfer = dataclasses.field(default_factory=Transfer)

    def __post_init__(self):
        for name in ('steps', 'batch_size', 'micro_batches', 'log_steps', 'eval_steps', 'checkpoint_steps'):
            check_range(name, getattr(self, name), 1)
        if 0 < self.steps <= self.optimizer.unfreeze_step:
            raise UserError('optimizer.unfreeze_step must come before the last of the steps.')
        if not 0 <= self.seed < 2**31:
            raise UserError(f'seed must be in [0, 2^31), not {self.seed}.')
        check_range('ema_decay', self.ema_decay, 0, 1)
        held_out = self.data.validation or self.data.validation_split
        if held_out and self.checkpoint_steps % self.eval_steps:
            raise UserError('checkpoint_steps must be a multiple of eval_steps where a validation part is used.')
        if self.selection not in SELECTIONS:
            raise unknown('selection', self.selection, SELECTIONS)
        if self.selection != 'validation' and not self.data.target:
            raise UserError(f'selection={self.selection} is for domain adaptation: name a data.target.')
        if self.selection in ('iwcv', 'dev') and not held_out:
            raise UserError(f'selection={self.selection} needs source images held out: set data.validation.')
        if not self.methods:
            raise UserError('methods is empty: name at least one, such as methods.supervised.')


_PARTS = {'data': Data, 'optimizer': Optimizer, 'transfer': Transfer}


def to_config(method_names: tuple[str, ...] = (), model: str = 'wide_resnet') -> ml_collections.ConfigDict:
    """Returns the defaults of all settings, with those of the named methods and network."""
    values = defaults(Settings) | {key: defaults(cls) for key, cls in _PARTS.items()}
    weak = defaults(augment.Weak)
    values['data'] |= {
        'weak': weak,
        'strong': defaults(augment.Strong, *weak),
        'rotated': defaults(augment.Rotated, *weak),
        'distorted': defaults(augment.Distorted, *weak),
    }
    values['model'] = {'name': model, **models.settings(model)}
    values['methods'] = {name: methods.defaults(name) for name in method_names}
    return ml_collections.ConfigDict(values)


def from_config(config: ml_collections.ConfigDict) -> Settings:
    """Returns the Settings of a config.

    Raises:
        UserError: A key does not exist, or a value is impossible.
    """
    values = config.to_dict()
    for key, cls in _PARTS.items():
        values[key] = build(cls, f'setting of {key}', values.get(key, {}))
    return build(Settings, 'setting', values)


def from_json(values: Mapping[str, Any]) -> Settings:
    """Returns the Settings of config.json or result.json, where tuples have become lists.

    Raises:
        UserError: As for `from_config`, of settings of another version.
    """

    def restore(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: restore(part) for key, part in value.items()}
        return tuple(map(restore, value)) if isinstance(value, list) else value

    return from_config(ml_collections.ConfigDict(restore(values)))


def idle(settings: Settings) -> dict[str, str]:
    """Returns {setting: reason why it has no effect in this run}; 'data.strong' stands for all of its fields."""
    data, created = settings.data, [methods.create(*method) for method in settings.methods.items()]
    views = {view for method in created for view in method.views()}
    if settings.model.get('batch_norm', 'joint') != 'joint':  # reads both domains
        views |= {LABELED, WEAK}
    streams, augmentations = {view.stream for view in views}, {view.augmentation for view in views}
    reasons = {}

    def add(condition: bool, why: str, *names: str) -> None:
        if condition:
            reasons.update(dict.fromkeys(names, why))

    add(not data.target, 'without a data.target', 'data.target_split')
    unread = 'unlabeled' not in streams
    unlabeled = ('ratio', 'split', 'min_area')
    add(unread, 'as no method reads unlabeled images', *(f'data.unlabeled_{name}' for name in unlabeled))
    for augmentation in ('strong', 'rotated', 'distorted'):
        add(augmentation not in augmentations, f'as no method reads {augmentation} images', f'data.{augmentation}')
    add(data.cache_features, 'with data.cache_features', 'data.weak', 'data.strong', 'data.rotated', 'data.distorted')
    add(bool(data.weak.get('min_area')), 'with data.weak.min_area', 'data.weak.pad')
    add(data.strong.get('protocol') == 'torchssl', 'with torchssl', 'data.strong.translate', 'data.strong.cutout')
    colours = ('saturation', 'hue', 'gray')
    add(len(data.mean) == 1, 'with gray images', *(f'data.distorted.{name}' for name in colours))
    add(data.labels == -1 and not settings.transfer.labels, 'with data.labels=-1', 'data.label_protocol')
    add(bool(data.manifest), 'with a data.manifest', 'data.label_seed', 'data.label_protocol')
    sized = settings.model.get('resolution') or settings.model.get('pretrained')
    add(not sized, 'without a model.resolution', 'model.crop')
    schedule = settings.optimizer.schedule
    for name, used in {
        'cosine': ('cosine_cycles',),
        'steps': ('boundaries',),
        'inverse': ('inverse_gamma', 'inverse_power'),
    }.items():
        add(schedule != name, f'with optimizer.schedule={schedule}', *(f'optimizer.{field}' for field in used))
    add(settings.micro_batches == 1, 'with micro_batches=1', 'micro_batches_apart')
    name = settings.optimizer.name
    adam, why = name in ('adamw', 'lamb'), f'with optimizer.name={name}'
    add(adam, why, 'optimizer.momentum')
    add(not adam, why, 'optimizer.beta1', 'optimizer.beta2', 'optimizer.epsilon')
    add(name != 'lars', why, 'optimizer.trust_coefficient')
    add(settings.ema_decay == 0, 'with ema_decay=0', 'ema_statistics')
    frozen = settings.model.get('frozen_statistics', False)
    add(frozen, 'with model.frozen_statistics', 'ema_statistics')
    add(frozen and 'bn_momentum' in settings.model, 'with model.frozen_statistics', 'model.bn_momentum')
    if not settings.transfer.labels:
        tuning = ('method', 'steps', 'batch_size', 'learning_rate')
        neighbours = () if 'labeled' not in streams else ('layer', 'k', 'temperature', 'metric', 'standardize')
        add(True, 'without transfer.labels', *(f'transfer.{name}' for name in (*tuning, *neighbours)))
    return reasons
