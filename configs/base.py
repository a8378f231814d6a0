"""Every field of dpjax: its default, what it may be, and what it means.

The other files of this folder change only what they are about. Any field is
also a flag: `--config.retrain.epochs=8`. Where the paper (Wei et al., arXiv
2207.11393) leaves something open, the comment says what it says and what we
chose.

A field is declared as number(default, lowest, highest), word(default, other
words ...) and so on, as dpjax/config/fields.py has it. Marks:

    resume   may change between two starts of one run
    machine  is the machine's: a run that is opened on another one, to be
             evaluated, takes it as it is there and not as it was trained with
    source   says how a source is read, so a prepared set has it on record
    before   what a run did, or a prepared set was, that was recorded before
             there was the field

Variants, by `--config=configs/retrain.py:NAME`:

    (none)  the stable setting: the default where the literal one degenerates
    paper   the equations taken literally, batches of 16
    small   a small network and images: the size of the tables in
            docs/results.md that were made on a CPU
    quick   smaller still: minutes on two CPU cores
"""

from dpjax.config.fields import (
  DEFAULT,
  Section,
  count,
  counts,
  flag,
  interval,
  number,
  numbers,
  path,
  plain,
  rows,
  some,
  text,
  texts,
  word,
)
from dpjax.errors import UserError
from dpjax.metrics import prevalence


def _augmentation():
  """One stage's augmentation: the fields of decisions.Augmentation."""
  c = Section()
  # Share of the image's area that a crop keeps.
  c.scale = interval((0.5, 1.0), 1e-3, 1)
  c.aspect = number(4 / 3, 1)  # widest aspect of a crop; drawn log-uniformly
  c.flip = number(0.5, 0, 1)  # probability of a horizontal flip
  c.rotation = number(10, 0, 180)  # largest rotation, degrees, either way
  c.brightness = number(0.2, 0, 1)  # largest shift, share of the grey scale
  c.contrast = number(0.2, 0, 1)  # largest change of gain about mid-grey
  c.blur = number(0.5, 0, 1)  # probability of a Gaussian blur
  # Its sigma, pixels of the network's input: half of
  # render_common.BLUR_RADIUS at most.
  c.blur_sigma = interval((0.1, 1.5), 0, 2)
  c.noise = number(0.3, 0, 1)  # probability of added noise
  # Its deviation, grey levels of 0..255.
  c.noise_std = interval((0.0, 8.0), 0, 255)
  c.keep_lesions = flag(False)  # crops keep every box whole (decisions.draw)
  return c


def _optimizer():
  """One stage's optimizer: the arguments of optim.make."""
  c = Section()
  c.learning_rate = number(0.05, 0)  # peak; the paper names SGD and no more
  c.momentum = number(0.9, 0, 1)  # share of the last update that stays
  c.nesterov = flag(False)  # look one step of momentum ahead
  c.weight_decay = number(5e-4, 0)  # added to the gradient before the momentum
  c.decay_norm_and_bias = flag(False)  # torch's SGD decays them too
  # What the rate does after the warm-up (optim.make_schedule).
  c.schedule = word('onecycle', 'constant', 'cosine', 'step')
  c.warmup = number(0.1, 0, 0.99)  # share of the steps that rise linearly
  # 'step': the shares of the run at which the rate falls ...
  c.step_fractions = numbers(
    0.5, 0.75, above=0, below=1, wanted='shares of the run, e.g. (0.5, 0.75)'
  )
  c.step_factor = number(0.1, 0, 1)  # ... and what it is multiplied by there
  c.clip = number(0, 0)  # largest global gradient norm; 0: no clipping
  # Updates that were made before the schedule begins; train --extend sets it.
  c.begin = count(0, 0, before=0)
  return c


def _loss():
  """A classification loss (Eq. 7-9; Cui et al. 2019)."""
  c = Section()
  # Cross entropy or focal loss, either also class-balanced; or cross entropy of
  # logits to which the log of each class's share is added (Menon et al. 2021).
  c.classification = word('cb_focal', 'ce', 'focal', 'cb_ce', 'logit_adjusted')
  # softmax: Eq. 9 as it reads; sigmoid: Cui et al.'s code.
  c.kind = word('softmax', 'sigmoid')
  c.beta = number(0.9999, 0, 1)  # not stated in the paper
  c.gamma = number(0.5, 0)  # nor this; docs/results.md tries others
  # Scale of the class weights. classes: they sum to the number of classes, as
  # Cui et al. have it; on a long tail a training image then weighs a few
  # hundredths on average, far less than the MGACR terms beside it. images: a
  # training image weighs 1 on average.
  c.normalize = word('images', 'classes')
  # logit_adjusted: how much of the log shares; 1 is for the balanced error.
  c.tau = number(1, 0, before=1.0)
  # ce, cb_ce, logit_adjusted: the share of a label that is spread over all
  # classes.
  c.smoothing = number(0, 0, 0.99, before=0.0)
  return c


c = Section()
# What is trained; recipe: all stages, then evaluation. finetune starts from the
# stage II in init.backbone.
c.stage = word('retrain', 'pretrain', 'finetune', 'recipe')
# Of the initial weights, the order and the augmentation.
c.seed = count(0, 0, 2**31 - 1)

# The data: where it comes from and how it reaches the step.
c.data = Section()
# Who reads data.source (docs/datasets.md).
c.data.layout = word(
  'phantom', 'competition', 'rsna', 'vindr', 'nih', 'coco', 'folder', 'csv',
  source=True,
)  # fmt: skip
c.data.source = path(resume=True)  # folder of the set as downloaded
c.data.path = path(resume=True)  # prepared set; None: data/<layout>...
c.data.store_size = count(256, 32, 4096)  # side of the stored squares, pixels
# Into the square: stretch, as in the paper, or pad: black bars keep the aspect.
# Boxes follow.
c.data.fit = word('stretch', 'pad')
c.data.image_size = count(224, 16, 4096)  # side of the network's input, pixels
c.data.mean = number(0.5, 0, 1)  # of the grey levels in 0..1, taken off ...
c.data.std = number(0.25, 1e-6)  # ... and divided by; no set's own leak in
c.data.pretrain_extra = path()  # prepared set added to stage I
# Who renders the augmented images; auto: device on accelerators.
c.data.render = word('auto', 'host', 'device', machine=True)
# Reading threads; 0: one a CPU core, at most 16.
c.data.threads = count(0, 0, 1024, machine=True, resume=True)
# Batches made ahead.
c.data.prefetch = count(8, 1, 1024, machine=True, resume=True)
# Where training reads the stored images from: stream, from disk as they are
# needed; resident, from the memory of the devices, where all of them are put at
# the start (needs render=device). The batches are the same to the bit. auto:
# resident on accelerators if the set takes less than a quarter of what is free
# there.
c.data.placement = word('auto', 'stream', 'resident', machine=True, resume=True)
# Who shuffles the training records: numpy, an epoch at once; grain, one by one,
# as runs did before there was this field: another order, by the same law, that
# takes far more of the host (docs/throughput.md). auto: numpy, but a run that
# goes on has the one that it began with.
c.data.shuffle = word('auto', 'numpy', 'grain', before='grain')
# Processes that prepare; 0: one a CPU core.
c.data.workers = count(0, 0, 1024, machine=True, resume=True)
# The label: count (of lesion boxes, as in the competition), any (finding at
# all) or class (the name the source gives). auto: class for folder and csv, any
# for nih, else count.
c.data.label = word('auto', 'count', 'any', 'class', source=True)
# count: more lesions count as so many; 0: no cap.
c.data.label_cap = count(0, 0, source=True)
# Names of the lesions that count; empty: all.
c.data.findings = texts(source=True)
# class: the names, in the order of their labels. Images of other classes become
# unlabelled. Empty: all, the normal one first.
c.data.classes = texts(source=True)
# folder, coco and csv: the patient is what this regular expression finds in the
# image's name (its first group, if it has one); in its path from the source
# where the expression has a / or is in no name. Empty: neither says who it is.
c.data.patient_pattern = text('', source=True)
# An image in whose path it finds nothing: fault, or own: a patient of its own.
# No source mark: what it leads to is in the records.
c.data.unmatched_patients = word('fault', 'own', resume=True, before='fault')
# Files and folders of the source that are passed over, by their name or their
# path from the source, with wildcards: ('masks', '*_seg.png').
c.data.ignore = texts(source=True, before=())
# folder: the class is what this regular expression finds in the image's path
# from the source (its first group, if it has one), e.g. '_([01])\.png$'. Empty:
# the class is the folder's name.
c.data.class_pattern = text('', source=True, before='')
# csv: what an uncertain cell (-1) of a column of findings means. ignore: that
# nothing is known.
c.data.uncertain = word('ignore', 'positive', 'negative', source=True,
                        before='ignore')  # fmt: skip
# csv: what an empty one means. Nobody is called healthy because nobody looked,
# so ignore; many readers of CheXpert take it for negative.
c.data.blank = word('ignore', 'negative', source=True, before='ignore')
# vindr: whose boxes count. union, majority (of an image's readers), or the one
# reader that it names, e.g. R8.
c.data.vindr_readers = text('union', source=True)
# vindr: width and height of the originals, in whose pixels boxes count, where
# the files are smaller copies. WIDTHxHEIGHT, or a table in the source with
# image_id and width,height or dim1,dim0. files: they are the originals. Empty:
# columns width,height of the table of boxes, or train_meta.csv; else files.
c.data.original_sizes = text('', source=True, before='')
# coco: the json, or one a split with commas between them; empty: all there.
c.data.coco_annotations = text('', source=True)
# coco: width and height that boxes count in, where they are not the json's own;
# (1, 1): they are shares of the image.
c.data.coco_frame = numbers(
  above=0, lengths=(0, 2), source=True, before=(),
  wanted='() or (width, height), e.g. (1, 1)',
)  # fmt: skip
# csv: the tables in the source, and what their columns are called.
c.data.csv = Section(source=True)
# A row an image; several tables of one form with commas between them.
c.data.csv.labels = text('labels.csv')
# More tables, whose columns are added to it by those that both have.
c.data.csv.join = texts(before=())
# The rows that are read: 'Column=Value', or 'Column=A|B' for either; several
# with ; between them. The images of others are passed over.
c.data.csv.where = text('', before='')
c.data.csv.image = text('image')  # its file
# Its class. Or several columns with commas between them, or a tuple: each is a
# finding, 1 or 0 (data.uncertain, data.blank), and the class is the one that is
# there; of more than one, the first of data.classes.
c.data.csv.label = text('label')
# A column of run-length masks as SIIM-ACR has them; each connected component is
# a lesion with its box. Several rows may be of one image. Empty: none.
c.data.csv.rle = text('', before='')
# Of these, auto takes the column of the name in brackets if it is there, or the
# one of it in other case or with other signs (Patient ID); empty: none.
c.data.csv.patient = text('auto')  # (patient_id)
c.data.csv.split = text('auto')  # (split): train, validation or test
c.data.csv.metadata = texts()  # more columns to carry, e.g. ('age', 'sex')
c.data.csv.boxes = text('auto')  # (boxes.csv) a row a lesion
c.data.csv.box_image = text('image')  # the column of its file
# What they say of it. sides: its left upper corner, its width and height;
# corners: the left upper corner and the right lower one ...
c.data.csv.box_form = word('sides', 'corners', before='sides')
# ... and what they are called.
c.data.csv.box_columns = texts('x', 'y', 'width', 'height', length=4)
c.data.csv.box_name = text('auto')  # (finding) what it is
# Width and height of the frame that boxes count in; empty: the stored image's
# own pixels.
c.data.csv.frame = numbers(
  above=0, lengths=(0, 2), wanted='() or (width, height), e.g. (1024, 1024)'
)
c.data.phantom = Section()
# Radiographs; the paper's set has 20,012.
c.data.phantom.count = count(2000, 50)
c.data.phantom.seed = count(0, 0)  # of the generator
# Of each class at least; by RSNA's shares alone the rarest would have one.
c.data.phantom.least = count(10, 10, source=True, before=10)

# Who is in training, validation and test.
c.split = Section()
# What stays together: patient (with all copies of its images), or image, as in
# the paper: a patient may then be on both sides.
c.split.unit = word('patient', 'image')
c.split.seed = count(0, 0)  # of the draws
c.split.given = flag(True)  # the source's own test or validation part is kept
c.split.test = number(0.1, 0, 0.9)  # share of each class; the paper's
# Share of what the test split leaves.
c.split.validation = number(0.1, 0, 0.9)
# Two images are copies if their perceptual hashes differ in at most so many of
# 256 bits; -1: only if they are equal pixel by pixel.
c.split.near = count(16, -1, 64)

# The network. The paper: ResNet18.
c.model = Section()
# vgg16 takes the width only.
c.model.network = word('resnet', 'vgg16', before='resnet')
# ResNet18: 2,2,2,2; 34 and 50: 3,4,6,3.
c.model.stage_sizes = counts(
  2, 2, 2, 2, most=4, wanted='one to four counts, e.g. (2,2,2,2)'
)
c.model.block = word('basic', 'bottleneck')  # basic: 18, 34; bottleneck: 50
c.model.width = count(64, 1, 4096)  # channels of the first stage
# How the 7x7 convolution of one channel is computed: conv, or on four channels
# of half the side (space_to_depth). The weights, and the results but for
# rounding, are the same.
c.model.stem = word('conv', 'space_to_depth', resume=True, before='conv')
# On several devices, whose statistics BatchNorm normalises by in training: the
# whole batch's, or those of each device's own rows, which spares the devices a
# word to each other in every layer; the running ones are then their mean.
c.model.batch_norm = word('batch', 'device', before='batch')
# Of the computation; auto: bfloat16 on accelerators.
c.model.dtype = word('auto', 'float32', 'bfloat16', machine=True)

# Stage I: contrastive pre-training.
c.pretrain = Section()
c.pretrain.epochs = number(4, 1e-6)  # the paper: converged within about 4
# Radiographs (pairs), all devices together.
c.pretrain.batch_size = count(64, 1)
c.pretrain.temperature = number(0.2, 1e-6)  # of NT-Xent; the paper's
# 'augmented': the pair is two augmented views. 'plain': the plain image and one
# augmented view. 'three': the plain image and two augmented views, the mean
# over the three pairs. The paper's "anchor, positive" may mean each.
c.pretrain.views = word('augmented', 'plain', 'three')
c.pretrain.hidden = count(512, 1)  # projector: Dense, ReLU, Dense
c.pretrain.projection = count(128, 1)  # its width
# At each validation, what a k-NN and a linear probe of its features make of the
# classes (training/probe.py); training sees no label all the same.
c.pretrain.probe = flag(False, resume=True, before=False)
c.pretrain.augment = _augmentation().but(scale=(0.3, 1.0))
c.pretrain.optim = _optimizer().but(weight_decay=1e-4)

# Stage II: re-training as a classifier.
c.retrain = Section()
c.retrain.epochs = number(8, 1e-6)  # the paper does not say
c.retrain.batch_size = count(64, 1)  # all devices together; the paper: 16
# Train the classifier (and the attention) only: the backbone and its BatchNorm
# statistics stay as stage I left them. The paper re-trains all.
c.retrain.freeze = flag(False, before=False)
# Decay of an exponential moving average of the weights and of the BatchNorm
# statistics, e.g. 0.99, which is then validated, evaluated and fine-tuned in
# their place. 0: none.
c.retrain.average = number(0, 0, 0.99999, before=0.0)
# Milder than stage I's: here the grey levels carry the class.
c.retrain.augment = _augmentation().but(
  scale=(0.6, 1.0),
  brightness=0.1,
  contrast=0.1,
  blur=0.0,
  noise=0.0,
  keep_lesions=True,
)
# Under class weights from the first step an image of the rarest class can weigh
# a hundred times the average one.
c.retrain.optim = _optimizer().but(learning_rate=0.03, clip=2.0)

# Fine-tuning: a stage after stage II, with a loss of its own, on the batches of
# retrain.batch_size and retrain.augment. Class weights that come late balance
# the classifier without spoiling the features (Kang et al. 2020; Cao et al.
# 2019). The paper has no such stage.
c.finetune = Section(before=DEFAULT)
c.finetune.epochs = number(4, 0, before=0.0)  # 0: there is no such stage
# A fresh classifier learns alone: the backbone, its BatchNorm statistics and
# the attention stay as stage II left them. False: all goes on learning from
# there, the classifier too, beside the terms of MGACR.
c.finetune.freeze = flag(True)
c.finetune.optim = _optimizer().but(learning_rate=0.03, clip=2.0)
c.finetune.loss = _loss().but(classification='cb_ce', beta=0.999)

# Where stage II starts.
c.init = Section()
# 'auto': the recipe's own stage I, or runs/pretrain if it is there. None:
# scratch. Else a stage I workdir, or torch-layout weights (.npz, .safetensors).
# For stage=finetune, a stage II workdir.
c.init.backbone = path('auto')

# The classification loss of stage II. Class weights come with fine-tuning: from
# the first step on, as the paper has them, they cost accuracy and AUROC.
c.loss = _loss().but(classification='ce')
# The share of stage II after which the class weights (or the logit adjustment)
# hold; before it all classes weigh the same (Cao et al. 2019).
c.loss.begin = number(0, 0, 1, before=0.0)

# Mask-guided attention with contrastive regulation (Eq. 2-6).
c.mgacr = Section()
c.mgacr.attention = flag(True)  # Eq. 2-4: maps against masks
c.mgacr.features = flag(True)  # Eq. 5: features against their masked selves
# At which stages of the network.
c.mgacr.stages = texts('stage1', 'stage2', 'stage3', 'stage4')
# The stages' terms are summed, as in the paper, which gives no weights. With 1
# for each, Eq. 5 pulls the backbone some 50 times as hard as the classification
# does, and Eq. 2 and 3 a hundredth as hard (docs/results.md).
c.mgacr.weight_pos = number(10, 0)  # of Eq. 2
c.mgacr.weight_neg = number(10, 0)  # of Eq. 3
c.mgacr.weight_feat = number(0.05, 0)  # of Eq. 5
# The rest is open in the paper; read literally it degenerates on images without
# a lesion (losses.mgacr).
# batch: ratio of batch means; sample: mean of ratios.
c.mgacr.reduction = word('batch', 'sample')
# mse: Eq. 3 as it reads; ratio: symmetric to Eq. 2.
c.mgacr.negative = word('mse', 'ratio')
c.mgacr.eps = number(0.1, 0)  # added to denominators; literally 0
# Terms that skip images without a lesion: there the maps learn nothing but 0.
c.mgacr.lesions_only = some('att_pos', 'att_neg', 'feat', empty=True)
c.mgacr.stop_gradient_maps = flag(True)  # Eq. 5 teaches features, not maps
# area: the covered share of a cell; binary: its centre.
c.mgacr.mask = word('area', 'binary')
# BatchNorm in the attention, as in the code of CBAM's authors, not in their
# paper. Without it the maps go to 0 and stay there (docs/results.md).
c.mgacr.batch_norm = flag(True)

# The loop.
c.train = Section()
# Steps made by one call of the device; saves, validations and lines of the log
# then fall on multiples of it. 0: 1 on CPUs, on accelerators up to 16, as many
# as make 1024 images a device, but no more than between validations.
c.train.steps_per_dispatch = count(0, 0, 1024, machine=True, resume=True)
# Steps between checkpoints; 0: at validations only.
c.train.save_every = count(0, 0, resume=True)
# Steps between lines in metrics.jsonl.
c.train.log_every = count(10, 1, resume=True)
c.train.keep = count(2, 1, resume=True)  # newest checkpoints kept, and the best
c.train.deterministic = flag(False)  # bit-exact on a GPU too, and slower
# Also TensorBoard events (extra: tensorboard).
c.train.tensorboard = flag(False, resume=True)
# Steps of a start whose profile is written into WORKDIR/trace, for TensorBoard
# or Perfetto; 0: none.
c.train.trace = count(0, 0, resume=True, before=0)
c.train.progress = flag(True, resume=True)  # a progress bar on stderr

# Validation during training.
c.eval = Section()
c.eval.every = number(1, 0)  # epochs between validations; 0: never
# The score that names the best checkpoint of stage II.
c.eval.best = word(
  'balanced_accuracy', 'accuracy', 'macro_f1', 'auroc_any_lesion'
)

# The final evaluation.
c.evaluate = Section(resume=True)
c.evaluate.checkpoint = word('last', 'best')  # best: by validation
c.evaluate.split = word('test', 'validation', 'train')  # train: of other sets
c.evaluate.path = path()  # another prepared set to score
# Scores also what the run would answer where the classes have other shares than
# in training: the same for each (balanced), or those given. Choose it on
# split=validation.
c.evaluate.prevalence = text(
  'none', 'none, balanced, or the share of each class, e.g. 0.7,0.2,0.1',
  fits=prevalence.is_prevalence, before='none',
)  # fmt: skip
# Images at a time; changes the speed only.
c.evaluate.batch_size = count(64, 1)
c.evaluate.resamples = count(2000, 1)  # bootstrap, for the intervals
# Of the bootstrap, and of what is shown of the images.
c.evaluate.seed = count(0, 0)
# Grad-CAM of what: lesion (the log-odds of any lesion), label (the logit of the
# true class) or prediction (of the predicted one); and at which stage.
c.evaluate.cam_target = word('lesion', 'label', 'prediction')
c.evaluate.cam_stage = text('last')  # or stage1, stage2, ...

# The ablate command: each row changes the config by its overrides and is run
# with each seed.
c.ablate = Section(resume=True)
# Without class weights there are none in stage II either, as :paper has them.
_NO_CLASS_WEIGHTS = (
  'loss.classification=ce',
  'loss.begin=0',
  'finetune.epochs=0',
)
# By default the paper's Table I, where each adds one technique.
c.ablate.rows = rows(
  (
    'ResNet18',
    (
      'init.backbone=None',
      'mgacr.attention=False',
      'mgacr.features=False',
      *_NO_CLASS_WEIGHTS,
    ),
  ),
  (
    '+ contrastive pre-training',
    ('mgacr.attention=False', 'mgacr.features=False', *_NO_CLASS_WEIGHTS),
  ),
  ('+ mask-guided attention', ('mgacr.features=False', *_NO_CLASS_WEIGHTS)),
  ('+ contrastive regulation', _NO_CLASS_WEIGHTS),
  # The paper's is a focal one; the default's weights come with `finetune`.
  ('+ class-balanced focal loss', ()),
)
# Which seeds, not how many; each stands in for `seed`: of the weights, the
# order and the augmentation.
c.ablate.seeds = counts(
  0, 1, 2, low=0, different=True,
  wanted='different whole numbers, e.g. (0, 1, 2)',
)  # fmt: skip

# The compare command: the paper's Table II on one split.
c.compare = Section(resume=True)
# resnet18 has the sizes of `model`, so under :small it is smaller than that.
c.compare.methods = some('knn', 'tree', 'adaboost', 'forest', 'svm', 'vgg16',
                         'resnet18', 'resnet50', 'recipe')  # fmt: skip
# scikit-learn's methods also on the features of the recipe's stage I.
c.compare.features = flag(True)
c.compare.pixels = count(64, 4, 4096)  # side of the image whose pixels they see
# As ablate.seeds; one shows no spread over seeds.
c.compare.seeds = counts(
  0, low=0, different=True, wanted='different whole numbers, e.g. (0, 1, 2)'
)

# The benchmark command. The step is timed at every batch size with one step a
# dispatch, and at `retrain.batch_size` (and pretrain's) with every one of
# benchmark.steps_per_dispatch.
c.benchmark = Section(resume=True)
# What is timed.
c.benchmark.parts = some('pretrain', 'retrain', 'inference', 'input')
# Empty: the config's own; on accelerators 16, 64, 256 and 1024 too.
c.benchmark.batch_sizes = counts(
  empty=True, wanted='a tuple of whole numbers above 0, e.g. (16, 64)'
)
# Empty: 1, and on accelerators 4 and 16 too.
c.benchmark.steps_per_dispatch = counts(
  empty=True, wanted='a tuple of whole numbers above 0, e.g. (1, 16)'
)
# Of each measurement, after a warm-up.
c.benchmark.repeats = count(5, 1, 1000)
c.benchmark.seconds = number(2, 0, 3600)  # at least so long is each repeat

# How the step runs on the devices.
c.parallel = Section(machine=True, resume=True)
# auto: jit on one device, pmap on several, shard_map in a job of several
# processes.
c.parallel.mode = word('auto', 'jit', 'pmap', 'shard_map')
c.parallel.devices = count(0, 0)  # how many, over all processes; 0: all


def get_config(variant=''):
  """Returns the stable setting, or one of _VARIANTS."""
  config = plain(c)
  if variant and variant not in _VARIANTS:
    raise UserError(
      f'config variant {variant!r} is unknown; one of {", ".join(_VARIANTS)} or'
      ' none'
    )
  if variant:
    _VARIANTS[variant](config)
  return config


def _paper(c):
  c.loss.normalize = 'classes'
  c.pretrain.batch_size = c.retrain.batch_size = 16
  c.pretrain.optim.learning_rate = c.retrain.optim.learning_rate = 0.0125
  c.retrain.epochs = 30.0  # the paper does not say; our assumption
  c.retrain.optim.clip = 0.0
  c.retrain.average = 0.0
  c.finetune.epochs = 0.0
  c.evaluate.prevalence = 'none'
  c.loss.classification = 'cb_focal'
  c.loss.smoothing = c.loss.begin = 0.0
  c.loss.gamma = 2.0
  c.mgacr.batch_norm = False
  c.mgacr.weight_pos = c.mgacr.weight_neg = c.mgacr.weight_feat = 1.0
  c.mgacr.eps = 0.0
  c.mgacr.lesions_only = ()
  c.mgacr.stop_gradient_maps = False


def _small(c):
  c.data.store_size = 128
  c.data.image_size = 96
  c.model.stage_sizes = (1, 1, 1, 1)
  c.model.width = 32
  c.pretrain.epochs = 8.0
  c.retrain.epochs = 10.0
  c.pretrain.batch_size = c.retrain.batch_size = 32
  # The last stage has 3 x 3 cells here, and each of them sees all others.
  c.evaluate.cam_stage = 'stage3'


def _quick(c):
  c.data.store_size = 128
  c.data.image_size = 96
  c.model.stage_sizes = (1, 1, 1)
  c.model.width = 32
  c.mgacr.stages = ('stage1', 'stage2', 'stage3')
  c.pretrain.epochs = 3.0
  c.retrain.epochs = 12.0
  c.pretrain.batch_size = c.retrain.batch_size = 32


_VARIANTS = {'paper': _paper, 'small': _small, 'quick': _quick}
