"""Other names of data sets, which config arguments and `data.prepare` take."""

ALIASES = {'svhn': 'svhn_cropped'}
