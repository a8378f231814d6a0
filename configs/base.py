"""Every field of dpjax, with its default and what it means.

The other files of this folder change only what they are about. Any field is
also a flag: `--config.retrain.epochs=8`. Where the paper (Wei et al., arXiv
2207.11393) leaves something open, the comment says what it says and what we
chose. Variants, by `--config=configs/retrain.py:NAME`:

    (none)  the stable setting: the default where the literal one degenerates
    paper   the equations taken literally, batches of 16
    small   a small network and images: the size of the tables in
            docs/results.md that were made on a CPU
    quick   smaller still: minutes on two CPU cores
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ('', 'paper', 'small', 'quick')


def _augmentation(**changes):
  """One stage's augmentation: the fields of data/feed/decisions.py."""
  c = ConfigDict()
  c.scale = (0.5, 1.0)  # share of the image's area that a crop keeps
  c.aspect = 4 / 3  # widest aspect of a crop; drawn log-uniformly
  c.flip = 0.5  # probability of a horizontal flip
  c.rotation = 10.0  # largest rotation, degrees, either way
  c.brightness = 0.2  # largest shift, share of the grey scale
  c.contrast = 0.2  # largest change of gain about mid-grey
  c.blur = 0.5  # probability of a Gaussian blur
  c.blur_sigma = (0.1, 1.5)  # its sigma, pixels of the network's input
  c.noise = 0.3  # probability of added noise
  c.noise_std = (0.0, 8.0)  # its deviation, grey levels of 0..255
  c.keep_lesions = False  # crops keep every box whole (decisions.draw)
  c.update(changes)
  return c


def _optimizer(**changes):
  """One stage's optimizer: the arguments of optim.make."""
  c = ConfigDict()
  c.learning_rate = 0.05  # peak; the paper names SGD and no more
  c.momentum = 0.9  # share of the last update's direction that stays
  c.nesterov = False  # look one step of momentum ahead
  c.weight_decay = 5e-4  # added to the gradient before the momentum
  c.decay_norm_and_bias = False  # torch's SGD decays them too
  c.schedule = 'onecycle'  # constant, cosine, onecycle or step
  c.warmup = 0.1  # share of the steps that rise linearly
  c.step_fractions = (0.5, 0.75)  # 'step': where the rate falls
  c.step_factor = 0.1  # 'step': what it is multiplied by there
  c.clip = 0.0  # largest global gradient norm; 0: no clipping
  c.update(changes)
  return c


def get_config(variant=''):
  """Returns the stable setting, or one of VARIANTS."""
  if variant not in VARIANTS:
    raise ValueError(
      f'config variant {variant!r} is unknown: one of {VARIANTS[1:]} or none'
    )
  c = ConfigDict()
  c.stage = 'retrain'  # pretrain, retrain, or recipe: both, then evaluation
  c.seed = 0  # of the initial weights, the order and the augmentation

  # The data: where it comes from and how it reaches the step.
  c.data = ConfigDict()
  # Who reads data.source: phantom, competition, rsna, vindr, nih, coco, folder
  # or csv (docs/datasets.md).
  c.data.layout = 'phantom'
  c.data.source = placeholder(str)  # folder of the set as downloaded
  c.data.path = placeholder(str)  # prepared set; None: data/<layout>...
  c.data.store_size = 256  # side of the stored squares, pixels
  # Into the square: stretch, as in the paper, or pad: black bars keep the
  # aspect. Boxes follow.
  c.data.fit = 'stretch'
  c.data.image_size = 224  # side of the network's input, pixels
  c.data.mean = 0.5  # of the grey levels in 0..1, taken off ...
  c.data.std = 0.25  # ... and divided by; no statistics of a set leak in
  c.data.pretrain_extra = placeholder(str)  # prepared set added to stage I
  c.data.render = 'auto'  # host, device; auto: device on accelerators
  c.data.threads = 0  # reading threads; 0: one a CPU core, at most 16
  c.data.prefetch = 8  # batches made ahead
  # Where training reads the stored images from: stream, from disk as they are
  # needed; resident, from the memory of the devices, where all of them are put
  # at the start (needs render=device). The batches are the same to the bit.
  # auto: resident on accelerators if the set takes less than a quarter of what
  # is free there.
  c.data.placement = 'auto'
  c.data.workers = 0  # processes that prepare; 0: one a CPU core
  # The label: count (of lesion boxes, as in the competition), any (finding at
  # all) or class (the name the source gives). auto: class for folder and csv,
  # any for nih, else count.
  c.data.label = 'auto'
  c.data.label_cap = 0  # count: more lesions count as so many; 0: no cap
  c.data.findings = ()  # names of the lesions that count; empty: all
  # class: the names, in the order of their labels. Images of other classes
  # become unlabelled. Empty: all, the normal one first.
  c.data.classes = ()
  # folder, coco and csv: the patient is what this regular expression finds in
  # the image's name (its first group, if it has one). Empty: the name says
  # nothing.
  c.data.patient_pattern = ''
  # vindr: whose boxes count. union, majority (of an image's readers), or the
  # one reader that it names, e.g. R8.
  c.data.vindr_readers = 'union'
  # coco: the json, or one a split with commas between them; empty: all there.
  c.data.coco_annotations = ''
  # csv: the tables in the source, and what their columns are called.
  c.data.csv = ConfigDict()
  c.data.csv.labels = 'labels.csv'  # a row an image
  c.data.csv.image = 'image'  # its file
  c.data.csv.label = 'label'  # its class
  # Of these, auto takes the column of the name in brackets if it is there;
  # empty: none.
  c.data.csv.patient = 'auto'  # (patient_id)
  c.data.csv.split = 'auto'  # (split): train, validation or test
  c.data.csv.metadata = ()  # more columns to carry, e.g. ('age', 'sex')
  c.data.csv.boxes = 'auto'  # (boxes.csv) a row a lesion
  c.data.csv.box_image = 'image'  # the column of its file
  c.data.csv.box_columns = ('x', 'y', 'width', 'height')  # left upper corner
  c.data.csv.box_name = 'auto'  # (finding) what it is
  # Width and height of the frame that boxes count in; empty: the stored image's
  # own pixels.
  c.data.csv.frame = ()
  c.data.phantom = ConfigDict()
  c.data.phantom.count = 2000  # radiographs; the paper's set has 20,012
  c.data.phantom.seed = 0  # of the generator

  # Who is in training, validation and test.
  c.split = ConfigDict()
  # What stays together: patient (with all copies of its images), or image, as
  # in the paper: a patient may then be on both sides.
  c.split.unit = 'patient'
  c.split.seed = 0  # of the draws
  c.split.given = True  # the source's own test or validation part is kept
  c.split.test = 0.1  # share of each class; the paper's
  c.split.validation = 0.1  # share of what the test split leaves
  # Two images are copies if their perceptual hashes differ in at most so many
  # of 256 bits; -1: only if they are equal pixel by pixel.
  c.split.near = 16

  # The network. The paper: ResNet18.
  c.model = ConfigDict()
  c.model.network = 'resnet'  # or vgg16, which takes the width only
  c.model.stage_sizes = (2, 2, 2, 2)  # 18: 2,2,2,2; 34 and 50: 3,4,6,3
  c.model.block = 'basic'  # basic (18, 34) or bottleneck (50)
  c.model.width = 64  # channels of the first stage
  # How the 7x7 convolution of one channel is computed: conv, or on four
  # channels of half the side (space_to_depth). The weights, and the results but
  # for rounding, are the same.
  c.model.stem = 'conv'
  c.model.dtype = 'auto'  # float32, bfloat16; auto: bfloat16 on accelerators

  # Stage I: contrastive pre-training.
  c.pretrain = ConfigDict()
  c.pretrain.epochs = 4.0  # the paper: converged within about 4
  c.pretrain.batch_size = 64  # radiographs (pairs), all devices together
  c.pretrain.temperature = 0.2  # of NT-Xent; the paper's
  # 'augmented': the pair is two augmented views. 'plain': the plain image and
  # one augmented view. 'three': the plain image and two augmented views, the
  # mean over the three pairs. The paper's "anchor, positive" may mean each.
  c.pretrain.views = 'augmented'
  c.pretrain.hidden = 512  # projector: Dense, ReLU, Dense
  c.pretrain.projection = 128  # its width
  c.pretrain.augment = _augmentation(scale=(0.3, 1.0))
  c.pretrain.optim = _optimizer(weight_decay=1e-4)

  # Stage II: re-training as a classifier.
  c.retrain = ConfigDict()
  c.retrain.epochs = 8.0  # the paper does not say
  c.retrain.batch_size = 64  # all devices together; the paper: 16
  # Train the classifier (and the attention) only: the backbone and its
  # BatchNorm statistics stay as stage I left them. The paper re-trains all.
  c.retrain.freeze = False
  # Milder than stage I's: here the grey levels carry the class.
  c.retrain.augment = _augmentation(
    scale=(0.6, 1.0),
    brightness=0.1,
    contrast=0.1,
    blur=0.0,
    noise=0.0,
    keep_lesions=True,
  )
  # An image of the rarest class can weigh a hundred times the average one.
  c.retrain.optim = _optimizer(learning_rate=0.03, clip=2.0)

  # Where stage II starts. 'auto': the recipe's own stage I, or runs/pretrain
  # if it is there. None: scratch. Else a stage I workdir, or torch-layout
  # weights (.npz, .safetensors).
  c.init = ConfigDict()
  c.init.backbone = 'auto'

  # The classification loss (Eq. 7-9; Cui et al. 2019).
  c.loss = ConfigDict()
  c.loss.classification = 'cb_focal'  # ce, focal, cb_ce or cb_focal
  c.loss.kind = 'softmax'  # Eq. 9 as it reads; sigmoid: Cui et al.'s code
  c.loss.beta = 0.9999  # not stated in the paper
  c.loss.gamma = 0.5  # not stated in the paper; docs/results.md tries others
  # Scale of the class weights. classes: they sum to the number of classes, as
  # Cui et al. have it; on a long tail a training image then weighs a few
  # hundredths on average, far less than the MGACR terms beside it. images: a
  # training image weighs 1 on average.
  c.loss.normalize = 'images'

  # Mask-guided attention with contrastive regulation (Eq. 2-6).
  c.mgacr = ConfigDict()
  c.mgacr.attention = True  # Eq. 2-4: maps against masks
  c.mgacr.features = True  # Eq. 5: features against their masked selves
  c.mgacr.stages = ('stage1', 'stage2', 'stage3', 'stage4')
  # The stages' terms are summed, as in the paper, which gives no weights. With
  # 1 for each, Eq. 5 pulls the backbone some 50 times as hard as the
  # classification does, and Eq. 2 and 3 a hundredth as hard (docs/results.md).
  c.mgacr.weight_pos = 10.0  # of Eq. 2
  c.mgacr.weight_neg = 10.0  # of Eq. 3
  c.mgacr.weight_feat = 0.05  # of Eq. 5
  # The rest is open in the paper; read literally it degenerates on images
  # without a lesion (losses.mgacr).
  c.mgacr.reduction = 'batch'  # ratio of batch means; sample: mean of ratios
  c.mgacr.negative = 'mse'  # Eq. 3 as it reads; ratio: symmetric to Eq. 2
  c.mgacr.eps = 0.1  # added to denominators; literally 0
  # Terms that skip images without a lesion: there the maps learn nothing but 0.
  c.mgacr.lesions_only = ('att_pos', 'att_neg', 'feat')
  c.mgacr.stop_gradient_maps = True  # Eq. 5 teaches features, not maps
  c.mgacr.mask = 'area'  # covered share of a cell; binary: its centre
  # BatchNorm in the attention, as in the code of CBAM's authors, not in their
  # paper. Without it the maps go to 0 and stay there (docs/results.md).
  c.mgacr.batch_norm = True

  # The loop.
  c.train = ConfigDict()
  # Steps made by one call of the device; saves, validations and lines of the
  # log then fall on multiples of it. 0: 1 on CPUs, on accelerators up to 16, as
  # many as make 1024 images a device, but no more than between validations.
  c.train.steps_per_dispatch = 0
  c.train.save_every = 0  # steps between checkpoints; 0: at validations only
  c.train.log_every = 10  # steps between lines in metrics.jsonl
  c.train.keep = 2  # newest checkpoints kept, beside the best
  c.train.deterministic = False  # bit-exact on a GPU too, and slower
  c.train.tensorboard = False  # also TensorBoard events (extra: tensorboard)
  c.train.progress = True  # a progress bar on stderr

  # Validation during training.
  c.eval = ConfigDict()
  c.eval.every = 1.0  # epochs between validations; 0: never
  # The score that names the best checkpoint of stage II: accuracy,
  # balanced_accuracy, macro_f1 or auroc_any_lesion.
  c.eval.best = 'balanced_accuracy'

  # The final evaluation.
  c.evaluate = ConfigDict()
  c.evaluate.checkpoint = 'last'  # or best, by validation
  c.evaluate.split = 'test'  # or validation; train: of another set only
  c.evaluate.path = placeholder(str)  # another prepared set to score
  c.evaluate.batch_size = 64  # images at a time; changes the speed only
  c.evaluate.resamples = 2000  # bootstrap, for the intervals
  c.evaluate.seed = 0  # of the bootstrap, and of what is shown of the images
  # Grad-CAM of what: lesion (the log-odds of any lesion), label (the logit of
  # the true class) or prediction (of the predicted one); and at which stage.
  c.evaluate.cam_target = 'lesion'
  c.evaluate.cam_stage = 'last'  # or stage1, stage2, ...

  # The ablate command: each row changes the config by its overrides and is run
  # with each seed. These are the paper's Table I, each adding one technique.
  c.ablate = ConfigDict()
  c.ablate.rows = (
    (
      'ResNet18',
      (
        'init.backbone=None',
        'mgacr.attention=False',
        'mgacr.features=False',
        'loss.classification=ce',
      ),
    ),
    (
      '+ contrastive pre-training',
      (
        'mgacr.attention=False',
        'mgacr.features=False',
        'loss.classification=ce',
      ),
    ),
    (
      '+ mask-guided attention',
      ('mgacr.features=False', 'loss.classification=ce'),
    ),
    ('+ contrastive regulation', ('loss.classification=ce',)),
    ('+ class-balanced focal loss', ()),
  )
  # Which seeds, not how many; each stands in for `seed`: of the weights, the
  # order and the augmentation.
  c.ablate.seeds = (0, 1, 2)

  # The compare command: the paper's Table II on one split.
  c.compare = ConfigDict()
  # resnet18 has the sizes of `model`, so under :small it is smaller than that.
  c.compare.methods = ('knn', 'tree', 'adaboost', 'forest', 'svm', 'vgg16',
                       'resnet18', 'resnet50', 'recipe')  # fmt: skip
  # scikit-learn's methods also on the features of the recipe's stage I.
  c.compare.features = True
  c.compare.pixels = 64  # side of the image whose pixels they see
  c.compare.seeds = (0,)  # as ablate.seeds; one shows no spread over seeds

  # The benchmark command. The step is timed at every batch size with one step
  # a dispatch, and at `retrain.batch_size` (and pretrain's) with every one of
  # benchmark.steps_per_dispatch.
  c.benchmark = ConfigDict()
  c.benchmark.parts = ('pretrain', 'retrain', 'inference', 'input')
  # Empty: the config's own; on accelerators 16, 64, 256 and 1024 too.
  c.benchmark.batch_sizes = ()
  # Empty: 1, and on accelerators 4 and 16 too.
  c.benchmark.steps_per_dispatch = ()
  c.benchmark.repeats = 5  # of each measurement, after a warm-up
  c.benchmark.seconds = 2.0  # at least so long is each repeat

  # How the step runs on the devices.
  c.parallel = ConfigDict()
  # jit, pmap or shard_map; auto: jit on one device, pmap on several, shard_map
  # in a job of several processes.
  c.parallel.mode = 'auto'
  c.parallel.devices = 0  # how many, over all processes; 0: all

  if variant == 'paper':
    c.loss.normalize = 'classes'
    c.pretrain.batch_size = c.retrain.batch_size = 16
    c.pretrain.optim.learning_rate = c.retrain.optim.learning_rate = 0.0125
    c.retrain.epochs = 30.0  # the paper does not say; our assumption
    c.retrain.optim.clip = 0.0
    c.loss.gamma = 2.0
    c.mgacr.batch_norm = False
    c.mgacr.weight_pos = c.mgacr.weight_neg = c.mgacr.weight_feat = 1.0
    c.mgacr.eps = 0.0
    c.mgacr.lesions_only = ()
    c.mgacr.stop_gradient_maps = False
  if variant == 'small':
    c.data.store_size = 128
    c.data.image_size = 96
    c.model.stage_sizes = (1, 1, 1, 1)
    c.model.width = 32
    c.pretrain.epochs = 8.0
    c.retrain.epochs = 10.0
    c.pretrain.batch_size = c.retrain.batch_size = 32
    # The last stage has 3 x 3 cells here, and each of them sees all others.
    c.evaluate.cam_stage = 'stage3'
  if variant == 'quick':
    c.data.store_size = 128
    c.data.image_size = 96
    c.model.stage_sizes = (1, 1, 1)
    c.model.width = 32
    c.mgacr.stages = ('stage1', 'stage2', 'stage3')
    c.pretrain.epochs = 3.0
    c.retrain.epochs = 12.0
    c.pretrain.batch_size = c.retrain.batch_size = 32
  return c
