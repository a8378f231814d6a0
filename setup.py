"""What pyproject.toml cannot say: a wheel has configs/ inside, as data.

An editable install finds configs/ beside the package, in its checkout.
"""

import sys

import setuptools

packages = setuptools.find_packages(include=['dpjax*'])
if 'editable_wheel' in sys.argv:
  setuptools.setup(packages=packages)
else:
  setuptools.setup(
    packages=[*packages, 'dpjax.configs'],
    package_dir={'dpjax.configs': 'configs'},
  )
