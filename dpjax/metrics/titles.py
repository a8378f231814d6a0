"""What the scores are called, in the order in which they are shown.

The keys are the flat names of evaluation.json; those of a class go on with
/NAME of the class.
"""

from typing import NamedTuple


class Title(NamedTuple):
  """What one score is called.

  Attributes:
    long: for a line or a chart of its own.
    short: for the head of a narrow column, at most 10 letters.
  """

  long: str
  short: str


SUMMARY = {
  'accuracy': Title('accuracy', 'accuracy'),
  'balanced_accuracy': Title('balanced accuracy', 'balanced'),
  'balanced_accuracy_0_2': Title(
    'balanced accuracy, classes 0 to 2', 'bal. 0-2'
  ),
  'macro_f1': Title('macro F1', 'macro F1'),
  'auroc_any_lesion': Title('AUROC, any lesion', 'AUROC'),
  'average_precision_any_lesion': Title('average precision, any lesion', 'AP'),
  'sensitivity_any_lesion': Title('sensitivity, any lesion', 'sensit.'),
  'specificity_any_lesion': Title('specificity, any lesion', 'specif.'),
  'quadratic_kappa': Title('quadratic kappa', 'kappa'),
  'ece': Title('calibration error, 15 bins', 'ECE'),
  'brier': Title('Brier score', 'Brier'),
  'nll': Title('log loss, nats', 'log loss'),
  'ece_scaled': Title('calibration error, scaled', 'ECE sc.'),
  'brier_scaled': Title('Brier score, scaled', 'Brier sc.'),
  'nll_scaled': Title('log loss, scaled', 'loss sc.'),
}
# Of each class against the rest.
PER_CLASS = {
  'precision': Title('precision', 'precision'),
  'recall': Title('recall', 'recall'),
  'specificity': Title('specificity', 'specif.'),
  'f1': Title('F1', 'F1'),
  'auroc': Title('AUROC', 'AUROC'),
  'average_precision': Title('average precision', 'AP'),
}
# Of each map.
LOCALISATION = {
  'pointing_game': Title('pointing game', 'pointing'),
  'energy_in_box': Title('energy in box', 'in box'),
  'iou': Title('IoU', 'IoU'),
  'pixel_ap': Title('pixel AP', 'pixel AP'),
}
