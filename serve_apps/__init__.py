"""The HTTP doors (docs/http.md). Plain FastAPI applications first, thin Ray Serve shells around them.

`gateway_api` and `anomaly_api` know nothing of Ray and are tested without it; `gateway` and `anomaly` are what
`serve run serve_apps.gateway:app` and `serve run serve_apps.anomaly:app` start; `config.yaml` deploys both.
"""
