"""What Ray's own tools are given: cluster.yaml and serve_apps/config.yaml pass Ray's own checks."""

from __future__ import annotations

import importlib
import ipaddress
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from agents.naming import HOST_LABEL, NODE_LABEL

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    return document


def test_ray_up_takes_cluster_yaml(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))
    assert cluster["min_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])


def test_ray_up_would_refuse_a_key_it_does_not_know(cluster: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(prepare_config(cluster | {"head_start_commands": []}))


def test_addresses_are_placeholders_and_nodes_are_labelled(cluster: dict[str, Any]) -> None:
    addresses = [cluster["provider"]["head_ip"], *cluster["provider"]["worker_ips"]]
    assert all(ipaddress.ip_address(a) in ipaddress.ip_network("192.0.2.0/24") for a in addresses)
    head, worker = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    assert f"{HOST_LABEL}=yes" in head
    for command in (head, worker):
        assert f"{NODE_LABEL}=$(cat /etc/natwork/node" in command
        assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in head


def test_serve_deploy_takes_the_configuration() -> None:
    document = yaml.safe_load((ROOT / "serve_apps" / "config.yaml").read_text(encoding="utf-8"))
    schema = ServeDeploySchema.model_validate(document)
    assert schema.http_options.host == "127.0.0.1"
    for application in schema.applications:
        module, _, name = application.import_path.partition(":")
        # What `serve run MODULE:NAME` looks up.
        bound = getattr(importlib.import_module(module), name)
        assert type(bound).__name__ == "Application"
