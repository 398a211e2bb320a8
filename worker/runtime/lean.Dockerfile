# The base and what PID 1 itself imports, for the images of bash and node: no IPython, no numpy.
# worker/images fills the context: tree/ is copied over the root, site/ holds the unpacked wheels.
ARG BASE
FROM ${BASE}

COPY site /opt/gridx/site
COPY tree /

RUN [ -x /usr/bin/python3 ] || ln -s "$(command -v python3)" /usr/bin/python3; \
    set -e; \
    ldconfig; \
    python3 -I -m compileall -q -j 0 "$(python3 -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
        > /dev/null || true; \
    python3 -I -m compileall -q --invalidation-mode unchecked-hash /opt/gridx/site > /dev/null || true; \
    find / -xdev -type f -perm /6000 -exec chmod ug-s {} +

COPY manifest.json /opt/gridx/manifest.json
