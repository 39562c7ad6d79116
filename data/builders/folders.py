"""Data sets of domain adaptation that come as a folder of images for each class: Office-31, Office-Home, VisDA-2017."""

import concurrent.futures
import dataclasses
import pathlib

import tensorflow_datasets as tfds
from PIL import Image

from errors import UserError

MAX_LISTED = 20


@dataclasses.dataclass(eq=False)  # Like those of tfds, which uses configs as keys of dicts.
class Domain(tfds.core.BuilderConfig):
    """One domain.

    Attributes:
        path: Folder of its class folders, relative to the folder of the data set.
        count: Number of images.
    """

    path: str = ''
    count: int = 0


class FromFolders(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders. A domain is a config, with one split, 'train', in tfds's own, shuffled, order.

    Images are uint8 [H, W, 3] of various sizes (the files as they are). Labels number the class folders by their names,
    in the order of code points. Hidden files and folders are ignored. Needs no TensorFlow.

    Attributes:
        NUM_CLASSES: Number of classes, which are the same in every domain.
        PAGE: Web page of the images.
        folder: pathlib.Path of the folder that the domains' paths are relative to.
    """

    VERSION = tfds.core.Version('1.0.0')
    NUM_CLASSES: int
    PAGE: str
    url_infos = None  # As in digits.py.
    folder = None

    @property
    def HOW(self) -> str:  # noqa: N802 - a constant in the other builders
        return f"--from=FOLDER, where FOLDER has '{self.builder_config.path}/<class>/<image>' (from {self.PAGE})"

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(None, None, 3)),
                    'label': tfds.features.ClassLabel(num_classes=self.NUM_CLASSES),
                }
            ),
            supervised_keys=('image', 'label'),
            homepage=self.PAGE,
        )

    def _split_generators(self, dl_manager):
        domain = self.folder / self.builder_config.path
        if not domain.is_dir():
            raise UserError(f'No folder {domain}. Use {self.HOW}.')
        classes = [path for path in _visible(domain) if path.is_dir()]
        if len(classes) != self.NUM_CLASSES:
            raise UserError(f'{domain} has {len(classes)} folders, not one for each of the {self.NUM_CLASSES} classes.')
        files = [path for folder in classes for path in _visible(folder)]
        if len(files) != self.builder_config.count:
            raise UserError(
                f'{domain} has {len(files):,} images, not {self.builder_config.count:,}: unpack the original again '
                f'(from {self.PAGE}).'
            )
        with concurrent.futures.ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock.
            bad = [str(path) for path, good in zip(files, pool.map(_readable, files), strict=True) if not good]
        if bad:
            more = f' and {len(bad) - MAX_LISTED} more' * (len(bad) > MAX_LISTED)
            raise UserError(f'No images, or damaged: {", ".join(bad[:MAX_LISTED])}{more}. Unpack the original again.')
        self.info.features['label'].names = [path.name for path in classes]
        return {'train': self._generate_examples(files)}

    def _generate_examples(self, files):
        for path in files:
            yield f'{path.parent.name}/{path.name}', {'image': path.read_bytes(), 'label': path.parent.name}


class Office31(FromFolders):
    """Office-31 (Saenko et al., ECCV 2010): 31 kinds of office objects as products, by a camera, by a webcam."""

    NUM_CLASSES = 31
    PAGE = 'https://faculty.cc.gatech.edu/~judy/domainadapt/'
    BUILDER_CONFIGS = [  # noqa: RUF012 - as tfds has it
        Domain(name='amazon', path='amazon/images', count=2817),
        Domain(name='dslr', path='dslr/images', count=498),
        Domain(name='webcam', path='webcam/images', count=795),
    ]


class OfficeHome(FromFolders):
    """Office-Home (Venkateswara et al., CVPR 2017): 65 kinds of everyday objects in four styles."""

    NUM_CLASSES = 65
    PAGE = 'https://www.hemanthdv.org/officeHomeDataset.html'
    BUILDER_CONFIGS = [  # noqa: RUF012
        Domain(name='art', path='Art', count=2427),
        Domain(name='clipart', path='Clipart', count=4365),
        Domain(name='product', path='Product', count=4439),
        Domain(name='real_world', path='Real World', count=4357),
    ]


class Visda(FromFolders):
    """VisDA-2017, classification (Peng et al., 2017): 12 kinds of objects, renderings (train) and photographs."""

    NUM_CLASSES = 12
    PAGE = 'https://ai.bu.edu/visda-2017/'
    BUILDER_CONFIGS = [  # noqa: RUF012
        Domain(name='train', path='train', count=152397),
        Domain(name='validation', path='validation', count=55388),
    ]


NAMES = tuple(f'{cls.name}/{domain.name}' for cls in (Office31, OfficeHome, Visda) for domain in cls.BUILDER_CONFIGS)


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith('.'))


def _readable(path: pathlib.Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # Pillow raises many types for damaged files.
        return False
    return True
