"""What differs by platform is tested on the CPU in each of its forms."""

import pytest

from dpjax.models import platforms


@pytest.fixture(params=['as here', 'as on a GPU', 'as on a TPU'])
def form(request, monkeypatch):
  def choose(*args, other, gpu=None, tpu=None):
    own = gpu if request.param == 'as on a GPU' else tpu
    return (own or other)(*args)

  if request.param != 'as here':
    monkeypatch.setattr(platforms, 'choose', choose)
