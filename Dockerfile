# undrift in an image: docker build --tag undrift .
# The RUN lines are run by `make dockerfile`; no image has been built yet.
FROM python:3.12-slim

# The build of torch: .../whl/cu128 for NVIDIA GPUs
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

WORKDIR /undrift
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN python -m pip install --extra-index-url "$TORCH_INDEX" --constraint constraints.txt torch
RUN python -m pip install --constraint constraints.txt ".[pocket,parquet]"

WORKDIR /work
ENTRYPOINT ["undrift"]
CMD ["--help"]
