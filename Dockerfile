# docker build --target coordinator -t fedcybgd-coordinator .
# docker build --target agent -t fedcybgd-agent .
# Both with torch for NVIDIA's GPUs. Without one, a tenth of the size, with the index of torch's builds for the CPU:
#   --build-arg TORCH=requirements/torch-cpu.lock --build-arg TORCH_INDEX=…
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/data
RUN useradd --create-home --home-dir /data --uid 1000 fed
WORKDIR /app
COPY requirements requirements
# Every package by version and hash (`make locks`). TORCH may name a lock file of your own, for another build of torch.
ARG TORCH=requirements/torch.lock
ARG TORCH_INDEX=
RUN pip install --require-hashes -r "$TORCH" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
COPY pyproject.toml README.md LICENSE ./
COPY fedcybgd fedcybgd
COPY shared shared
COPY migrations migrations
COPY coordinator coordinator
COPY agent agent

FROM base AS coordinator
RUN pip install --require-hashes -r requirements/coordinator.lock && pip install --no-deps --no-build-isolation .
# For what several coordinators have in common: a volume that is mounted there is theirs.
RUN install --directory --owner 1000 --group 1000 --mode 700 /shared
# By its number, so that Kubernetes can see that it is not root.
USER 1000:1000
ENV FEDCOORD_HOME=/data/fedcoord FEDCOORD_HOST=0.0.0.0
VOLUME /data
EXPOSE 8440
HEALTHCHECK --interval=30s --timeout=15s --start-period=5m --retries=3 CMD ["fedcoord", "health"]
ENTRYPOINT ["fedcoord"]
CMD ["serve"]

FROM base AS agent
RUN pip install --require-hashes -r requirements/agent.lock && pip install --no-deps --no-build-isolation .
USER 1000:1000
ENV FEDAGENT_HOME=/data/fedagent
VOLUME /data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=60s --timeout=15s --start-period=5m --retries=3 CMD ["fedagent", "status", "--exit-code"]
ENTRYPOINT ["fedagent"]
CMD ["run"]
