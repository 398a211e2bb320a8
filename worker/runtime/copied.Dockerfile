# A base tree whose Python is another one, copied from the machine: only one is left in the image.
# worker/images fills the context: tree/ is copied over the root.
ARG BASE
FROM ${BASE}

RUN rm -rf /usr/bin/python3* /usr/lib/python3*
COPY tree /
RUN ldconfig
