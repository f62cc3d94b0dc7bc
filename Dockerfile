# syntax=docker/dockerfile:1
# One image for every part of the service; the command says which. torch brings its CUDA libraries with it, so a
# worker needs nothing but the NVIDIA container runtime.
FROM python:3.11-slim-bookworm AS build
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /src
COPY . .
# The lock's versions, without the tools of development that it also names.
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint requirements.lock '.[mlflow,otel,s3]'

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 flattengpt && install --directory --owner flattengpt /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FLATTENGPT_DATA_DIR=/data \
    HF_HOME=/data/hf
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["flattengpt"]
CMD ["--help"]
