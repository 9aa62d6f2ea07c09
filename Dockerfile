# The agent as an image. It drives the engine of the machine it runs on, so it needs that engine's socket and the host's
# network; docs/service.md says what to mount, configs/compose.yaml is an example.
#
#   docker build -t node-agent .
#
# BASE is any Debian-like image with Python 3.11 or newer. Where the build has no way to a package index, wheels of
# everything in pyproject.toml, and of pip and setuptools, may lie in the folder `wheels` beside this file.

ARG BASE=python:3.12-slim

FROM ${BASE} AS build
COPY pyproject.toml README.md LICENSE* wheels* /build/
COPY node_agent /build/node_agent
# The environment gets no pip of its own: nothing that can install stays in it.
RUN set -eu; cd /build; pip="-m pip --python /opt/node-agent/bin/python"; \
    for wheel in pip-*.whl; do \
      [ ! -e "$wheel" ] || { pip="$wheel/pip --python /opt/node-agent/bin/python"; \
        export PIP_NO_INDEX=1 PIP_FIND_LINKS=/build; }; \
    done; \
    python3 -m venv --without-pip /opt/node-agent; \
    python3 $pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore .

FROM ${BASE}
RUN command -v nft >/dev/null || { \
      apt-get update -qq && apt-get install -y -qq --no-install-recommends nftables && rm -rf /var/lib/apt/lists/*; }
# Not a number that distributions give out: on the host it must not be anybody.
ARG UID=64197
RUN groupadd --gid ${UID} node-agent && \
    useradd --uid ${UID} --gid ${UID} --no-create-home --home-dir /var/lib/node-agent --shell /usr/sbin/nologin node-agent
COPY --from=build /opt/node-agent /opt/node-agent
RUN ln -s /opt/node-agent/bin/node-agent /usr/local/bin/node-agent
USER node-agent
ENTRYPOINT ["node-agent"]
CMD ["run", "-c", "/etc/node-agent/agent.yaml"]
HEALTHCHECK --interval=60s --timeout=20s --start-period=120s \
  CMD ["node-agent", "status", "-c", "/etc/node-agent/agent.yaml"]
