"""A finished run: its network with its averaged weights, and its classes."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import methods
import models
from data.pictures import decoding
from data.pictures import folder as pictures
from errors import UserError, first_line
from models.preprocess import Preprocessing
from train import checkpoint, run_folder, settings
from train.settings import Settings
from train.streams import Streams
from train.trainer import averaged

BATCH = 32  # pictures that the network sees at once, always: its program is compiled once


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        folder: Its folder.
        settings: Its settings.
        result: The content of its result.json.
        model: Its network.
        variables: The network's averaged parameters, and its running statistics.
        step: Number of steps after which they were saved.
    """

    folder: pathlib.Path
    settings: Settings
    result: dict[str, Any]
    model: models.Model
    variables: dict[str, Any]
    step: int

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.result['class_names'])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` of the images that the network was trained on, before its own preprocessing."""
        return tuple(self.result['image_shape'])

    def forward(self, images: Any) -> dict[str, jax.Array]:
        """Returns every output of the network for images, uint8 `[N, H, W, C]`."""
        return self.model.apply(self.variables, self.model.preprocess(images.astype(jnp.float32) / 255))[0]

    @functools.cached_property
    def _compiled(self):
        def outputs(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            every = dataclasses.replace(self, variables=variables).forward(images)
            return {name: every[name] for name in ('logits', 'features')}

        return functools.partial(jax.jit(outputs), self.variables)  # as constants they would take longer to compile

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits, float32 `[N, C]`, and features, float32 `[N, D]`, for images, uint8 `[N, H, W, C]`.

        Those of an image depend on no other image.
        """
        logits, features = [], []
        for start in range(0, max(len(images), 1), BATCH):
            batch = images[start : start + BATCH]
            padded = np.pad(batch, [(0, BATCH - len(batch))] + [(0, 0)] * 3)
            outputs = jax.device_get(self._compiled(padded))
            logits.append(outputs['logits'][: len(batch)])
            features.append(outputs['features'][: len(batch)])
        return np.concatenate(logits), np.concatenate(features)

    def decode(self, raw: bytes) -> np.ndarray:
        """Returns an encoded picture as the run's images are, uint8 `[H, W, C]`.

        Raises:
            Exception: As for `decoding.open_picture`.
        """
        height, width, channels = self.image_shape
        mode = 'L' if channels == 1 else 'RGB'
        return np.asarray(decoding.decode(raw, mode, (width, height))).reshape(self.image_shape)

    def streams(self, data_dir: str | None = None) -> Streams:
        """Returns the run's data.

        Raises:
            UserError: They cannot be read, or are others than the run's.
        """
        data, config = self.settings.data, _read_json(self.folder / 'config.json')
        for name, sha256 in config.get('pictures', {}).items():
            if pictures.fingerprint(name) != sha256:
                raise UserError(f'Pictures of {name} have changed since {self.folder} was trained.')
        streams = Streams.load(self.settings, data_dir)
        if _read_json(self.folder / 'labels.json') != streams.manifest:
            raise UserError(f'{data.name} has other images now than {self.folder} was trained on.')
        return streams


def unit(features: np.ndarray) -> np.ndarray:
    """Returns features, float32 `[N, D]`, divided by their lengths."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def load(name: str) -> Finished:
    """Reads a finished run.

    Args:
        name: Its folder.

    Raises:
        UserError: It is no folder of a finished run of this version of the code, or one without a classifier.
    """
    folder = pathlib.Path(name).expanduser()
    result = run_folder.finished(folder)
    if result is None:
        raise UserError(f'{name} is not the folder of a finished run.')
    if 'class_names' not in result:
        raise UserError(f'{name} was made by an earlier version: its result.json has no class_names.')
    config, run_settings = _read_json(folder / 'config.json'), settings.from_json(result['settings'])
    views = {view for method in run_settings.methods.items() for view in methods.create(*method).views()}
    if all(view.stream != 'labeled' for view in views):
        raise UserError(f'{name} has features, and no classifier that was trained.')
    try:
        step, state = checkpoint.read(folder, selected=True)
    except Exception as error:  # orbax raises many types
        raise UserError(f'{name} has no checkpoint that can be read: {first_line(error)[:200]}') from error
    chosen = {key: value for key, value in run_settings.model.items() if key != 'pretrained'}
    chosen['precision'] = 'float32'  # as its parameters are; not every format has another one
    model = models.create(num_classes=len(result['class_names']), **chosen)
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config['preprocessing'].items()}
    model = dataclasses.replace(model, preprocess=Preprocessing(**fields))
    variables = dict(zip(('params', 'batch_stats'), averaged(state), strict=True))
    return Finished(folder, run_settings, result, model, variables, step)


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read: {first_line(error)}') from error
