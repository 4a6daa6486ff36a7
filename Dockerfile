# One image for gateway, nodes and the command line; compose.yaml runs it.
#
#   docker build -t grid .
#   docker build -t grid --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#
# Stages, so that a change of the source reinstalls nothing but the source:
#   dependencies  /opt/venv: what pyproject.toml asks for, in the versions of constraints.txt, less what never runs
#   package       /opt/grid: this project
#   runtime       both on a clean base, for a user without rights
#   demo          runtime and scikit-learn, which has the demonstration's data
# The last stage, which a plain build makes, is `runtime`.

ARG BASE=python:3.11-slim

FROM ${BASE} AS dependencies
# A further package index for torch, for example one with builds for CPUs only; without it pip's usual ones.
ARG TORCH_INDEX=""
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# Not installed: pip and setuptools, which nothing needs at run time. Deleted: test suites, headers, static libraries and
# the test programs of torch, which together are a fifth of what pip installs.
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python --no-cache-dir --disable-pip-version-check install \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint constraints.txt --requirement requirements.txt \
    && cd /opt/venv/lib/python3*/site-packages \
    && find . -type d \( -name tests -o -name test \) -prune -exec rm -rf {} + \
    && rm -rf torch/include torch/share torch/lib/*.a pyarrow/include pyarrow/src \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && find . -type f \( -name '*.a' -o -name '*.lib' -o -name '*.pyx' -o -name '*.pxd' \) -delete \
    && echo /opt/grid > grid.pth

FROM dependencies AS package
COPY README.md LICENSE ./
COPY grid grid
RUN python3 -m pip --python /opt/venv/bin/python --no-cache-dir --disable-pip-version-check install \
        --no-deps --target /opt/grid .

FROM ${BASE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="grid" \
      org.opencontainers.image.description="Private computation on data that stays where it is" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A new volume takes over owner and mode of the folder that it is mounted at, so these exist here.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /state --shell /usr/sbin/nologin grid \
    && install -d -o grid -g grid -m 0700 /state \
    && install -d -o grid -g grid -m 0755 /data /demo /demo/alice /demo/bob /demo/carol
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /opt/grid /opt/grid
ENV PATH=/opt/grid/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER grid
WORKDIR /state
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["grid", "health"]
ENTRYPOINT ["grid"]
CMD ["--help"]

FROM runtime AS demo
USER root
RUN --mount=from=dependencies,source=/src,target=/src \
    PATH=/usr/local/bin:/usr/bin:/bin python3 -m pip --python /opt/venv/bin/python --no-cache-dir \
        --disable-pip-version-check install --constraint /src/constraints.txt scikit-learn \
    && cd /opt/venv/lib/python3*/site-packages \
    && find sklearn scipy joblib -type d -name tests -prune -exec rm -rf {} +
USER grid

FROM runtime
