# The service on a CPU:  docker build -t plaudit .
#   docker run -p 8000:8000 -v /path/to/bundle:/bundle:ro -e PLAUDIT_TOKEN=... plaudit
# deploy/README.md says what of it has been checked.
FROM python:3.12-slim

# Bytes of strangers are decoded here: no root, and nothing that could be written but /tmp.
RUN useradd --system --create-home --uid 10001 plaudit
WORKDIR /app
COPY pyproject.toml plaudit.py README.md LICENSE NOTICE ./
COPY embed embed
COPY heads heads
COPY export export
COPY runtime runtime
# Versions are what pyproject.toml allows; whoever needs the same image again pins them by a constraints file.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[cpu,serve,hardened,otel]' && rm -rf /app/*
USER 10001
ENV PYTHONUNBUFFERED=1

EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=12s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=11)"]
ENTRYPOINT ["python", "-m", "runtime", "serve", "/bundle", "--host", "0.0.0.0"]
