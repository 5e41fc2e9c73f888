"""Is docker/compose.yaml sound? What it mounts is in the tree, our services' settings are ones that the image's program takes, images are pinned,
and what depends on or scrapes another service finds it. PyYAML on the path (scripts/packages.sh docker/compose-check.txt).

    compose_check.py ROOT     ROOT: what `scripts/image.sh root` wrote
"""

import subprocess
import sys
from pathlib import Path

import yaml

FOLDER = Path("docker")


def expect(condition, complaint):
    if not condition:
        sys.exit(f"compose: {complaint}")


def is_ours(service):
    return service["image"].startswith("taiji:")


def check_mounts(name, service, volumes):
    for mount in service.get("volumes", []):
        source = mount.split(":")[0]
        if source.startswith("."):
            expect((FOLDER / source).exists(), f"{name} mounts {source}, which is not there")
        else:
            expect(source in volumes, f"{name} mounts the volume {source}, which is not declared")


def check_needs(name, service, services):
    needed = service.get("depends_on", {})
    for other in needed:
        expect(other in services, f"{name} depends on {other}, which is no service")
        condition = needed[other]["condition"] if isinstance(needed, dict) else "service_started"
        if condition == "service_healthy":
            expect("healthcheck" in services[other], f"{name} waits for {other} to be healthy, which has no healthcheck")
        if condition == "service_completed_successfully":
            expect("restart" not in services[other], f"{name} waits for the end of {other}, which is started again")


def check_ours(name, service, root):
    """Confined as image-check runs it, and its settings are settings."""
    expect(service["read_only"] and service["tmpfs"] == ["/tmp"] and service["cap_drop"] == ["ALL"], f"{name} is not confined")
    environment = [f"{key}={value}" for key, value in service.get("environment", {}).items() if key.startswith("TAIJI__")]
    options = [part for pair in environment for part in ("-e", pair)]
    done = subprocess.run(["scripts/image_run.sh", root, *options, "taiji", "check-config"], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
    expect(done.returncode == 0, f"the settings of {name} are refused: {done.stderr.strip()}")


def check_scrapes(services):
    config = yaml.safe_load((FOLDER / "prometheus/prometheus.yml").read_text())
    targets = {target for job in config["scrape_configs"] for group in job["static_configs"] for target in group["targets"]}
    roles = {f"{name}:9090" for name, service in services.items() if "TAIJI__SERVER__ROLES" in service.get("environment", {})}
    expect(targets == roles, f"Prometheus scrapes {sorted(targets)}, the roles are at {sorted(roles)}")


def main():
    (root,) = sys.argv[1:]
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    services = compose["services"]
    for name, service in services.items():
        expect(is_ours(service) or not service["image"].split(":")[1].startswith("latest"), f"{name}: {service['image']} is not pinned")
        check_mounts(name, service, compose["volumes"])
        check_needs(name, service, services)
        if is_ours(service):
            check_ours(name, service, root)
    check_scrapes(services)
    roles = sorted(service["environment"]["TAIJI__SERVER__ROLES"] for service in services.values() if "TAIJI__SERVER__ROLES" in service.get("environment", {}))
    expect(roles == ["api", "infer", "ingest"], f"the roles are {roles}")
    print(f"compose: {len(services)} services; settings, mounts and targets hold")


main()
