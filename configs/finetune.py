"""Fine-tuning a pretrained network, in the ways that are commonly compared.

    python main.py --config=configs/finetune.py                                EfficientNet-Lite0, digits, 20 labels
    python main.py --config=configs/finetune.py:fashion_mnist,labels=200,strategy=probe
    python main.py --config=configs/finetune.py:cifar10,labels=-1,model=resnet50
    python main.py --config=configs/finetune.py:cifar10,labels=-1,model=bit_r50x1 --config.model.pretrained=R50x1.npz

strategy is one of

    full        every layer at the same learning rate
    scratch     the same from random weights
    head        only the classifier
    probe       the same without augmentation, on features that are computed once
    tenth       everything below the classifier at a tenth of its learning rate
    decay       each block at 0.8 of the learning rate of the one above it
    unfreeze    a quarter of the training for the classifier alone, then everything
    statistics  every layer, batch norm with the pretrained network's running statistics
    l2_sp       every layer, with a pull towards the pretrained parameters (methods/l2_sp.py)
    delta       every layer, with a pull towards the feature maps of the pretrained network (methods/delta.py)
    bss         tenth, with weight decay and without the batch's smallest directions (methods/bss.py)

The last three have learning rates of the layers and weight decay as in their authors' code.

Data sets without a recipe of paper scale have our own small settings: images brought to 64x64, 300 steps, a minute on
two cores, with a learning rate for each strategy. Pictures in colour keep the pretrained running statistics, so that
`statistics` is `full` there, and learn at 0.001, `tenth` and `bss` at 0.01; where they differ in size they are brought
to 96x96. Of the strategies only full, tenth and probe were tried there. The other data sets follow the BiT hyper-rule
(Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3, and its code's bit_hyperrule.py), but with no more images in a
batch than there are labels and the learning rate in proportion. Measured here: results/README.md.
"""

from ml_collections import ConfigDict

from configs import common
from errors import unknown

_HEAD_ONLY = {'optimizer.layer_rates': ('head: 1', '.*: 0')}
_TENTH = {'optimizer.layer_rates': ('head: 1', '.*: 0.1')}

# {name: (learning rate of the small settings, what else it is)}
STRATEGIES = {
    'full': (0.02, {}),
    'scratch': (0.02, {}),
    'head': (0.003, _HEAD_ONLY),
    'probe': (0.003, _HEAD_ONLY | {'data.cache_features': True}),
    'tenth': (0.02, _TENTH),
    'decay': (0.02, {'optimizer.layer_decay': 0.8}),
    'unfreeze': (0.02, {}),  # the step follows from the number of steps
    'statistics': (0.005, {'model.frozen_statistics': True}),
    'l2_sp': (0.02, {}),
    'delta': (0.02, {}),
    'bss': (0.02, _TENTH | {'optimizer.weight_decay': 5e-4}),
}


# Learning rates on pictures in colour, where they are not data_sets.NATURAL's.
NATURAL_RATES = {'tenth': 0.01, 'bss': 0.01}


def bit_resolution(side: int) -> int:
    """Returns the side in pixels of the crops that BiT trains on, which depends on the side of the images."""
    return 128 if side < 96 else 480


def bit_steps(size: int) -> tuple[int, ...]:
    """Returns the steps of the warm-up, of three decays by 10, and of all training, for `size` training images."""
    if size < 20_000:
        return 100, 200, 300, 400, 500
    if size < 500_000:
        return 500, 3000, 6000, 9000, 10_000
    return 500, 6000, 12_000, 18_000, 20_000


def bit_mixup(size: int) -> float:
    """Returns alpha of mixup for `size` training images."""
    return 0.1 if size >= 20_000 else 0.0


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N,strategy=NAME,model=NAME'."""
    options = common.parse_arg(arg, labels=0, strategy='full', model='efficientnet_lite0')
    strategy = options.pop('strategy')
    if strategy not in STRATEGIES:
        raise unknown('strategy', strategy, STRATEGIES)
    learning_rate, changes = STRATEGIES[strategy]
    config = common.base(**options, names=('finetune', *({strategy} & common.REGULARIZERS.keys())))
    config.data.unlabeled_split = ''  # nothing reads it
    config.ema_decay = 0.0
    config.optimizer.weight_decay = 0.0
    config.model.crop = 1.0
    config.log_steps = 10
    if strategy == 'scratch':
        config.model.pretrained = ''
    data = options['data']
    if data.small:
        common.pretrained(config, data)
        config.data.unlabeled_ratio = 1
        if config.model.frozen_statistics:
            learning_rate = NATURAL_RATES.get(strategy, config.optimizer.learning_rate)
        config.optimizer.learning_rate = learning_rate
    else:
        size = data.train if options['labels'] == -1 else options['labels']
        warmup, *boundaries, steps = bit_steps(size)
        config.update_from_flattened_dict(
            {
                'steps': steps,
                'batch_size': min(512, size),
                'model.resolution': bit_resolution(data.side),
                'methods.finetune.mixup': bit_mixup(size),
                'optimizer.learning_rate': 0.003 * min(512, size) / 512,
                'optimizer.schedule': 'steps',
                'optimizer.warmup': warmup / steps,
                'optimizer.boundaries': tuple(step / steps for step in boundaries),
                'eval_steps': steps // 20,
                'checkpoint_steps': steps // 10,
            }
        )
    config.update_from_flattened_dict(changes)
    if strategy == 'delta' and not data.small:
        config.methods.delta.alpha = 0.64 / config.batch_size  # the authors' .01 is for batches of 64
    if strategy == 'unfreeze':
        config.optimizer.unfreeze_step = config.steps // 4
    return config.lock()
