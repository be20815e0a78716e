# `make images` builds this file with the base images of docker/bases.env.
# KubeRay starts the head and the workers by `ray start`, so Ray must be on PATH; user 1000 is what pods run as.
ARG CUDA_IMAGE
ARG UV_IMAGE

FROM ${UV_IMAGE} AS uv

FROM ${CUDA_IMAGE}
# Ubuntu serves the latest of a version only.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev build-essential wget \
    && rm -rf /var/lib/apt/lists/*
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PROJECT_ENVIRONMENT=/app UV_PYTHON_DOWNLOADS=never UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /src
# Dependencies have a layer of their own, 6 GB: it is built again when uv.lock changes, not when the code does.
COPY pyproject.toml uv.lock ./
RUN uv sync --frozen --no-dev --extra trainer --extra s3 --extra gcs --extra lpips --extra heif --extra bitsandbytes \
    --extra tensorboard --extra wandb --extra mlflow --no-install-project
COPY README.md LICENSE ./
COPY api api
COPY operator operator
COPY trainer trainer
COPY client client
RUN uv sync --frozen --no-dev --extra trainer --extra s3 --extra gcs --extra lpips --extra heif --extra bitsandbytes \
    --extra tensorboard --extra wandb --extra mlflow --no-editable \
    && install -d -o 1000 -g 1000 /home/ray
ENV PATH=/app/bin:$PATH HOME=/home/ray PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/ray
