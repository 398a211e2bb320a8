# A worker in a container beside the engine whose containers it starts. It is no sandbox: jobs run
# in containers of the engine, and this one only asks for them. See deploy/compose.yaml.
#
#     docker build -f deploy/worker.Dockerfile -t gridx-worker .
FROM python:3.12-slim

COPY pyproject.toml README.md LICENSE /src/
COPY gridx /src/gridx
COPY coordinator /src/coordinator
COPY worker /src/worker
COPY gridx_jupyter /src/gridx_jupyter
COPY constraints.txt /src/constraints.txt
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[worker]" && rm -rf /src

# It needs the engine's socket, which only root and the engine's group may open.
ENV PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
ENTRYPOINT ["gridx-worker"]
