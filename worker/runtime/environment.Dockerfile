# What a job's --pip lists, or a lender's own image adds: files only, on an image that runs jobs.
# worker/images fills the context: more/ holds the unpacked wheels. Nothing of it runs in a build:
# Python starts without site (-S), hence without its .pth files, and compiles without importing.
ARG BASE
FROM ${BASE}

USER 0:0
ARG FOLDER
COPY more ${FOLDER}
COPY manifest.json /opt/gridx/manifest.json
RUN python3 -I -S -m compileall -q --invalidation-mode unchecked-hash ${FOLDER} > /dev/null || true
USER 65534:65534
