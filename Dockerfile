# The agent as an image. It drives the engine of the machine it runs on, so it needs that engine's socket and the host's
# network; docs/service.md says what to mount, configs/compose.yaml is an example.
#
#   docker build -t node-agent .
#
# BASE is any Debian-like image with Python 3.11 or newer. Where the build has no way to a package index, wheels of
# everything in pyproject.toml, and of pip and setuptools, may lie in the folder `wheels` beside this file.

ARG BASE=python:3.12-slim

FROM ${BASE} AS dependencies
# The environment gets no pip of its own: nothing that can install stays in it.
COPY pyproject.toml wheels* /build/
WORKDIR /build
RUN set -eu; python3 -m venv --without-pip /opt/node-agent; \
    printf '#!/bin/sh\nexec python3 -m pip --python /opt/node-agent/bin/python "$@"\n' > /build/pip; \
    for wheel in /build/pip-*.whl; do \
      [ ! -e "$wheel" ] || { \
        printf '#!/bin/sh\nexport PIP_NO_INDEX=1 PIP_FIND_LINKS=/build\n' > /build/pip; \
        printf 'exec python3 %s/pip --python /opt/node-agent/bin/python "$@"\n' "$wheel" >> /build/pip; }; \
    done; \
    chmod +x /build/pip
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# An empty package stands in for the agent: a change of its code must not fetch everything anew.
RUN set -eu; mkdir node_agent; touch node_agent/__init__.py README.md; \
    ./pip install --quiet ".[compute]"; ./pip uninstall --quiet --yes node-agent; rm -rf node_agent README.md build; \
    cd /opt/node-agent/lib/python3.*/site-packages; \
    rm -rf pandas/tests pyarrow/tests pyarrow/include pyarrow/src

FROM dependencies AS program
COPY README.md LICENSE* /build/
COPY node_agent /build/node_agent
RUN ./pip install --quiet --no-deps --prefix /opt/program .

FROM ${BASE}
# Debian packages for what an owner may open: egress.allow and tunnels. Empty leaves them out.
ARG EXTRAS="squid openssh-client"
RUN set -eu; missing="${EXTRAS}"; command -v nft >/dev/null || missing="${missing} nftables"; \
    [ -z "${missing}" ] || { \
      apt-get update -qq && apt-get install -y -qq --no-install-recommends ${missing} && rm -rf /var/lib/apt/lists/*; }
# Not a number that distributions give out: on the host it must not be anybody.
ARG UID=64197
RUN groupadd --gid ${UID} node-agent && \
    useradd --uid ${UID} --gid ${UID} --no-create-home --home-dir /var/lib/node-agent --shell /usr/sbin/nologin node-agent
COPY --from=dependencies /opt/node-agent /opt/node-agent
COPY --from=program /opt/program /opt/node-agent
RUN ln -s /opt/node-agent/bin/node-agent /usr/local/bin/node-agent
USER node-agent
ENTRYPOINT ["node-agent"]
CMD ["run", "-c", "/etc/node-agent/agent.yaml"]
HEALTHCHECK --interval=60s --timeout=20s --start-period=120s \
  CMD ["node-agent", "status", "-c", "/etc/node-agent/agent.yaml"]
