# A server on a machine without a GPU, from the commands of the README: set-up, then the server.
#   docker build -t leankv-sglang-cpu . && docker run -p 30000:30000 leankv-sglang-cpu
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++ git libnuma1 libsndfile1 make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/leankv-sglang
ENV LEANKV_HOME=/opt/leankv-home PIP_NO_CACHE_DIR=1
# An index with CPU builds of torch keeps the image small; --build-arg TORCH_INDEX= takes what PyPI has.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . .
RUN make setup TORCH_INDEX=${TORCH_INDEX}

EXPOSE 30000
ENTRYPOINT [".venv/bin/python", "-m", "leankv_sglang.launch_server", "--host", "0.0.0.0"]
