"""What the page says of its numbers."""

from dpjax.report import words


def test_the_legend_says_whether_images_or_patients_were_drawn():
  images = {'num_images': 40, 'num_patients': 40}
  earlier = {'num_images': 40}  # of a version that did not count them
  patients = {'num_images': 40, 'num_patients': 31}
  plain = words.legend([images, earlier])
  assert 'bootstrap intervals over images (' in plain
  assert 'patient' not in plain
  assert 'bootstrap intervals over patients (' in words.legend(
    [images, patients]
  )


def test_what_was_drawn_is_patients_only_where_one_has_several_images():
  assert words.drawn({'num_images': 40}) == 'images'
  assert words.drawn({'num_images': 40, 'num_patients': 40}) == 'images'
  assert words.drawn({'num_images': 40, 'num_patients': 39}) == 'patients'
