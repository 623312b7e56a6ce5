# docker build --target coordinator -t fedcybgd-coordinator .
# docker build --target agent -t fedcybgd-agent .
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/data
RUN useradd --create-home --home-dir /data --uid 1000 fed
WORKDIR /app
COPY requirements requirements
# Every package by version and hash (`make locks`). TORCH may name a lock file of your own, for another build of torch.
ARG TORCH=requirements/torch.lock
RUN pip install --require-hashes -r "$TORCH"
COPY pyproject.toml README.md LICENSE ./
COPY fedcybgd fedcybgd
COPY shared shared
COPY migrations migrations
COPY coordinator coordinator
COPY agent agent

FROM base AS coordinator
RUN pip install --require-hashes -r requirements/coordinator.lock && pip install --no-deps --no-build-isolation .
USER fed
ENV FEDCOORD_HOME=/data/fedcoord FEDCOORD_HOST=0.0.0.0
VOLUME /data
EXPOSE 8440
# Which certificate it shows is for agents to judge; here it is only asked whether it answers.
HEALTHCHECK CMD python -c "import os, ssl, urllib.request as u; s = 'https' if os.environ.get('FEDCOORD_TLS_CERTIFICATE') else 'http'; u.urlopen(s + '://127.0.0.1:8440/v1/health', timeout=3, context=ssl._create_unverified_context())"
ENTRYPOINT ["fedcoord"]
CMD ["serve"]

FROM base AS agent
RUN pip install --require-hashes -r requirements/agent.lock && pip install --no-deps --no-build-isolation .
USER fed
ENV FEDAGENT_HOME=/data/fedagent
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["fedagent"]
CMD ["run"]
