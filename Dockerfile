# The command dpjax in a container.
#
#   docker build -t dpjax .                                             CPU
#   docker build -t dpjax --build-arg EXTRAS=dicom,export,cuda \
#     --build-arg BASE=nvidia/cuda:13.0.2-base-ubuntu24.04 .            NVIDIA GPUs
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" dpjax \
#     train --config=retrain:quick                         with GPUs: --gpus all
#
# BASE is any Debian or Ubuntu of Python 3.11 or newer: the extra cuda brings
# CUDA's libraries itself.
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG EXTRAS=dicom,export

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Images of Python have a venv module, those of NVIDIA have no Python.
# hadolint ignore=DL3008
RUN packages=(gcc libc6-dev) && \
  { python3 -c 'import ensurepip, venv' 2>/dev/null || \
  packages+=(python3-dev python3-venv); } && \
  apt-get update && \
  apt-get install -y --no-install-recommends "${packages[@]}" && \
  rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY configs configs
COPY dpjax dpjax
RUN python3 -m venv /opt/dpjax && \
  /opt/dpjax/bin/pip install --no-cache-dir ".[${EXTRAS}]" && \
  useradd --uid 10001 --create-home dpjax && install -d -o dpjax /work

ENV PATH=/opt/dpjax/bin:$PATH
USER 10001
WORKDIR /work
ENTRYPOINT ["dpjax"]
