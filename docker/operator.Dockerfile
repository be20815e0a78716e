# `make images` builds this file with the base images of docker/bases.env.
ARG PYTHON_IMAGE
ARG UV_IMAGE

FROM ${UV_IMAGE} AS uv

FROM ${PYTHON_IMAGE} AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PROJECT_ENVIRONMENT=/app UV_PYTHON_DOWNLOADS=never UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /src
# Dependencies have a layer of their own: it is built again when uv.lock changes, not when the code does.
COPY pyproject.toml uv.lock ./
RUN uv sync --frozen --no-dev --extra operator --no-install-project
COPY README.md LICENSE ./
COPY api api
COPY operator operator
COPY trainer trainer
COPY client client
RUN uv sync --frozen --no-dev --extra operator --no-editable

FROM ${PYTHON_IMAGE}
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 8081 8082
ENTRYPOINT ["python", "-m", "dreambooth_operator"]
