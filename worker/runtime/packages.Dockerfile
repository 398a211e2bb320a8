# The base and the Python packages: built once for each list of packages, without a network.
# worker/images fills the context: site/ holds the unpacked wheels, manifest.json what they are.
ARG BASE
FROM ${BASE}

COPY site /opt/gridx/site

# The root is read-only later, so what Python and matplotlib would cache is made here, once.
# Files never change after this, hence unchecked-hash: an import does not even look at the source.
RUN [ -x /usr/bin/python3 ] || ln -s "$(command -v python3)" /usr/bin/python3; \
    set -e; \
    python3 -I -m compileall -q -j 0 "$(python3 -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
        > /dev/null || true; \
    python3 -I -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/gridx/site > /dev/null || true; \
    mkdir /opt/gridx/mpl; \
    MPLCONFIGDIR=/opt/gridx/mpl MPLBACKEND=agg python3 -I -c \
        'import sys; sys.path.insert(0, "/opt/gridx/site"); import matplotlib.font_manager'; \
    find / -xdev -type f -perm /6000 -exec chmod ug-s {} +

COPY manifest.json /opt/gridx/manifest.json
