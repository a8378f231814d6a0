"""What differs by platform is tested on the CPU in each of its forms."""

import pytest

from dpjax.models import platforms


@pytest.fixture(params=['as here', 'as on a GPU'])
def form(request, monkeypatch):
  if request.param == 'as on a GPU':
    monkeypatch.setattr(
      platforms, 'choose', lambda *args, gpu, other: gpu(*args)
    )
