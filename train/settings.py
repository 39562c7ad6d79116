"""The settings of a run, as frozen dataclasses: what a config file must and may say."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from errors import UserError, build, unknown

PROTOCOLS = ('inductive', 'transductive')
SCHEDULES = ('cosine', 'steps', 'inverse')
# How `selected` is chosen: the first by validation accuracy, the others without any label of the target domain.
SELECTIONS = ('validation', 'entropy', 'information', 'iwcv', 'dev')
METRICS = ('cosine', 'euclidean')


@dataclasses.dataclass(frozen=True)
class Data:
    """What is learned from. Labeled, unlabeled and test images are of one data set, or the last two of `target`."""

    name: str  # a tfds data set or one of data/builders/
    labels: int  # number of labeled training images; -1: all of them
    unlabeled_ratio: int  # mu: unlabeled images per labeled image in a step
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    weak: Mapping[str, Any]  # fields of data.augment.Weak
    strong: Mapping[str, Any]  # fields of data.augment.Strong, beside those of weak
    train_split: str = 'train'  # labeled images come from here
    unlabeled_split: str = ''  # more unlabeled images than those of train_split ('' for none)
    test_split: str = 'test'
    label_protocol: str = 'balanced'  # or 'proportional' to the classes' frequencies
    label_seed: int = -1  # of the label split; -1: the run's seed
    manifest: str = ''  # labels.json of an earlier run, instead of drawing labels
    validation: int = 0  # training images held out to select a checkpoint
    target: str = ''  # domain adaptation: the data set of unlabeled and test images
    target_split: str = ''  # of the target's unlabeled images; '' for one called as train_split
    protocol: str = 'inductive'  # test images are new; 'transductive': they are the unlabeled ones
    image_size: int = 0  # side in pixels that all images are brought to when they are read; 0: as they are
    rotated: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # of data.augment.Rotated, beside those of weak
    cache_features: bool = False  # run the frozen backbone over all images once, not augmented, and train on features

    def __post_init__(self):
        if self.labels < -1 or self.labels == 0:
            raise UserError(f'data.labels must be at least 1, or -1 for all, not {self.labels}.')
        if self.unlabeled_ratio < 1:
            raise UserError(f'data.unlabeled_ratio must be at least 1, not {self.unlabeled_ratio}.')
        if min(self.std, default=0) <= 0 or len(self.mean) != len(self.std):
            raise UserError(f'data.mean {self.mean} and data.std {self.std} need one value a channel, std above 0.')
        if self.protocol not in PROTOCOLS:
            raise unknown('data.protocol', self.protocol, PROTOCOLS)
        if self.protocol == 'transductive' and not self.target:
            raise UserError('data.protocol=transductive is for domain adaptation: name the data.target.')
        if self.target and self.unlabeled_split:
            raise UserError('With a data.target, unlabeled images come from it: leave data.unlabeled_split empty.')


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """SGD with Nesterov momentum, with a learning rate that may differ from layer to layer."""

    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0  # factor of an L2 gradient on kernels only
    schedule: str = 'cosine'  # learning rate times cos(pi * cosine_cycles * progress), 'steps' or 'inverse'
    cosine_cycles: float = 7 / 16  # 0.5 ends at zero
    boundaries: tuple[float, ...] = ()  # of 'steps': progress from which the learning rate is a tenth of that before
    inverse_gamma: float = 10.0  # of 'inverse': learning rate / (1 + gamma * progress)^power
    inverse_power: float = 0.75
    warmup: float = 0.0  # progress up to which the learning rate rises from zero
    layer_rates: tuple[str, ...] = ()  # 'regular expression: factor', the first that fits a parameter; 0 freezes it
    layer_decay: float = 1.0  # factor from each block to the one below it; the classifier has 1
    unfreeze_step: int = 0  # until then only the classifier and other heads are trained

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise unknown('optimizer.schedule', self.schedule, SCHEDULES)
        for name, value in (('warmup', self.warmup), *(('boundaries', boundary) for boundary in self.boundaries)):
            if not 0 <= value <= 1:
                raise UserError(f'optimizer.{name} is a part of training, from 0 to 1, not {value} steps.')
        if self.unfreeze_step < 0:
            raise UserError(f'optimizer.unfreeze_step must be at least 0, not {self.unfreeze_step}.')
        if not 0 < self.layer_decay <= 1:
            raise UserError(f'optimizer.layer_decay must be in (0, 1], not {self.layer_decay}.')


@dataclasses.dataclass(frozen=True)
class Transfer:
    """How features are evaluated after training. Published protocols differ (solo-learn: k 20, temperature 0.07)."""

    labels: tuple[int, ...] = ()  # numbers of labels to evaluate with (-1: all); none: no evaluation after training
    layer: str = 'features'  # output whose average over space is evaluated; earlier ones ('stage2') are more general
    k: int = 20  # neighbours that vote
    temperature: float = 0.07  # a vote weighs exp(-distance / temperature); 0: all weigh the same
    metric: str = 'cosine'  # or 'euclidean'
    standardize: bool = False  # features, by mean and standard deviation of the labeled images, for the neighbours
    method: str = 'supervised'  # that fine-tunes
    steps: int = 300  # of fine-tuning
    batch_size: int = 16
    learning_rate: float = 0.03

    def __post_init__(self):
        if self.metric not in METRICS:
            raise unknown('transfer.metric', self.metric, METRICS)
        if self.k < 1 or self.temperature < 0:
            raise UserError(f'transfer.k must be at least 1 and temperature 0, not {self.k} and {self.temperature}.')


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run. Equal settings mean equal runs, so they name the run folder."""

    seed: int
    steps: int
    batch_size: int  # labeled images in a step
    data: Data
    model: Mapping[str, Any]  # 'name', fields of that network, of models.create, and 'pretrained' weights
    methods: Mapping[str, Mapping[str, Any]]  # {name: hyper-parameters}; losses add up
    optimizer: Optimizer
    ema_decay: float  # of the averaged parameters that are evaluated
    log_steps: int
    eval_steps: int
    checkpoint_steps: int
    selection: str = 'validation'  # how the accuracy `selected` is chosen, one of SELECTIONS
    transfer: Transfer = Transfer()

    def __post_init__(self):
        for name in ('steps', 'batch_size', 'log_steps', 'eval_steps', 'checkpoint_steps'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} must be at least 1, not {getattr(self, name)}.')
        if 0 < self.steps <= self.optimizer.unfreeze_step:
            raise UserError('optimizer.unfreeze_step must come before the last of the steps.')
        if not 0 <= self.seed < 2**31:
            raise UserError(f'seed must be in [0, 2^31), not {self.seed}.')
        if self.data.validation and self.checkpoint_steps % self.eval_steps:
            raise UserError('checkpoint_steps must be a multiple of eval_steps where a validation part is used.')
        if self.selection not in SELECTIONS:
            raise unknown('selection', self.selection, SELECTIONS)
        if self.selection != 'validation' and not self.data.target:
            raise UserError(f'selection={self.selection} is for domain adaptation: name a data.target.')
        if self.selection in ('iwcv', 'dev') and not self.data.validation:
            raise UserError(f'selection={self.selection} needs source images held out: set data.validation.')
        if not self.methods:
            raise UserError('methods is empty: name at least one, such as methods.supervised.')


def from_config(config: ml_collections.ConfigDict) -> Settings:
    """Turns a config into Settings. Raises UserError for a key that nothing reads or that is missing."""
    values = config.to_dict()
    for key, cls in (('data', Data), ('optimizer', Optimizer), ('transfer', Transfer)):
        values[key] = build(cls, f'setting of {key}', values.get(key, {}))
    return build(Settings, 'setting', values)
