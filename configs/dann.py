"""Domain adaptation: labels in one domain, images without labels in another; DANN and what it is compared with.

    python main.py --config=configs/dann.py                                          digits -> digits_m
    python main.py --config=configs/dann.py:methods=cdan+mcc
    python main.py --config=configs/dann.py:mnist,target=usps                        and usps, target=mnist
    python main.py --config=configs/dann.py:svhn_cropped,target=mnist                and mnist, target=mnist_m
    python main.py --config=configs/dann.py:office31/amazon,target=office31/webcam   and any other pair of them
    python main.py --config=configs/dann.py:office_home/art,target=office_home/clipart
    python main.py --config=configs/dann.py:visda/train,target=visda/validation
    python main.py --config=configs/dann.py:domainnet/real,target=domainnet/sketch
    python main.py --config=configs/dann.py:emnist/digits,target=mnist               or any two with equal classes

methods is one of, or several of with + between,

    source_only       labels of the source, nothing of the target
    adabn             the same, normalised and evaluated with the target's own statistics
    dann, cdan, cdan_e (CDAN+E), mcc, coral, mmd (DAN), jan, fixmatch, adamatch
    target            the upper bound: labels of the target, nothing of the source

Recipes are in configs/data_sets.py: ours of minutes for digits, TLlib's (thuml) for the other sets above but EMNIST.
Measured here: results/README.md. TLlib evaluates on the very images it adapts to (`--config.data.protocol=transductive`
does that, except for digits) and reports the best epoch by their labels. Here the target's test images are new, a fifth
of its images where it has no test set, and the accuracy is the last one. configs/tables/office31.py and
digits_domains.py print TLlib's numbers beside ours, with its protocol. They have not been run yet.
"""

from ml_collections import ConfigDict

from configs import common, data_sets
from errors import UserError, unknown
from train import settings

# {name: {method: hyper-parameters that differ from its defaults}}, beside labels of the source
METHODS: dict[str, dict[str, dict[str, bool]]] = {
    'source_only': {},
    'adabn': {},
    'target': {},
    'dann': {'dann': {}},
    'cdan': {'cdan': {}},
    'cdan_e': {'cdan': {'entropy': True}},
    'mcc': {'mcc': {}},
    'coral': {'coral': {}},
    'mmd': {'mmd': {}},
    'jan': {'mmd': {'joint': True, 'linear': False}},
    'fixmatch': {'fixmatch': {}},
    'adamatch': {'adamatch': {}},
}
TARGET_MIN_AREA = 0.5  # of random crops that get pseudo-labels (TLlib's fixmatch.py)


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'SOURCE,target=TARGET,methods=NAME+NAME,model=NAME'."""
    options = common.parse_arg(arg, target='', methods='dann')
    source = options['data']
    if not options['target'] and source.name != 'digits':
        raise UserError(f'Name the target domain, as in configs/dann.py:{source.name},target=...')
    target = data_sets.get(options['target'] or 'digits_m')
    names = options['methods'].split('+')
    for name in names:
        if name not in METHODS:
            raise unknown('method of this config', name, METHODS)
    recipe = source.adaptation or data_sets.MINUTES_OF_ADAPTATION
    methods = {method: fields for name in names for method, fields in METHODS[name].items()}
    if 'adamatch' not in methods:  # which has a labeled term of its own
        methods = {'supervised': {}, **methods}
    config = settings.to_config(tuple(methods), options['model'] or recipe.network or common.NETWORK)
    for method, fields in methods.items():
        config.methods[method].update(fields)
    config.update_from_flattened_dict(source.settings)
    channels = max(source.channels, target.channels)
    config.update_from_flattened_dict(source.normalisation(channels))
    whole = source.splits[0].partition('[')[0]  # nothing of the source has to be kept for a test
    config.data.update(labels=-1, train_split=whole, target=target.name, unlabeled_ratio=1)
    if target.size != source.size:
        config.data.image_size = source.side
    config.optimizer.schedule = 'inverse'
    config.update_from_flattened_dict(data_sets.augmentation(recipe.settings.get('data.image_size') or source.side))
    config.update_from_flattened_dict(common.without_network(recipe.settings, config.model.name))
    # Other networks than the recipe's, on small images.
    if source.size and config.model.name != recipe.network and config.model.get('pretrained'):
        common.pretrained(config)
        config.update_from_flattened_dict(data_sets.PRETRAINED_ADAPTATION)
    for name in names:
        own = recipe.methods.get(name, {})
        config.update_from_flattened_dict(
            {key: value for key, value in own.items() if len(names) == 1 or key.startswith('methods.')}
        )
    if config.data.weak.min_area and {'fixmatch', 'adamatch'} & methods.keys():
        config.data.unlabeled_min_area = TARGET_MIN_AREA
    for name in ('dann', 'cdan'):
        if name in methods and recipe.ramp_steps:
            config.methods[name].gamma = config.steps / recipe.ramp_steps
    if 'adabn' in names:
        config.model.batch_norm = 'adabn'
    config.data.target_split = target.splits[0] if target.splits[0] != config.data.train_split else ''
    config.data.test_split = target.splits[1]
    if names == ['target']:
        config.data.update(name=target.name, target='', validation=0, target_split='', train_split=target.splits[0])
        config.data.label_protocol = target.label_protocol
        config.update_from_flattened_dict(target.normalisation(target.channels))
    return config.lock()
