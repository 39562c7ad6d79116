"""What the configs share: the argument after the colon, and the settings that follow from the data set."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

import methods
from configs import data_sets
from errors import UserError, unknown
from methods.base import NO_GRAD, SEPARATE
from train import settings

NETWORK = settings.to_config().model.name  # of the recipes
# FixMatch's 7 unlabeled images a labeled one are not every method's.
ONE_TO_ONE = {'data.unlabeled_ratio': 1}


def parse_arg(arg: str, **defaults: Any) -> dict[str, Any]:
    """Reads the argument of a config, such as 'cifar10,labels=40'.

    Args:
        arg: The name of a data set, then key=value pairs.
        **defaults: Of what the config takes beside data and model. `labels=0` stands for a number that follows from the
            data set. What takes labels takes 'beside', too: names of REGULARIZERS, with + between.

    Returns:
        {key: value}, with values of the types of `defaults`, and for 'data' its record.

    Raises:
        UserError: A key that is not in `defaults`, a value of another type, or a data set that cannot be used.
    """
    defaults = {'data': 'digits', 'model': '', **({'beside': ''} if 'labels' in defaults else {}), **defaults}
    values = dict(defaults)
    given = set()
    for i, part in enumerate(arg.split(',') if arg else []):
        key, equals, text = part.partition('=')
        if not equals and i == 0:
            key, text = 'data', part
        if key not in defaults:
            if not equals:
                raise UserError(f"Unknown config argument '{part}', without '='. A name of data cannot have a comma.")
            raise unknown('config argument', key, defaults)
        try:
            values[key] = type(defaults[key])(text)
        except ValueError as error:
            kind = type(defaults[key]).__name__
            raise UserError(f"Config argument {key}='{text}' is not of type {kind}.") from error
        given.add(key)
    values['data'] = data_sets.get(values['data'])
    if 'labels' in values and 'labels' not in given:
        values['labels'] = values['data'].labels
    return values


# What stands beside other methods: {name: its settings in a run of minutes}. DELTA's authors have .01 for batches of
# 64. Here the maps in training and in evaluation are far apart before anything has moved, and that strength diverges
# (docs/pretrained.md).
REGULARIZERS: dict[str, dict[str, Any]] = {'l2_sp': {}, 'bss': {}, 'delta': {'alpha': 0.0004}}


def base(
    data: data_sets.DataSet,
    labels: int,
    model: str = '',
    names: tuple[str, ...] = (),
    beside: str = '',
    natural: bool = True,
) -> ConfigDict:
    """Returns the settings of semi-supervised training on a data set.

    Args:
        data: The data set.
        labels: Number of labels.
        model: Another network than the recipe's, with its published weights where it has some.
        names: Names of methods.
        beside: Names of REGULARIZERS, with + between.
        natural: Whether pictures in colour have their own recipe from pretrained weights.

    Raises:
        UserError: One is none, or twice there.
    """
    regularizers = tuple(filter(None, beside.split('+')))
    for name in regularizers:
        if name not in REGULARIZERS or (*names, *regularizers).count(name) > 1:
            raise unknown('regularizer (each once)', name, REGULARIZERS)
    config = settings.to_config((*names, *regularizers), model or NETWORK)
    recipe = data_sets.MINUTES if data.recipe is None else data.recipe
    config.update_from_flattened_dict({**data.settings, **without_network(recipe, config.model.name)})
    train, test = data.splits
    config.data.update(labels=labels, train_split=train, test_split=test)
    config.data.update(unlabeled_split=data.unlabeled_split, validation_split=data.validation_split)
    for name, hyperparameters in config.methods.items():
        if data.small and 'statistics' in hyperparameters:
            hyperparameters.statistics = NO_GRAD  # the weak view is not trained on: a third less work
        if data.small and name in REGULARIZERS:
            hyperparameters.update(REGULARIZERS[name])
    if data.small and config.model.get('pretrained'):
        pretrained(config, data if natural else None)
    return config


def pretrained(config: ConfigDict, data: data_sets.DataSet | None = None) -> None:
    """Changes settings to those of a run of minutes from pretrained weights.

    Args:
        config: The settings.
        data: The data set, where its pictures may be like those of the weights, whose running statistics are then kept.
    """
    config.update_from_flattened_dict(data_sets.PRETRAINED)
    statistics = SEPARATE  # strong views stay out of them (results/transfer/tuning.md)
    if data is not None and data.natural:
        if not data.size:
            config.update_from_flattened_dict(data_sets.at(data_sets.LARGEST))
        if config.model.pretrained and 'bn_momentum' in config.model:  # it has batch norm
            config.update_from_flattened_dict(data_sets.NATURAL)
            statistics = NO_GRAD  # the weak view is not trained on: a third less work
    if any(methods.create(*method).teacher for method in config.methods.to_dict().items()):
        config.ema_decay = data_sets.TEACHER_DECAY
    if 'bn_momentum' in config.model:
        config.model.bn_momentum = 0.9  # running statistics have to follow a short training
    for hyperparameters in config.methods.values():
        if 'statistics' in hyperparameters:
            hyperparameters.statistics = statistics


def without_network(recipe: Mapping[str, Any], network: str) -> dict[str, Any]:
    """Returns a recipe without what is of its own network, if another is used."""
    own = () if network == NETWORK else ('model.blocks', 'model.width', 'model.bn_momentum')
    return {key: value for key, value in recipe.items() if key not in own}


def semi_supervised(
    *names: str,
    small: Mapping[str, Any] | None = None,
    paper: Mapping[str, Any] | None = None,
    by_data: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[str], ConfigDict]:
    """Returns the `get_config` of a semi-supervised method.

    Args:
        *names: Names of the methods whose losses add up.
        small: {setting: value} that differ in a run of minutes.
        paper: {setting: value} that differ in a run of the FixMatch paper's scale.
        by_data: {'DATA' or 'DATA,labels=N': {setting: value}} that differ, beyond that, on a data set, or with a number
            of its labels. DATA is the name of its record.
    """

    def get_config(arg: str = '') -> ConfigDict:
        """Returns the settings for 'DATA,labels=N,model=NAME,beside=NAME+NAME'."""
        options = parse_arg(arg, labels=0)
        config = base(**options, names=names)
        data, labels = options['data'], options['labels']
        config.update_from_flattened_dict((small if data.small else paper) or {})
        for key in (data.name, f'{data.name},labels={labels}'):
            config.update_from_flattened_dict((by_data or {}).get(key, {}))
        return config.lock()

    return get_config
