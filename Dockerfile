# An image that runs everything in this repository, with CUDA: PyPI's torch for Linux on x86-64 brings its own CUDA libraries,
# so the host needs only the driver and the NVIDIA container toolkit.
#
#   docker build --build-arg GIT_COMMIT="$(git describe --always --abbrev=40 --dirty=+)" --tag pure .
#   docker run --gpus all --shm-size 8g --volume "$PWD/runs:/pure/runs" pure \
#       pure pretrain --config recipes/a100_2day/pretrain.yaml
FROM python:3.11-slim-bookworm

# tini forwards signals, even to a script that has not installed its handlers yet. Triton and inductor compile with g++.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ tini \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 1000 --create-home pure \
    && install --directory --owner=pure /pure /pure/runs
WORKDIR /pure

# Before the code: the dependencies are large and rarely change, so they get their own layer.
COPY requirements.txt .
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt

COPY LICENSE README.md pyproject.toml pure.py train_pretrain.py train_grpo.py eval_medqa.py ./
COPY accelerate_configs accelerate_configs
COPY benchmarks benchmarks
COPY deploy deploy
COPY recipes recipes
COPY modeling_pure modeling_pure
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --editable .

ARG GIT_COMMIT=unknown
LABEL org.opencontainers.image.revision=$GIT_COMMIT
ENV GIT_COMMIT=$GIT_COMMIT HF_HOME=/pure/runs/.cache HF_HUB_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1
USER pure
ENTRYPOINT ["tini", "--"]
CMD ["pure", "--help"]
