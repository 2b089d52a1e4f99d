"""The compose file, the systemd unit, the Kubernetes example: commands, ports, probes, times, files fit."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient
from tests.unit.deploy.command_lines import parse_command

from telechat.serve.key_file import read_key_file
from telechat.serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
DRAIN_SECONDS = ServeSettings().shutdown_seconds
# After running answers have ended: the engine's process ends too.
SPARE_SECONDS = 5


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8")))


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


class TestCompose:
    @pytest.mark.parametrize("name", ["cpu", "cuda"])
    def test_the_command(self, name: str) -> None:
        service = compose()["services"][name]
        args = parse_command(["telechat", *service["command"]])
        published = [tuple(port.rsplit(":", 2)) for port in service["ports"]]
        assert published == [("127.0.0.1", str(port), str(port)) for port in (args.api_port, args.web_port)]
        # A key is asked for: compose itself refuses to start without one.
        assert not args.allow_anonymous
        assert service["environment"]["TELECHAT_API_KEY"].startswith("${TELECHAT_API_KEY:?")
        assert "MODEL_PATH" in service["environment"]

    @pytest.mark.parametrize("name", ["cpu", "cuda"])
    def test_it_can_stop_in_time(self, name: str) -> None:
        service = compose()["services"][name]
        assert seconds(service["stop_grace_period"]) >= DRAIN_SECONDS + SPARE_SECONDS
        assert service["init"] is True

    def test_profiles(self) -> None:
        services = compose()["services"]
        assert {name: service["profiles"] for name, service in services.items()} == {
            "cpu": ["cpu"],
            "cuda": ["cuda"],
            "prometheus": ["monitoring"],
            "grafana": ["monitoring"],
        }
        for name in ("cpu", "cuda"):
            build = services[name]["build"]
            assert (DEPLOY / build["context"] / build["dockerfile"]).suffix == f".{name}"
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        (device,) = services["cuda"]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"] and "deploy" not in services["cpu"]

    def test_files_and_volumes_exist(self) -> None:
        settings = compose()
        mounts = [volume for service in settings["services"].values() for volume in service["volumes"]]
        for mount in mounts:
            source = mount.split(":/")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), mount
            else:
                assert source in settings["volumes"] or source.startswith("${TELECHAT_MODELS:-"), mount

    def test_images_have_versions(self) -> None:
        services = compose()["services"]
        for name in ("prometheus", "grafana"):
            assert re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"])

    def test_prometheus_reads_the_service(self, client: TestClient) -> None:
        settings = compose()
        (job,) = yaml.safe_load((DEPLOY / "monitoring" / "prometheus-compose.yml").read_text())[
            "scrape_configs"
        ]
        host, _, port = job["static_configs"][0]["targets"][0].partition(":")
        service = settings["services"]["cpu"]
        assert host in service["networks"]["default"]["aliases"]
        assert str(parse_command(["telechat", *service["command"]]).api_port) == port
        assert client.get(job["metrics_path"]).status_code == 200
        (secret,) = settings["services"]["prometheus"]["secrets"]
        assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
        assert settings["secrets"][secret] == {"environment": "TELECHAT_API_KEY"}

    def test_grafana_shows_the_dashboard(self) -> None:
        grafana = compose()["services"]["grafana"]
        folder = DEPLOY / "monitoring" / "grafana"
        (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
        assert source["url"] == "http://prometheus:9090"
        (provider,) = yaml.safe_load((folder / "dashboards" / "telechat.yml").read_text())["providers"]
        targets = [volume.split(":")[1] for volume in grafana["volumes"]]
        assert f"{provider['options']['path']}/telechat.json" in targets


class TestSystemd:
    PATH = DEPLOY / "systemd" / "telechat.service"

    def unit(self) -> dict[str, list[str]]:
        """Every key with its values, in order."""
        found: dict[str, list[str]] = {}
        for line in self.PATH.read_text(encoding="utf-8").splitlines():
            name, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                found.setdefault(name, []).append(value)
        return found

    def test_the_command(self) -> None:
        unit = self.unit()
        args = parse_command(shlex.split(unit["ExecStart"][0]))
        assert args.host == "127.0.0.1"
        # What the command reads is what the unit provides.
        assert str(args.api_key_file) == "${CREDENTIALS_DIRECTORY}/keys.yaml"
        assert unit["LoadCredential"][0].startswith("keys.yaml:")
        assert args.access_log.startswith("${LOGS_DIRECTORY}/") and unit["LogsDirectory"]

    def test_it_can_stop_in_time(self) -> None:
        unit = self.unit()
        args = parse_command(shlex.split(unit["ExecStart"][0]))
        assert int(unit["TimeoutStopSec"][0]) >= args.drain_timeout + SPARE_SECONDS
        # The engine is a process of its own; a signal to it as well would cut running answers off.
        assert unit["KillMode"] == ["mixed"]

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
    def test_systemd_accepts_it(self, tmp_path: Path) -> None:
        """systemd also looks for the program, so another one stands at its place."""
        text = self.PATH.read_text(encoding="utf-8")
        copy = tmp_path / "telechat.service"
        copy.write_text(text.replace("/opt/telechat/bin/telechat", sys.executable), encoding="utf-8")
        done = self.verify(copy)
        assert done.returncode == 0 and not done.stderr.strip(), done.stderr
        copy.write_text(copy.read_text().replace("KillMode=mixed", "KillMode=gently"), encoding="utf-8")
        assert "gently" in self.verify(copy).stderr

    def verify(self, path: Path) -> subprocess.CompletedProcess[str]:
        command = ["systemd-analyze", "verify", "--man=no", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)


class TestKubernetes:
    def objects(self) -> dict[str, dict[str, Any]]:
        text = (DEPLOY / "kubernetes" / "telechat.yaml").read_text(encoding="utf-8")
        return {item["kind"]: item for item in yaml.safe_load_all(text)}

    def pod(self) -> dict[str, Any]:
        return dict(self.objects()["Deployment"]["spec"]["template"]["spec"])

    def container(self) -> dict[str, Any]:
        (container,) = self.pod()["containers"]
        return dict(container)

    def test_the_parts_find_each_other(self) -> None:
        objects = self.objects()
        assert set(objects) == {"Secret", "PersistentVolumeClaim", "Deployment", "Service"}
        labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
        assert objects["Service"]["spec"]["selector"] == labels
        volumes = {volume["name"]: volume for volume in self.pod()["volumes"]}
        assert {mount["name"] for mount in self.container()["volumeMounts"]} == set(volumes)
        claim = volumes["model"]["persistentVolumeClaim"]["claimName"]
        assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
        assert volumes["keys"]["secret"]["secretName"] == objects["Secret"]["metadata"]["name"]

    def test_the_command_and_its_files(self, tmp_path: Path) -> None:
        args = parse_command(["telechat", *self.container()["args"]])
        mounts = {mount["name"]: Path(mount["mountPath"]) for mount in self.container()["volumeMounts"]}
        assert Path(args.model).is_relative_to(mounts["model"])
        assert args.api_key_file.parent == mounts["keys"]
        content = self.objects()["Secret"]["stringData"][args.api_key_file.name]
        path = tmp_path / "keys.yaml"
        path.write_text(content, encoding="utf-8")
        path.chmod(0o600)
        assert [key.name for key in read_key_file(path)] == ["operator"]

    def test_ports(self) -> None:
        args = parse_command(["telechat", *self.container()["args"]])
        (port,) = self.container()["ports"]
        assert port["containerPort"] == args.port and args.host == "0.0.0.0"
        (entry,) = self.objects()["Service"]["spec"]["ports"]
        assert entry["targetPort"] == port["name"]

    def test_probes_ask_routes_that_exist(self, client: TestClient) -> None:
        container = self.container()
        expected = {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
        for probe, path in expected.items():
            asked = container[probe]["httpGet"]
            assert asked == {"path": path, "port": container["ports"][0]["name"]}
            assert client.get(path).status_code == 200

    def test_it_can_stop_in_time(self) -> None:
        args = parse_command(["telechat", *self.container()["args"]])
        program, pause = self.container()["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "sleep"
        needed = int(pause) + args.drain_timeout + SPARE_SECONDS
        assert self.pod()["terminationGracePeriodSeconds"] >= needed

    def test_without_rights(self) -> None:
        assert self.pod()["securityContext"]["runAsNonRoot"] is True
        assert self.container()["securityContext"]["allowPrivilegeEscalation"] is False
        uids = re.findall(r"--uid (\d+)", (DEPLOY / "docker" / "Dockerfile.cuda").read_text(encoding="utf-8"))
        assert [str(self.pod()["securityContext"]["runAsUser"])] == uids
