"""Trained networks as one model: predict, explain, embed.

    import dpjax
    model = dpjax.load('runs/mine')              # or several runs: an ensemble
                                                 # or an export's folder
    found = model.predict(['a.png', 'b.dcm'])    # or arrays (H, W) uint8
    found.probabilities, found.p_any_lesion, found.positive

What the predict command does, it does by this.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from dpjax import machine
from dpjax.data import vocabulary
from dpjax.errors import SourceFault, UserError
from dpjax.evaluation import prior_shift
from dpjax.metrics import calibration, predictions
from dpjax.metrics import prevalence as prevalence_lib
from dpjax.serving import decode, exported
from dpjax.serving import network as network_lib

Image = str | os.PathLike[str] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a model says of N images.

  Attributes:
    class_names: of each class.
    probabilities: (N, C), the mean over the runs, calibrated, and shifted to
      other shares of the classes where the model was asked to.
    p_any_lesion: (N,) 1 - p of class 0; None where no class says that there is
      no lesion.
    positive: (N,) whether p_any_lesion reaches the model's threshold; None
      without one.
    spread: (N,) largest less smallest 1 - p of class 0 of the runs, or p of the
      predicted class, before calibration; None of one run.
    unlike_training: for each image why it is unlike what the (first) run was
      trained on, () where nothing says so; None where that is not known.
    embeddings: (N, K) float32, pooled features, those of several runs in a row.
  """

  class_names: tuple[str, ...]
  probabilities: np.ndarray
  p_any_lesion: np.ndarray | None
  positive: np.ndarray | None
  spread: np.ndarray | None
  unlike_training: list[tuple[str, ...]] | None
  embeddings: np.ndarray

  def __len__(self) -> int:
    return len(self.probabilities)

  @property
  def prediction(self) -> list[str]:
    """The name of the most probable class of each image."""
    return [self.class_names[c] for c in self.probabilities.argmax(axis=1)]


@dataclasses.dataclass(frozen=True)
class Explanation:
  """Where a model looks in one image.

  Attributes:
    square: (S, S) uint8, the image as the network gets it.
    maps: {'cam': Grad-CAM, 'att_pos/STAGE' and 'att_neg/STAGE': the attention
      maps}, each (h, w) float32; of several runs those of the first.
  """

  square: np.ndarray
  maps: dict[str, np.ndarray]


class Model:
  """One trained run, or several as an ensemble.

  Attributes:
    networks: the runs, or an export.
    class_names: of each class.
    size: side of the squares that they take, pixels.
    fit: how an image becomes one (shards.square).
    any_lesion: whether class 0 says that there is no lesion.
    temperature: that calibrates the mean of the runs; None: nothing does.
    threshold: of p_any_lesion, chosen on validation; None without one.
    shares: (C,) of the classes, that it answers for; None: those in training.
    notes: lines on what is missing.
    batch_size: images that are answered at once.
  """

  def __init__(
    self,
    networks: Sequence[network_lib.Network | exported.Exported],
    *,
    batch_size: int = 64,
    prevalence: str = prevalence_lib.NONE,
  ):
    """Puts networks together.

    Args:
      networks: that tell the same classes apart and take the same squares.
      batch_size: images at a time.
      prevalence: of the classes where it is used, as evaluate.prevalence.

    Raises:
      UserError: one line: one is there twice, they do not go together, or
        there are shares of another number of classes, or nothing says those in
        training.
    """
    self.networks = tuple(networks)
    places = [os.path.realpath(network.workdir) for network in self.networks]
    for i, network in enumerate(self.networks):
      if places[i] in places[:i]:  # It would count twice in the mean.
        raise UserError(f'{network.workdir} is named twice')
    self.batch_size = batch_size
    first = self.networks[0]
    self.class_names = first.class_names
    self.size, self.fit = first.size, first.fit
    for other in self.networks[1:]:
      for what, own, theirs in (
        ('classes', ', '.join(self.class_names), ', '.join(other.class_names)),
        ('squares', f'{self.size} pixels by {self.fit}',
         f'{other.size} pixels by {other.fit}'),
      ):  # fmt: skip
        if own != theirs:
          raise UserError(
            f'{first.workdir} and {other.workdir} are no ensemble: the {what}'
            f' are {own}, and {theirs}'
          )
    self.any_lesion = vocabulary.is_normal(self.class_names[0])
    self.notes = tuple(note for n in self.networks for note in n.notes)
    self.temperature: float | None = None
    self.threshold: float | None = None
    self.shares: np.ndarray | None = None
    if prevalence != prevalence_lib.NONE:
      self._shift_to(prevalence)
    self._choose()

  def predict(
    self, images: Image | Iterable[Image], *, workers: int | None = None
  ) -> Predictions:
    """What the model says of images.

    Args:
      images: a file of any format that prepare reads, or an array (H, W) uint8,
        0 black; or several of them.
      workers: processes that decode files; None: one a CPU core.

    Raises:
      SourceFault: one is no radiograph that can be read: its name, the reason.
      UserError: an answer is not finite.
      ValueError: an array of another form.
    """
    parts = [
      self.answer([image for _, image in part], [name for name, _ in part])
      for part in _batches(self._decoded(images, workers), self.batch_size)
    ]
    if not parts:
      raise ValueError('predict: there are no images')
    return _joined(parts)

  def embed(
    self, images: Image | Iterable[Image], *, workers: int | None = None
  ) -> np.ndarray:
    """The pooled features (N, K) float32 of images; as `predict`."""
    return self.predict(images, workers=workers).embeddings

  def explain(self, image: Image) -> Explanation:
    """Where the model looks in an image; as `predict`."""
    ((_, found),) = self._decoded(image, 1)
    (maps,) = self.maps(found.square[None])
    return Explanation(found.square, maps)

  def maps(self, squares: np.ndarray) -> list[dict[str, np.ndarray]]:
    """{map: (h, w)} of each of some squares (B, S, S) uint8."""
    found = jax.device_get(self.networks[0].explain(_padded(squares)))
    return [
      {name: value[i].astype(np.float32) for name, value in found.items()}
      for i in range(len(squares))
    ]

  def answer(
    self, images: Sequence[decode.Decoded], names: Sequence[str]
  ) -> Predictions:
    """What the model says of images that are decoded already.

    Args:
      images: a batch of them.
      names: what an error calls them.

    Raises:
      UserError: one line: an answer is not finite.
    """
    squares = _padded(np.stack([image.square for image in images]))
    sent = [network.answer(squares) for network in self.networks]
    count = len(images)
    found = [
      {name: value[:count] for name, value in jax.device_get(one).items()}
      for one in sent
    ]
    for network, one in zip(self.networks, found, strict=True):
      _check_finite(network, one, names)
    each = np.stack([predictions.softmax(one['logits']) for one in found])
    probabilities = self._calibrated(each.mean(axis=0))
    lesion = spread = positive = unlike = None
    if self.any_lesion:
      lesion = calibration.lesion_score(probabilities)
      if self.threshold is not None:
        positive = lesion >= self.threshold
    if len(each) > 1:
      top = probabilities.argmax(axis=1)
      looked_at = (
        1 - each[:, :, 0] if self.any_lesion else each[:, np.arange(count), top]
      )
      spread = np.ptp(looked_at, axis=0)
    if (known := self.networks[0].known) is not None:
      unlike = known.reasons(
        found[0]['pooled'],
        np.stack([image.tones for image in images]),
        np.array([image.aspect for image in images]),
      )
    return Predictions(
      self.class_names, probabilities, lesion, positive, spread, unlike,
      np.concatenate([one['pooled'] for one in found], axis=1),
    )  # fmt: skip

  def _decoded(self, images, workers):
    """Each image, and what an error calls it."""
    if isinstance(images, str | os.PathLike | np.ndarray):
      images = [images]
    images = list(images)
    if not all(isinstance(image, np.ndarray) for image in images):
      paths = [os.fspath(image) for image in images]  # A TypeError says it.
      found = decode.stream(
        paths, self.size, self.fit, workers or machine.cores()
      )
      for path, one in zip(paths, found, strict=True):
        if isinstance(one, SourceFault):
          raise SourceFault(f'{path}: {one}')
        yield path, one
      return
    for i, image in enumerate(images):
      if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(
          'an image must be (H, W) uint8, 0 black, not of shape'
          f' {image.shape} and {image.dtype}'
        )
      try:
        decoded = decode.from_pixels(image, self.size, self.fit)
      except SourceFault as fault:
        raise SourceFault(f'array {i}: {fault}') from fault
      yield f'array {i}', decoded

  def _calibrated(self, probabilities):
    if self.temperature is not None:
      probabilities = calibration.scale(probabilities, self.temperature)
    if self.shares is not None:
      probabilities = prevalence_lib.shift(
        probabilities, self._counts, self.shares
      )
    return probabilities

  def _shift_to(self, prevalence):
    """Answers for other shares of the classes from now on."""
    configs, counts = [], []
    for network in self.networks:
      if isinstance(network, exported.Exported):
        raise UserError(
          f'config.evaluate.prevalence: {network.workdir} is an export, which'
          ' answers for the shares of the classes in training; ask its run'
        )
      if network.class_counts is None:
        raise UserError(
          f'config.evaluate.prevalence: {network.workdir} does not say how many'
          ' images of each class it was trained on: an earlier version has'
          ' trained it'
        )
      configs.append(network.config)
      counts.append(network.class_counts)
    self._counts = np.sum(counts, axis=0)
    shares = prevalence_lib.target(prevalence, self._counts)
    assert shares is not None  # It is not called for 'none'.
    self.shares = shares
    said = ', '.join(
      f'{name} {share:.3g}'
      for name, share in zip(self.class_names, shares, strict=True)
    )
    self.notes += (
      f'it answers for these shares of the classes: {said}',
      *dict.fromkeys(filter(None, map(prior_shift.too_far, configs))),
    )

  def _choose(self):
    """Chooses on validation as evaluate does, of one run and of several."""
    several = len(self.networks) > 1
    if not several:
      self.temperature = self.networks[0].temperature
      self.threshold = self.networks[0].threshold
    every = {str(n.workdir): n.validation for n in self.networks}
    seen = {place: one for place, one in every.items() if one is not None}
    if len(seen) < len(every):
      if several:
        without = ', '.join(place for place in every if place not in seen)
        self.notes += (
          'the mean of the runs is not calibrated, and there is no threshold:'
          f' {without} has no validation split to choose them on',
        )
      return
    first = next(iter(seen.values()))
    try:
      mean = predictions.mean(seen, first.ids, first.labels)
    except UserError as error:
      self.notes += (
        'the runs have other validation splits, so the mean is not calibrated,'
        f' and there is no threshold ({error})',
      )
      return
    if several:
      self.temperature = calibration.fit_temperature(first.labels, mean)
    if self.any_lesion:
      self.threshold = calibration.choose_threshold(
        first.labels, self._calibrated(mean)
      )


def load(
  *runs: str | os.PathLike[str],
  checkpoint: str | None = None,
  batch_size: int = 64,
  prevalence: str | None = None,
  config: ConfigDict | None = None,
) -> Model:
  """The model of a trained run, or of several as an ensemble.

  Args:
    *runs: workdirs of stage II runs or recipes, or folders of exports.
    checkpoint: 'last' or 'best'; None: the one that was evaluated.
    batch_size: images that are answered at once; changes the speed only.
    prevalence: 'balanced', or the share of each class where the model is used
      ('0.7,0.2,0.1'): answers and threshold are for those. None, 'none': for
      the shares in training.
    config: as resolved; see network.restore.

  Raises:
    UserError: one line: there is no such run, or they do not go together.
  """
  if not runs:
    raise ValueError('load: name the workdir of a run')
  return Model(
    [_restore(run, checkpoint, config) for run in runs],
    batch_size=batch_size,
    prevalence=prevalence or prevalence_lib.NONE,
  )


def _restore(run, checkpoint, config):
  if exported.is_export(run):
    if checkpoint is not None:
      raise UserError(f'{run} is an export, and has one checkpoint only')
    return exported.restore(pathlib.Path(os.path.expanduser(run)))
  return network_lib.restore(run, checkpoint=checkpoint, config=config)


def _check_finite(network, found, names):
  """Refuses an answer that is none: argmax would call it the first class."""
  bad = ~np.isfinite(found['logits']).all(axis=1)
  if bad.any():
    raise UserError(
      f'{names[int(bad.argmax())]}: the answer of {called(network)} is not'
      ' finite; has the run diverged?'
    )


def called(network: network_lib.Network | exported.Exported) -> str:
  """'WORKDIR, step N', for a line; of an export of several steps WORKDIR."""
  at = '' if network.step is None else f', step {network.step}'
  return f'{network.workdir}{at}'


def _batches(images, size):
  batch = []
  for image in images:
    batch.append(image)
    if len(batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch


def _padded(squares):
  """Filled up to a power of two, so that few sizes are compiled."""
  full = 1 << (len(squares) - 1).bit_length()
  return np.pad(squares, ((0, full - len(squares)), (0, 0), (0, 0)))


def _joined(parts):
  def joined(name):
    values = [getattr(part, name) for part in parts]
    if values[0] is None:
      return None
    if isinstance(values[0], list):
      return [one for value in values for one in value]
    return np.concatenate(values)

  names = [field.name for field in dataclasses.fields(Predictions)]
  return Predictions(
    parts[0].class_names, **{name: joined(name) for name in names[1:]}
  )
