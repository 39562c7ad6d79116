"""A folder of a user's own pictures as a tfds data set, which is prepared when it is first used."""

import contextlib
import io
import os
import re

import tensorflow_datasets as tfds
from absl import logging

from data.pictures import folder as folder_lib
from data.pictures import rules


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The pictures of a folder, encoded as they are. data/pictures/ says which, and of which class and split each is.

    Image uint8 [H, W, 3] of various sizes; label the number of the class in the order of code points, -1 without one;
    file the path relative to the folder. Splits 'train' and 'test', and 'validation' and 'unlabeled' if there are such
    pictures. Its config is named by the content of the folder. Needs no TensorFlow.
    """

    VERSION = tfds.core.Version('1.0.0')
    url_infos = None  # As in digits.py.

    def __init__(self, name: str, data_dir: str):
        """Looks at the folder.

        Raises:
            UserError: No training is possible with it.
        """
        self._folder, _ = folder_lib.resolve(name)
        self._pictures = rules.usable(name)
        super().__init__(config=tfds.core.BuilderConfig(name=_config(name)), data_dir=data_dir)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(None, None, 3)),
                    'label': tfds.features.ClassLabel(names=list(self._pictures.classes)),
                    'file': tfds.features.Text(),
                }
            ),
            supervised_keys=('image', 'label'),
            metadata=tfds.core.MetadataDict(summary=rules.summary(self._pictures)),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in {entry.split for entry in self._pictures.entries}}

    def _generate_examples(self, split):
        numbers = {name: i for i, name in enumerate(self._pictures.classes)} | {'': -1}
        for entry in self._pictures.entries:
            if entry.split == split:
                raw = (self._folder / entry.path).read_bytes()
                yield entry.path, {'image': raw, 'label': numbers[entry.label], 'file': entry.path}


def prepared(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Returns the data set of a folder of pictures, prepared.

    Args:
        name: As for `folder.is_folder`.
        data_dir: Folder of prepared data sets.

    Raises:
        UserError: There is no such folder, no training is possible with it, or its data set cannot be written.
    """
    path = os.path.join(data_dir, 'pictures', _config(name), str(Pictures.VERSION))
    if not os.path.isdir(path):
        # tfds's messages and progress bars are longer than what they report.
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                Pictures(name, data_dir).download_and_prepare(file_format='array_record')
        finally:
            logging.set_verbosity(verbosity)
    return tfds.builder_from_directory(path)


def _config(name: str) -> str:
    folder, table = folder_lib.resolve(name)
    stem = re.sub(r'\W+', '_', folder.resolve().name + table.removesuffix('.csv'))
    return f'{stem}-{folder_lib.fingerprint(name)[:16]}'
