"""Judges Kubernetes YAML by the API's own schemas, unknown keys included: kubernetes.py FILE...

Objects of the Prometheus operator are judged by its models. A chart's folder is linted and rendered first, by Helm's own
code, with its defaults and with values that switch everything on; values that cannot be must be refused. Where
LATENTGATE names a latentgate, that judges each configuration too, together with the environment of its container.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

# The oldest that has what is used (the sleep in preStop), and the newest whose schemas are here.
VERSIONS = ["1.30", kubernetes_validate.latest_version()]

EVERYTHING = {
    "replicaCount": 3,
    "image": {"tag": "0.1.0-cuda"},
    "imagePullSecrets": [{"name": "registry"}],
    "hfToken": {"existingSecret": "hub"},
    "extraEnv": [{"name": "LATENTGATE__UPSTREAM__RETRIES", "value": "2"}],
    "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
    "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    "persistence": {"storageClass": "fast"},
    "resources": {"limits": {"nvidia.com/gpu": 1}},
    "runtimeClassName": "nvidia",
    "service": {"annotations": {"a.example/b": "c"}},
    "serviceAccount": {"annotations": {"a.example/b": "c"}},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {"enabled": True},
    "podLabels": {"team": "pictures"},
    "podAnnotations": {"a.example/b": "c"},
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}]}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
}
BARE = {
    "persistence": {"enabled": False},
    "serviceAccount": {"create": False},
    "networkPolicy": {"enabled": True, "clients": [], "admins": []},
    "preStopSleepSeconds": 0,
    "fullnameOverride": "gate",
}
# Each differs from what can be in one place.
IMPOSSIBLE = [
    {"replicas": 2},
    {"replicaCount": "two"},
    {"persistence": {"size": "50 GB"}},
    {"config": {"cache": {}}},
    {"service": {"port": 70000}},
]


def judge(where: str, document: dict) -> None:
    """Raises where the API would refuse the object, or drop a key of it."""
    if document["apiVersion"].startswith("monitoring.coreos.com/"):
        from cloudcoil.models.prometheus_operator import v1

        model = getattr(v1, document["kind"]).model_validate(document)
        kept = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
        assert kept == document, f"a key that the operator does not know: {document}"
    else:
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    print(f"  {where}: {document['apiVersion']} {document['kind']} {document['metadata']['name']}")


def references(where: str, documents: list[dict]) -> None:
    """What objects call each other by: selectors, ports, volumes, config maps, claims."""
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    for document in documents:
        template = document["spec"].get("template") if document["kind"] in ("Deployment", "StatefulSet") else None
        if template is None:
            continue
        selector = document["spec"]["selector"]["matchLabels"].items()
        assert selector <= template["metadata"]["labels"].items(), f"{where}: the selector misses its own pods"
        pod = template["spec"]
        containers = pod.get("initContainers", []) + pod["containers"]
        claims = {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | claims
        for volume in pod.get("volumes", []):
            config = volume.get("configMap", {}).get("name")
            assert config is None or ("ConfigMap", config) in names, f"{where}: no ConfigMap {config}"
        for container in containers:
            ports = {port["name"] for port in container.get("ports", [])}
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in volumes, f"{where}: no volume {mount['name']}"
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in ports, f"{where}: {probe} asks a port without name"


def configuration(where: str, documents: list[dict]) -> None:
    """What the program itself says of a ConfigMap, with the environment that its container has."""
    texts = [document["data"]["latentgate.toml"] for document in documents if document["kind"] == "ConfigMap"]
    pods = [document["spec"]["template"]["spec"] for document in documents if "template" in document.get("spec", {})]
    containers = [container for pod in pods for container in pod.get("initContainers", []) + pod["containers"]]
    told = {variable["name"]: variable.get("value", "") for container in containers for variable in container.get("env", [])}
    environment = {name: value for name, value in told.items() if name.startswith("LATENTGATE__")}
    for text in texts:
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(text)
            file.flush()
            command = [os.environ["LATENTGATE"], "--config", file.name, "config", "check"]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        print(f"  {where}: its configuration, with {len(environment)} variables")


def judge_all(where: str, texts: list[str]) -> None:
    documents = [document for text in texts for document in yaml.safe_load_all(text) if document]
    assert documents, f"{where} is empty"
    for document in documents:
        judge(where, document)
    references(where, documents)
    if "LATENTGATE" in os.environ:
        configuration(where, documents)


def judge_chart(path: str) -> None:
    import helm_python
    from helm_python.chart import Chart, lint

    print(f"  Helm {helm_python.helm_sdk_version()}")
    with Chart.load(path) as chart:
        for name, values in (("defaults", {}), ("everything", EVERYTHING), ("bare", BARE)):
            report = lint(path, values, strict=True)
            assert not report["errors"], report
            chart.validate_schema(chart.merge_values(values))
            rendered = chart.render(values, name="gate", namespace="pictures")
            notes = [text for file, text in rendered.items() if file.endswith("NOTES.txt")]
            assert notes and "{{" not in notes[0], "the notes are not rendered"
            judge_all(name, [text for file, text in rendered.items() if file.endswith(".yaml")])
        for values in IMPOSSIBLE:
            try:
                chart.validate_schema(chart.merge_values(values))
            except helm_python.HelmValuesError:
                continue
            raise AssertionError(f"these values were taken: {values}")


for path in sys.argv[1:]:
    if pathlib.Path(path).is_dir():
        judge_chart(path)
    else:
        judge_all(path, [pathlib.Path(path).read_text()])
