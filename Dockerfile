# Any base works that has Python 3.11 or newer with its venv module. Both stages must use the same one.
# A tag can move: for a build that never changes, pass BASE=name@sha256:...
ARG BASE=python:3.13.14-slim-bookworm

FROM ${BASE} AS build
# Two environments: /venv is the one that runs; /build holds pip and setuptools, which only the build needs.
RUN python3 -m venv /build && python3 -m venv --without-pip /venv
WORKDIR /src
COPY requirements.txt requirements-dev.txt ./
# The same steps as `make install`, but only the runtime packages. The pin of setuptools comes from requirements-dev.txt.
RUN sed -n '/^setuptools==/,/[^\\]$/p' requirements-dev.txt > build.txt \
    && /build/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --require-hashes -r build.txt \
    && /build/bin/python -m pip --python /venv/bin/python install --quiet --disable-pip-version-check --no-cache-dir \
        --require-hashes -r requirements.txt
COPY . .
RUN /build/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w /dist . \
    && /build/bin/python -m pip --python /venv/bin/python install --quiet --disable-pip-version-check --no-deps \
        /dist/*.whl

FROM ${BASE}
# A user with a name, since `deprovisioner jobs redrive` records who did it.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin deprovisioner
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER deprovisioner
EXPOSE 8080
CMD ["deprovisioner", "--help"]
