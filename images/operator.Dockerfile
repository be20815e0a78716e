# docker build -f images/operator.Dockerfile -t dreambooth-operator:0.1.0 .
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY operator operator
COPY trainer trainer
RUN python -m venv /app && /app/bin/pip install --no-cache-dir '.[operator]'

FROM python:3.12-slim
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 8081 8082
ENTRYPOINT ["python", "-m", "dreambooth_operator"]
