# docker build -f images/trainer.Dockerfile -t dreambooth-trainer:0.1.0 .
# KubeRay starts the head and the workers by `ray start`, so Ray must be on PATH; user 1000 is what pods run as.
FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04
# Ubuntu serves the latest of a version only.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev build-essential wget \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY operator operator
COPY trainer trainer
RUN python3 -m venv /app && /app/bin/pip install --no-cache-dir '.[trainer,s3,gcs]'
RUN install -d -o 1000 -g 1000 /home/ray
ENV PATH=/app/bin:$PATH HOME=/home/ray PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/ray
