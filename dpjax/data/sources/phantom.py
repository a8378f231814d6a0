"""Procedural frontal chest radiographs: a set with boxes that needs no data.

The label is the number of opacities, 0 to 4, and every opacity has its box.
Everything else (anatomy, pose, exposure, noise, and distractors without a box)
follows one law at every label: an exam is drawn first and its opacities are
added afterwards, from a generator of their own. Labels are long-tailed as in
the RSNA Pneumonia Detection Challenge, stage 2 (Shih et al., 2019).

Lengths are in two frames. Boxes and patches use the image's unit frame, x to
the right and y down, 0..1 over the edges. Anatomy uses the patient's frame
(u, v): 0 on the spine, about -1..1 over the image, u > 0 on the patient's left
(the right side of the image). Attenuation is 0 in air and about 1 in the
mediastinum, before the tone curve turns it into grey levels.

`VERSION` is the generator's: a change of one pixel, box or label raises it and
voids every table made with an earlier one.
"""

import dataclasses
import functools

import numpy as np

from dpjax.data import radiograph
from dpjax.errors import UserError

VERSION = 1

# RSNA stage 2: exams with 0, 1, 2, 3 and 4 boxes; 26,684 in all.
RSNA_COUNTS = (20672, 2614, 3266, 119, 13)
MIN_PER_CLASS = 10

# A box bounds the points where an opacity reaches this share of its own peak.
BOX_SHARE = 0.3
# Boxes of one exam keep this distance, so that their number is well defined.
BOX_GAP = 0.015
MIN_BOX = 0.05  # the shortest side of a box

# Every random stream is default_rng((seed, stream, number)), the number being
# the patient's or the exam's: what one consumes never shifts another.
_SET, _ANATOMY, _TISSUE, _VESSELS, _POSE = range(5)
_DISTRACTORS, _OPACITIES, _FILM, _NOISE = range(5, 9)


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that a phantom depends on: `label` is its number of opacities."""

  seed: int
  index: int
  patient: int
  label: int


@dataclasses.dataclass(frozen=True)
class Opacity:
  """One opacity: its attenuation on a square grid over the patch, its box.

  Attributes:
    field: (32, 32) float32 attenuation at nodes that include the patch's edges.
    patch: (x0, y0, x1, y1) of the grid's outer nodes, unit frame.
    box: (x0, y0, x1, y1) bounds where the bilinear field reaches BOX_SHARE of
      its peak; too wide by less than one node, never too tight.
  """

  field: np.ndarray
  patch: tuple[float, float, float, float]
  box: tuple[float, float, float, float]


def class_counts(
  count: int, least: int = MIN_PER_CLASS
) -> tuple[int, int, int, int, int]:
  """Returns how many of `count` images have 0, 1, 2, 3 and 4 opacities.

  RSNA's shares, but at least `least` of each; class 0 takes what is left, so
  that the five sum to `count`.

  Args:
    count: number of images, at least 50.
    least: images of each class, at least 10.

  Raises:
    UserError: if `count` is below 5 times `least`.
  """
  if count < 5 * least:
    raise UserError(
      f'data.phantom.count is {count}: it must be at least {5 * least},'
      f' {least} images for each of the 5 classes'
    )
  total = sum(RSNA_COUNTS)
  one, two, three, four = (
    max(least, round(count * n / total)) for n in RSNA_COUNTS[1:]
  )
  return count - one - two - three - four, one, two, three, four


def read(
  count: int, seed: int, size: int = 256, least: int = MIN_PER_CLASS
) -> list[radiograph.Radiograph]:
  """Returns `count` phantoms in a seeded, shuffled order.

  Nothing is rendered: `pixels` is a picklable call of `render`. One patient in
  five has two exams, with the same anatomy but labels of their own.

  Args:
    count: number of images, at least 50.
    seed: non-negative seed of the whole set.
    size: side of the images, in pixels.
    least: images of each class, as in `class_counts`.

  Raises:
    UserError: if `count` is below 5 times `least`.
  """
  counts = class_counts(count, least)
  rng = np.random.default_rng((seed, _SET, 0))
  labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
  pairs = count // 6
  patients = np.concatenate([np.arange(count - pairs), np.arange(pairs)])
  patients = rng.permutation(patients)
  records = []
  for index in range(count):
    plan = Plan(seed, index, int(patients[index]), int(labels[index]))
    boxes = tuple(opacity.box for opacity in opacities(plan))
    names = ('opacity',) * len(boxes)
    records.append(
      radiograph.Radiograph(
        id=f'phantom-{index:05d}',
        pixels=functools.partial(render, plan, size),
        boxes=boxes,
        names=names,
        findings=names,
        group=f'phantom-patient-{plan.patient:05d}',
        stamp=f'version {VERSION} seed {seed} size {size}',
      )
    )
  return records


# Geometry: one chest in one pose.


@dataclasses.dataclass(frozen=True)
class _Chest:
  """A patient's thorax as it stands in one exam."""

  scale: float  # image half-widths per unit of (u, v)
  shift_x: float
  shift_y: float
  tilt: float  # of the spine, u per v
  bend: float  # of the spine (scoliosis)
  apex: float  # v of the top of the lungs
  base: float  # v of the lungs' lateral bottom, on the right
  sides: float  # how much lower the left base is
  dome: float  # height of the diaphragm's domes
  width: float  # u of the lateral wall at the base
  roundness: float  # of the lateral wall
  mediastinum: float  # its half-width above the heart
  knob: float  # bulge of the aortic arch
  atrium: float  # bulge of the heart to the right
  ventricle: float  # bulge of the heart to the left

  def patient(self, x, y):
    """Maps x (1, W), y (H, 1) of the unit frame to u (H, W), v (H, 1)."""
    v = ((2 * y - 1) - self.shift_y) / self.scale
    u = ((2 * x - 1) - self.shift_x) / self.scale
    return u - self.tilt * v - self.bend * np.sin(2.5 * v), v

  def image(self, u, v):
    """Maps u, v to x, y of the unit frame: the inverse of `patient`."""
    u = u + self.tilt * v + self.bend * np.sin(2.5 * v)
    x = (u * self.scale + self.shift_x + 1) / 2
    return x, (v * self.scale + self.shift_y + 1) / 2


def _chest(plan):
  """Draws the patient's anatomy, then this exam's pose."""
  a = np.random.default_rng((plan.seed, _ANATOMY, plan.patient)).random(13)
  p = np.random.default_rng((plan.seed, _POSE, plan.index)).random(5)

  def between(t, low, high):
    return float(low + t * (high - low))

  inspiration = between(p[0], -0.1, 0.06)
  base = between(a[1], 0.48, 0.66) + inspiration
  return _Chest(
    scale=between(p[1], 0.86, 1.10) * between(a[2], 0.95, 1.04),
    shift_x=between(p[2], -0.07, 0.07),
    shift_y=between(p[3], -0.06, 0.10),
    tilt=between(p[4], -0.05, 0.05),
    bend=between(a[3], -0.025, 0.025),
    apex=between(a[4], -0.82, -0.72),
    base=base,
    sides=between(a[5], -0.01, 0.08),
    dome=between(a[6], 0.16, 0.26),
    width=between(a[7], 0.66, 0.78),
    roundness=between(a[8], 0.40, 0.58),
    mediastinum=between(a[9], 0.08, 0.13),
    knob=between(a[10], 0.02, 0.08),
    atrium=between(a[11], 0.03, 0.14),
    ventricle=between(a[0], 0.18, 0.46) * between(a[12], 0.8, 1.1),
  )


def _step(t):
  """Rises smoothly from 0 at t = -0.5 to 1 at t = 0.5."""
  t = np.clip(t + 0.5, 0, 1)
  return t * t * (3 - 2 * t)


def _wall(chest, v):
  """|u| of the lungs' lateral wall at height v; 0 above the apex."""
  bottom = chest.base + 0.12
  t = np.clip((bottom - v) / (bottom - chest.apex), 0, 1)
  return chest.width * (1 - 0.06 * (1 - t)) * (1 - t**2.7) ** chest.roundness


def _diaphragm(chest, u):
  """v of the diaphragm's domes."""
  m = np.abs(u) - 0.30
  fall = np.minimum(4.4 * m * m, 1)
  right = chest.base - chest.dome
  return np.where(u > 0, right + chest.sides, right) + chest.dome * fall


def _border(chest, u, v):
  """|u| where the mediastinum, with the heart, ends and the lung begins."""
  low = chest.base - 0.75 * chest.dome  # where the heart rests
  left = chest.mediastinum + chest.ventricle * _step((v - low + 0.22) / 0.62)
  left = left + chest.knob * np.exp(-(((v + 0.32) / 0.10) ** 2))
  right = chest.mediastinum + chest.atrium * np.exp(
    -(((v - low + 0.14) / 0.24) ** 2)
  )
  return np.where(u > 0, left, right)


def _lungs(chest, u, v, border=None):
  """Depth of lung at (u, v): 0 outside, at most 1."""
  border = _border(chest, u, v) if border is None else border
  m = np.abs(u)
  outer = _wall(chest, v) - m
  field = _step(outer / 0.05) * (0.07 + 0.93 * _step((m - border) / 0.06))
  field *= _step((_diaphragm(chest, u) - v) / 0.05)
  field *= _step((m - 0.06) / 0.06)
  return field * (0.6 + 0.4 * _step(outer / 0.4 - 0.5))


# Opacities.

_NODES = 32
_AXIS = np.linspace(-1, 1, _NODES)
_RADIUS = np.hypot(_AXIS[None, :], _AXIS[:, None])
_ANGLE = np.arctan2(_AXIS[:, None], _AXIS[None, :])
_WAVES = np.stack(
  [f(k * _ANGLE) / k for k in range(1, 6) for f in (np.cos, np.sin)]
)


def _splines(positions, nodes):
  """Cubic B-spline weights (len(positions), nodes); positions in 0..1."""
  d = np.abs(np.asarray(positions)[:, None] * (nodes - 1) - np.arange(nodes))
  near = 2 / 3 - d * d * (1 - d / 2)
  far = np.clip(2 - d, 0, None) ** 3 / 6
  return np.where(d < 1, near, far).astype(np.float32)


def _resample(rows, grid, columns):
  """rows @ grid @ columns.T, without BLAS.

  Its threads would fight those of the other workers (a third of the speed on
  two cores), and the bits might depend on their number.
  """
  down = np.einsum('ik,kl->il', rows, grid)
  return np.einsum('il,lj->ij', down, np.ascontiguousarray(columns.T))


_COARSE = _splines(np.linspace(0, 1, _NODES), 7)
_FINE = _splines(np.linspace(0, 1, _NODES), 14)


def _blob(rng):
  """Draws an opacity's shape on the patch: (32, 32), peak about 1.

  Between a consolidation, even and dense, and ground glass, hazy and patchy
  (Fleischner glossary, Hansell et al., 2008).
  """
  waves = np.einsum('k,kij->ij', rng.normal(0, 0.13, len(_WAVES)), _WAVES)
  coarse = _resample(_COARSE, rng.standard_normal((7, 7)), _COARSE)
  fine = _resample(_FINE, rng.standard_normal((14, 14)), _FINE)
  glass = rng.random()  # 0 is a consolidation, 1 is ground glass
  radius = _RADIUS * (1.5 + waves) + (0.10 + 0.15 * glass) * coarse
  edge = rng.uniform(0.5, 0.9) + 0.3 * glass
  texture = 1 + (0.12 + 0.3 * glass) * fine + 0.2 * glass * coarse
  rim = np.clip((1 - _RADIUS) / 0.15, 0, 1)  # the patch's own edge is 0
  return _step((0.95 - radius) / edge) * np.clip(texture, 0, None) * rim


def _extent(profile, level):
  """First and last point, in 0..1, where a sampled profile reaches `level`."""
  reached = np.flatnonzero(profile >= level)
  low, high = float(reached[0]), float(reached[-1])
  if low > 0:
    a, b = profile[reached[0] - 1], profile[reached[0]]
    low -= (b - level) / (b - a)
  if high < len(profile) - 1:
    a, b = profile[reached[-1]], profile[reached[-1] + 1]
    high += (a - level) / (a - b)
  return low / (len(profile) - 1), high / (len(profile) - 1)


def _apart(box, others):
  return all(
    box[0] > o[2] + BOX_GAP
    or box[2] < o[0] - BOX_GAP
    or box[1] > o[3] + BOX_GAP
    or box[3] < o[1] - BOX_GAP
    for o in others
  )


def opacities(plan: Plan) -> tuple[Opacity, ...]:
  """Draws the plan's opacities, without rendering: `plan.label` of them.

  A candidate is a random blob times the depth of lung behind it. One that lies
  mostly outside the lungs or too near to another is drawn again, a little
  smaller each time; where there is no room left, all are.
  """
  if plan.label == 0:
    return ()
  rng = np.random.default_rng((plan.seed, _OPACITIES, plan.index))
  chest = _chest(plan)
  found: list[Opacity] = []
  attempt = 0
  while len(found) < plan.label:
    attempt += 1
    if attempt % 100 == 0:  # the first ones leave no room for the rest
      found.clear()
    shrink = max(0.5, 0.99**attempt)
    side = 1 if rng.random() < 0.5 else -1
    u = side * rng.uniform(0.16, 0.66)
    # Pneumonia favours the lower zones: v is skewed downwards.
    v = chest.apex + 0.2 + (chest.base - chest.apex - 0.25) * rng.beta(2, 1.4)
    half_x = shrink * rng.uniform(0.11, 0.22)
    half_y = shrink * rng.uniform(0.11, 0.28)
    x, y = (float(c) for c in chest.image(u, v))
    patch = (x - half_x, y - half_y, x + half_x, y + half_y)
    inner = (x - half_x / 3, y - half_y / 3, x + half_x / 3, y + half_y / 3)
    if not _apart(inner, [o.box for o in found]):
      continue
    depth = _lungs(chest, np.float64(u), np.float64(v))
    if depth < 0.5:
      continue
    us, vs = chest.patient(
      x + half_x * _AXIS[None, :], y + half_y * _AXIS[:, None]
    )
    field = _blob(rng) * _lungs(chest, us, vs) * (side * us > 0)
    peak = field.max()
    if peak < 0.5:
      continue
    x0, x1 = _extent(field.max(axis=0), BOX_SHARE * peak)
    y0, y1 = _extent(field.max(axis=1), BOX_SHARE * peak)
    box = (
      max(0.0, patch[0] + 2 * half_x * x0),
      max(0.0, patch[1] + 2 * half_y * y0),
      min(1.0, patch[0] + 2 * half_x * x1),
      min(1.0, patch[1] + 2 * half_y * y1),
    )
    if min(box[2] - box[0], box[3] - box[1]) < MIN_BOX:
      continue
    if not _apart(box, [o.box for o in found]):
      continue
    # Log-normal, so that some are plain and some barely visible.
    amplitude = np.clip(rng.lognormal(np.log(0.18), 0.45), 0.06, 0.36)
    field = (amplitude / peak * field).astype(np.float32)
    left, top, right, bottom = map(float, box)
    found.append(Opacity(field, patch, (left, top, right, bottom)))
  return tuple(found)


def _hats(positions, nodes):
  """Linear interpolation weights (len(positions), nodes); 0 off the grid."""
  d = np.abs(positions[:, None] * (nodes - 1) - np.arange(nodes))
  return np.clip(1 - d, 0, None).astype(np.float32)


def _add_opacity(image, opacity):
  """Adds an opacity's bilinear field to the attenuation, in place."""
  size = len(image)
  x0, y0, x1, y1 = opacity.patch
  centres = (np.arange(size) + 0.5) / size
  rows = np.flatnonzero((centres > y0) & (centres < y1))
  columns = np.flatnonzero((centres > x0) & (centres < x1))
  ys = _hats((centres[rows] - y0) / (y1 - y0), _NODES)
  xs = _hats((centres[columns] - x0) / (x1 - x0), _NODES)
  image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += _resample(
    ys, opacity.field, xs
  )


# Rendering.

_STRIP = 64  # rows


def _blur(image, times):
  """Binomial blur, [1 2 1] / 4 along both axes, `times` times."""
  for _ in range(times):
    padded = np.pad(image, 1, mode='edge')
    across = 2 * padded[:, 1:-1]
    across += padded[:, :-2]
    across += padded[:, 2:]
    image = 2 * across[1:-1]
    image += across[:-2]
    image += across[2:]
    image *= 1 / 16
  return image


def _splat(groups, size):
  """Adds points of the unit frame to an empty image, bilinearly.

  Args:
    groups: of points: x, y and weight, (N,) each.
    size: of the image.
  """
  x, y, weight = (np.concatenate(p) for p in zip(*groups, strict=True))
  x, y = x * size - 0.5, y * size - 0.5
  inside = (x > 0) & (x < size - 1) & (y > 0) & (y < size - 1)
  x, y, weight = x[inside], y[inside], weight[inside]
  i, j = x.astype(np.int64), y.astype(np.int64)
  fx, fy = x - i, y - j
  corner = j * size + i
  where = np.concatenate([corner, corner + 1, corner + size, corner + size + 1])
  what = np.concatenate(
    [(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy]
  ) * np.tile(weight, 4)
  image = np.bincount(where, what, size * size)
  return image.reshape(size, size).astype(np.float32)


def _vessels(plan, chest, size):
  """Pulmonary vessels: trees that branch outwards from both hila. (S, S)."""
  rng = np.random.default_rng((plan.seed, _VESSELS, plan.patient))
  steps = 20
  roots = 11
  side = np.repeat([-1.0, 1.0], roots)
  n = len(side)
  angle = np.tile(np.linspace(-1.45, 1.4, roots), 2) + rng.normal(0, 0.12, n)
  m = chest.mediastinum + rng.uniform(0.0, 0.06, n)
  v = np.where(side > 0, -0.10, -0.05) + 0.12 * np.sin(angle)
  length = rng.uniform(0.15, 0.26, n) * (1.0 + 0.35 * np.abs(np.sin(angle)))
  thick: list[tuple[np.ndarray, ...]] = []
  thin: list[tuple[np.ndarray, ...]] = []
  for generation in range(4):
    turn = rng.normal(0, 0.35, len(m))
    along = np.linspace(0, 1, steps)
    heading = angle[:, None] + turn[:, None] * along
    ds = length / steps
    ms = m[:, None] + np.cumsum(np.cos(heading) * ds[:, None], axis=1)
    vs = v[:, None] + np.cumsum(np.sin(heading) * ds[:, None], axis=1)
    x, y = chest.image(side[:, None] * ms, vs)
    weight = (1.0, 0.62, 0.40, 0.24)[generation] * rng.uniform(0.5, 1.2, len(m))
    taper = (1 - 0.35 * along) * (ds * chest.scale * size / 2 * weight)[:, None]
    layer = thick if generation < 2 else thin
    layer.append((x.ravel(), y.ravel(), taper.ravel()))
    # Both daughters start at the end of their parent.
    side, m, v = np.tile(side, 2), np.tile(ms[:, -1], 2), np.tile(vs[:, -1], 2)
    fork = rng.uniform(0.15, 0.55, len(turn))
    angle = np.concatenate([heading[:, -1] - fork, heading[:, -1] + fork])
    length = np.tile(length, 2) * rng.uniform(0.55, 0.9, len(m))
  wide, fine = _splat(thick, size), _splat(thin, size)
  image = _blur(_blur(wide, 2) * 1.6 + fine, 1)
  return rng.uniform(0.13, 0.24) * np.minimum(image, 1.6)


def _ribs(rng, chest, u, v, wall):
  """Posterior and anterior ribs: two families of curved, shaded bands."""
  r = np.minimum(np.abs(u) / (wall + 0.03), 1.2)
  r2 = r * r
  left = rng.normal(0, 0.12) * (u > 0).astype(np.float32)
  spacing = rng.uniform(0.125, 0.155)
  drop, hook = rng.uniform(0.05, 0.16), rng.uniform(0.10, 0.20)
  start = v - chest.apex + rng.uniform(0, 0.1)
  posterior = (start - drop * (r2 - 0.6 * r) - hook * r2 * r2) / spacing + left
  rise = rng.uniform(0.22, 0.38)
  anterior = (start - rise * (1.15 - r2)) / (1.12 * spacing) + left
  inside = _step((1.03 - r) / 0.06) * _step((v - chest.apex + 0.02) / 0.05)
  inside *= 1 - 0.85 * _step((v - chest.base + 0.05) / 0.25)
  image = _shade(rng, posterior, 0.24) * rng.uniform(0.55, 1.1)
  front = _shade(rng, anterior, 0.27) * rng.uniform(0.3, 0.85)
  image += front * _step((r - 0.45) / 0.2)
  return image * inside


def _shade(rng, phase, half_width):
  """One band for every whole number that `phase` passes; brighter rims."""
  bands, samples = 16, 48
  t = np.arange(samples) / samples - 0.5
  centre = rng.normal(0, 0.03, (bands, 1))
  half = half_width * rng.uniform(0.85, 1.15, (bands, 1))
  d = np.abs(t - centre) / half
  table = _step((1 - d) / 0.25) * (0.65 + 0.35 * np.minimum(d, 1) ** 3)
  table *= rng.uniform(0.75, 1.15, (bands, 1))
  table = np.concatenate([[0], table.ravel(), [0]]).astype(np.float32)
  index = np.clip(phase * samples + 1, 0, len(table) - 1)
  return table[index.astype(np.int32)]


def _shoulders(rng, chest, u, v):
  """Clavicles, scapulae and humeral heads."""
  m = np.abs(u)
  uneven = rng.normal(0, 0.015)
  level = chest.apex + rng.uniform(0.16, 0.30)
  level = np.where(u > 0, level + uneven, level - uneven)
  slope, wave = rng.uniform(0.10, 0.30), rng.uniform(0.02, 0.05)
  curve = level - slope * m + wave * np.sin(8.5 * m)
  half = 0.028 + 0.045 * np.abs(m - 0.38)
  d = np.abs(v - curve) / half
  clavicle = _step((1 - d) / 0.3) * (0.65 + 0.35 * np.minimum(d, 1) ** 2)
  clavicle *= _step((m - 0.07) / 0.05) * _step((0.80 - m) / 0.08)
  border = rng.uniform(0.58, 0.80) + 0.25 * (v + 0.4) ** 2
  scapula = _step((m - border) / 0.04) * _step((v + 0.68) / 0.2)
  scapula *= _step((rng.uniform(-0.15, 0.05) - v) / 0.1)
  reach = rng.uniform(0.88, 1.0)
  humerus = _step((0.16 - np.hypot(m - reach, v + 0.58)) / 0.06)
  image = rng.uniform(0.10, 0.17) * clavicle + rng.uniform(0.03, 0.07) * scapula
  return image + rng.uniform(0.06, 0.12) * humerus


def _body(rng, v):
  """Half-width of the body at each height: neck, shoulders, chest, waist."""
  chest = rng.uniform(0.86, 1.05)
  neck = rng.uniform(0.20, 0.28)
  heights = (-1.5, -1.0, -0.88, -0.70, -0.45, -0.1, 0.4, 1.5)
  widths = (
    neck, neck, neck + 0.25, 0.88, chest + 0.12, chest, chest - 0.02,
    chest + 0.04,
  )  # fmt: skip
  grid = np.linspace(-1.5, 1.5, 121)
  width = np.interp(grid, heights, widths)
  smooth = np.convolve(np.pad(width, 5, mode='edge'), np.ones(11) / 11, 'valid')
  return np.interp(v[:, 0], grid, smooth)[:, None]


def _anatomy(plan, chest, u, v):
  """Returns the healthy chest's attenuation, vessels apart, and its lungs.

  Both have the shape of u, (R, S): any rows of the image, since every call
  draws the same numbers.
  """
  rng = np.random.default_rng((plan.seed, _TISSUE, plan.patient))
  border = _border(chest, u, v)
  lungs = _lungs(chest, u, v, border)
  m = np.abs(u)
  wall = _wall(chest, v)
  flank = np.clip((_body(rng, v).astype(np.float32) - m) / 0.40, 0, 1)
  flank *= 2 - flank
  below = _step((v - _diaphragm(chest, u)) / 0.07)
  below *= _step((chest.width - 0.05 - m) / 0.25)
  thick = 0.58 + 0.10 * v + rng.uniform(0.17, 0.28) * below
  # The heart and great vessels, deepest in their middle; the spine behind.
  depth = _step((border - m) / 0.08) * (0.55 + 0.45 * _step((border - m) / 0.4))
  depth *= 1 - 0.95 * below
  thick += depth * (0.19 + rng.uniform(0.04, 0.12) * _step((v + 0.1) / 0.3))
  vertebrae = 1 + 0.25 * np.sin(v * rng.uniform(42, 50))
  spine = _step((0.085 - m) / 0.05) * (1 - 0.5 * below) * vertebrae
  thick += rng.uniform(0.04, 0.10) * spine
  trachea = _step((0.04 - np.abs(u - rng.normal(0, 0.008))) / 0.03)
  thick -= rng.uniform(0.08, 0.16) * trachea * _step((-0.22 - v) / 0.12)
  image = thick * flank - rng.uniform(0.38, 0.46) * lungs
  image += 0.10 * _ribs(rng, chest, u, v, wall)
  top = slice(0, int(np.searchsorted(v[:, 0], 0.15)))
  image[top] += _shoulders(rng, chest, u[top], v[top]) * flank[top]
  if rng.random() < 0.5:  # gas in the stomach
    du = (u - rng.uniform(0.25, 0.45)) / rng.uniform(0.12, 0.26)
    dv = (v - chest.base - rng.uniform(0.02, 0.12)) / rng.uniform(0.07, 0.14)
    image -= rng.uniform(0.05, 0.2) * below * _step(0.5 - du * du - dv * dv)
  if rng.random() < 0.45:  # breasts
    centre, radius = rng.uniform(0.38, 0.5), rng.uniform(0.24, 0.34)
    d2 = (m - centre) ** 2 + (v - chest.base + rng.uniform(0.2, 0.32)) ** 2
    bulge = np.sqrt(np.clip(1 - d2 / radius**2, 0, None))
    image += rng.uniform(0.03, 0.11) * bulge
  return image, lungs


def _disc(image, x, y, radius, height, softness):
  """Adds a disc with a soft rim, in place; unit frame."""
  size = len(image)
  reach = radius * (1 + softness)
  j0, j1 = (int(np.clip((y + s * reach) * size, 0, size)) for s in (-1, 1))
  i0, i1 = (int(np.clip((x + s * reach) * size, 0, size)) for s in (-1, 1))
  ys = (np.arange(j0, j1)[:, None] + 0.5) / size - y
  xs = (np.arange(i0, i1)[None, :] + 0.5) / size - x
  d = np.hypot(xs, ys) / radius
  image[j0:j1, i0:i1] += height * _step((1 - d) / softness)


def _wire(start, bend, end, weight, size):
  """Points of a quadratic Bezier curve, weighted for `_splat`."""
  t = np.linspace(0, 1, 400)[:, None]
  start, bend, end = np.array(start), np.array(bend), np.array(end)
  points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
  span = np.hypot(*np.diff(points, axis=0).T) * size
  return points[:, 0], points[:, 1], weight * np.append(span, 0)


def _distractors(plan, chest, u, v, lungs, image):
  """Adds what is no opacity and has no box, in place: the same law for all.

  Uneven aeration, prominent hila, nipples, calcified dots, plate-like bands,
  ECG leads and their electrodes, a catheter.
  """
  rng = np.random.default_rng((plan.seed, _DISTRACTORS, plan.index))
  size = len(image)
  centres = (np.arange(size) + 0.5) / size
  haze = 0
  for nodes, strength in ((6, 0.035), (24, 0.018)):
    weights = _splines(centres, nodes)
    grid = rng.standard_normal((nodes, nodes)).astype(np.float32)
    strength *= rng.uniform(0.3, 1.5)
    haze = haze + strength * _resample(weights, grid, weights)
  # Hila: the left one stands a little higher.
  du = (np.abs(u) - chest.mediastinum - 0.05) / rng.uniform(0.07, 0.12)
  dv = np.where(u > 0, v + 0.08, v + 0.02) / rng.uniform(0.10, 0.18)
  heights = np.where(u > 0, *(0.14 * rng.beta(1.4, 2.2, 2)).astype(np.float32))
  haze = haze + heights * np.clip(1 - (du * du + dv * dv) / 3, 0, None) ** 2
  for _ in range(rng.choice(3, p=(0.7, 0.2, 0.1))):  # plates of atelectasis
    cu, cv = rng.choice((-1, 1)) * rng.uniform(0.25, 0.5), rng.uniform(0, 0.35)
    d = np.abs(v - cv - rng.normal(0, 0.3) * (u - cu)) / 0.016
    ends = _step((rng.uniform(0.08, 0.16) - np.abs(u - cu)) / 0.06)
    haze = haze + rng.uniform(0.03, 0.1) * np.clip(1 - d, 0, None) * ends
  image += haze * lungs

  def spot():
    u = rng.choice((-1, 1)) * rng.uniform(0.18, 0.6)
    return chest.image(u, rng.uniform(-0.6, 0.45))

  if rng.random() < 0.3:  # nipples, on one side or on both
    height = chest.base - rng.uniform(0.22, 0.4)
    for side in ((-1,), (1,), (-1, 1))[rng.integers(3)]:
      x, y = chest.image(side * rng.uniform(0.4, 0.5), height)
      radius = rng.uniform(0.010, 0.018)
      _disc(image, x, y, radius, rng.uniform(0.03, 0.10), 0.8)
  for _ in range(rng.poisson(0.7)):  # calcified granulomas
    radius = rng.uniform(0.003, 0.009)
    x, y = spot()
    _disc(image, x, y, radius, rng.uniform(0.08, 0.25), 0.6)
  wires = []
  if rng.random() < 0.25:  # ECG leads
    for _ in range(rng.integers(1, 4)):
      pad = x, y = spot()
      _disc(image, x, y, 0.016, rng.uniform(0.04, 0.15), 0.2)
      _disc(image, x, y, 0.006, 0.15, 0.5)
      end = (rng.choice((0.0, 1.0)), rng.uniform(0.1, 1))
      wires.append(_wire(pad, rng.uniform(0.2, 0.8, 2), end, 0.25, size))
  if rng.random() < 0.2:  # a central line, from the neck to the right atrium
    start = chest.image(rng.choice((-1, 1)) * rng.uniform(0.2, 0.5), -0.95)
    end = chest.image(-rng.uniform(0.05, 0.1), rng.uniform(-0.15, 0.15))
    bend = chest.image(-rng.uniform(0.02, 0.15), -0.6)
    wires.append(_wire(start, bend, end, 0.22, size))
  if wires:
    image += _blur(_splat(wires, size), 1)


def _film(plan, image):
  """Noise, exposure, collimation and a side marker: attenuation to uint8."""
  rng = np.random.default_rng((plan.seed, _FILM, plan.index))
  size = len(image)
  # A stream of its own: its length depends on the size, the exposure must not.
  noise = np.random.default_rng((plan.seed, _NOISE, plan.index))
  white = noise.standard_normal(image.shape, dtype=np.float32)
  grain = 0.5 * white + 1.6 * _blur(white, 1)
  # Fewer quanta arrive behind more tissue, so the noise grows with it.
  image += rng.uniform(0.003, 0.014) * grain * (0.4 + np.maximum(image, 0))
  ramp = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
  image += rng.normal(0, 0.03) * ramp + rng.normal(0, 0.04) * ramp[:, None]
  # The tone curve: a power, a soft shoulder, a fog level. As a table.
  levels = np.linspace(0, 1.6, 2048)
  gain, gamma = rng.uniform(1.05, 1.55), rng.uniform(0.75, 1.25)
  fog, top = rng.uniform(0, 22), rng.uniform(212, 252)
  z = (gain * levels) ** gamma
  table = (fog + (top - fog) * z / (1 + z**4) ** 0.25).astype(np.float32)
  index = np.clip(image * (2047 / 1.6), 0, 2047).astype(np.int32)
  grey = table[index]
  if rng.random() < 0.7:  # the side marker: a bright letter L
    n = max(2, round(size * rng.uniform(0.012, 0.02)))
    j = round(size * rng.uniform(0.04, 0.2))
    i = round(size * rng.uniform(0.86, 0.94))
    grey[j : j + 3 * n, i : i + max(1, n // 2)] = top
    grey[j + 3 * n - max(1, n // 2) : j + 3 * n, i : i + 2 * n] = top
  if rng.random() < 0.3:  # collimation, or a frame: black beyond slanted edges
    inset, slant = rng.uniform(-0.02, 0.05, 4), rng.normal(0, 0.012)
    x = ramp[None, :] + slant * ramp[:, None]
    y = ramp[:, None] - slant * ramp[None, :]
    open_ = (x > inset[0] - 0.5) & (x < 0.5 - inset[1])
    open_ &= (y > inset[2] - 0.5) & (y < 0.5 - inset[3])
    grey *= open_
  return np.clip(grey + 0.5, 0, 255).astype(np.uint8)


def render(plan: Plan, size: int = 256) -> np.ndarray:
  """Renders a phantom: (size, size) uint8, the same bits at every call.

  Attenuation adds up, anatomy + distractors + opacities; noise, the tone curve
  and the collimator turn it into grey levels.

  Args:
    plan: what to render. An exam differs from the healthy one with the same
      numbers (label 0) within its opacities' patches only.
    size: side of the image, in pixels. A smaller image shows the same chest,
      with noise of its own.
  """
  chest = _chest(plan)
  centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
  u, v = chest.patient(centres[None, :], centres[:, None])
  image, lungs = np.empty_like(u), np.empty_like(u)
  for row in range(0, size, _STRIP):  # strips that stay in the cache
    rows = slice(row, row + _STRIP)
    image[rows], lungs[rows] = _anatomy(plan, chest, u[rows], v[rows])
  image += _vessels(plan, chest, size) * np.minimum(1.6 * lungs, 1)
  _distractors(plan, chest, u, v, lungs, image)
  for opacity in opacities(plan):
    _add_opacity(image, opacity)
  return _film(plan, image)
