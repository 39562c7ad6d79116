"""Config files: one a method, and those of tables in configs/tables/."""

import pkgutil

# Of the files that --config takes, without .py.
NAMES = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in ('common', 'data_sets', 'tables'))
