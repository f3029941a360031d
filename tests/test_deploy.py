"""What deploy/ holds is valid by the schemas of those who read it, and its parts agree with each other and with the
code."""

import copy
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from scalselect_ray.cluster import metrics
from scalselect_ray.config_files import parse_config

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(path.name for path in DEPLOY.glob("*.yaml") if path.name != "cluster-aws.yaml")
CUSTOM = {"RayJob": "rayjobs", "RayCluster": "rayclusters", "RayCronJob": "raycronjobs"}
RAY = Path(str(importlib.util.find_spec("ray").origin)).parent

# What the plain kinds may hold beside pods, whose schema is taken from KubeRay's.
META = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "annotations": {"additionalProperties": {"type": "string"}}},
}
PLAIN: dict[str, dict[str, Any]] = {
    "v1/ConfigMap": {"data": {"type": "object", "additionalProperties": {"type": "string"}}},
    "v1/ServiceAccount": {},
    "batch/v1/CronJob": {
        "spec": {
            "type": "object",
            "required": ["schedule", "jobTemplate"],
            "properties": {
                "schedule": {"type": "string", "pattern": r"^\S+( \S+){4}$"},
                "timeZone": {"type": "string"},
                "concurrencyPolicy": {"enum": ["Allow", "Forbid", "Replace"]},
                "startingDeadlineSeconds": {"type": "integer"},
                "successfulJobsHistoryLimit": {"type": "integer"},
                "failedJobsHistoryLimit": {"type": "integer"},
                "jobTemplate": {
                    "type": "object",
                    "properties": {
                        "spec": {
                            "type": "object",
                            "required": ["template"],
                            "properties": {"backoffLimit": {"type": "integer"}, "template": {"$ref": "#/$defs/pod"}},
                        }
                    },
                },
            },
        }
    },
}


@pytest.fixture(scope="module")
def definitions(shared) -> dict[str, dict[str, Any]]:
    """Schemas of KubeRay's kinds by kind, that refuse what they do not know."""
    found = {}
    for kind, plural in CUSTOM.items():
        # CSafeLoader is the safe loader in C, which builds plain values only: the schemas have 25,000 lines.
        definition = yaml.load((shared / "crds" / f"ray.io_{plural}.yaml").read_text(), yaml.CSafeLoader)
        schema = next(item for item in definition["spec"]["versions"] if item["name"] == "v1")["schema"][
            "openAPIV3Schema"
        ]
        schema["properties"]["metadata"] = META
        found[kind] = strict(schema)
    return found


def strict(schema: Any) -> Any:
    """As the API server with strict field validation reads a schema: a field that it does not name is an error."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(item) for name, item in schema.items()}
    known = {"additionalProperties", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"}
    if schema.get("type") == "object" and not known.intersection(schema):
        closed["additionalProperties"] = False
    return closed


def manifest(name: str) -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / name).read_text())
    assert isinstance(found, dict)
    return found


def problems(found: dict[str, Any], definitions: dict[str, dict[str, Any]]) -> list[str]:
    if found["kind"] in CUSTOM:
        assert found["apiVersion"] == "ray.io/v1"
        schema = definitions[found["kind"]]
    else:
        properties = {"apiVersion": {}, "kind": {}, "metadata": META, **PLAIN[f"{found['apiVersion']}/{found['kind']}"]}
        pod = definitions["RayJob"]["properties"]["spec"]["properties"]["submitterPodTemplate"]
        schema = {
            **strict({"type": "object", "required": list(properties), "properties": properties}),
            "$defs": {"pod": pod},
        }
    return [
        f"{error.json_path}: {error.message[:200]}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(found)
    ]


def cluster_of(found: dict[str, Any]) -> dict[str, Any]:
    spec = found["spec"].get("jobTemplate", found["spec"])
    cluster = spec.get("rayClusterSpec", spec)
    assert isinstance(cluster, dict)
    return cluster


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def pods() -> dict[str, dict[str, Any]]:
    """The spec of every pod, by where it is."""
    found = {}
    for name in MANIFESTS:
        content = manifest(name)
        if content["kind"] in CUSTOM:
            found |= {
                f"{name} {group}": spec["template"]["spec"] for group, spec in groups(cluster_of(content)).items()
            }
        elif content["kind"] == "CronJob":
            found[name] = content["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_is_valid_by_the_schema_of_its_kind(name, definitions):
    assert problems(manifest(name), definitions) == []


def test_the_check_of_manifests_refuses_what_kubernetes_would_drop(definitions):
    for path, wrong in [
        (("spec", "backoffLimits"), 3),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "serviceAccuont"), "x"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "limit"), {}),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), "8"),
        (
            (
                "spec",
                "rayClusterSpec",
                "workerGroupSpecs",
                0,
                "template",
                "spec",
                "containers",
                0,
                "resources",
                "limits",
                "cpu",
            ),
            "two",
        ),
    ]:
        job = manifest("rayjob.yaml")
        place: Any = job
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = wrong
        assert len(problems(job, definitions)) >= 1, path
    cron = manifest("cronjob.yaml")
    cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["comand"] = []
    assert problems(cron, definitions)


def test_manifests_name_each_other_as_they_are_called():
    account, config_map = manifest("serviceaccount.yaml"), manifest("configmap.yaml")
    readme = (DEPLOY / "README.md").read_text()
    cluster, cron = manifest("raycluster.yaml"), manifest("cronjob.yaml")
    secrets = set()
    for where, pod in pods().items():
        if where != "cronjob.yaml":  # it only submits
            assert pod["serviceAccountName"] == account["metadata"]["name"], where
        names = {volume["configMap"]["name"] for volume in pod.get("volumes", [])}
        assert names <= {config_map["metadata"]["name"]}, where
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == {
                volume["name"] for volume in pod.get("volumes", [])
            }
            secrets |= {source["secretRef"]["name"] for source in container.get("envFrom", [])}
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    assert variable["valueFrom"]["secretKeyRef"] == {
                        "name": cluster["metadata"]["name"],
                        "key": "auth_token",
                    }
    assert secrets == {"scalselect-storage"}
    assert "kubectl create secret generic scalselect-storage" in readme
    command = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert f"http://{cluster['metadata']['name']}-head-svc:8265" in command["command"]
    assert command["command"][-1] == "--"
    entrypoint = manifest("rayjob.yaml")["spec"]["entrypoint"]
    assert entrypoint == " ".join(command["args"]) == manifest("raycronjob.yaml")["spec"]["jobTemplate"]["entrypoint"]
    mount = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]["mountPath"]
    assert entrypoint.split()[-1] == f"{mount}/{next(iter(config_map['data']))}"


def test_no_secret_is_in_the_manifests_and_no_pod_is_root():
    assert not [name for name in MANIFESTS if manifest(name)["kind"] == "Secret"]
    user = int(re.search(r"^USER (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.M).group(1))
    for where, pod in pods().items():
        assert pod["securityContext"]["runAsNonRoot"] is True, where
        assert pod["securityContext"]["runAsUser"] == user != 0, where


def test_the_job_the_scheduled_job_and_the_standing_cluster_are_one_cluster():
    clusters = [cluster_of(manifest(name)) for name in ("rayjob.yaml", "raycronjob.yaml", "raycluster.yaml")]
    assert clusters[0] == clusters[1]
    prepare = groups(clusters[2])["prepare"]
    assert (prepare["replicas"], prepare["minReplicas"]) == (0, 0)
    prepare |= {"replicas": 1, "minReplicas": 1}
    assert clusters[0] == clusters[2]
    jobs = [manifest("rayjob.yaml")["spec"], manifest("raycronjob.yaml")["spec"]["jobTemplate"]]
    for job in jobs:
        assert job["shutdownAfterJobFinishes"]
        assert job["activeDeadlineSeconds"] > 0
    assert jobs[1]["activeDeadlineSeconds"] < 7 * 24 * 3600, "it must be over before the next one starts"
    assert manifest("raycronjob.yaml")["spec"]["schedule"] == manifest("cronjob.yaml")["spec"]["schedule"]


def test_gpus_come_when_they_are_asked_for_and_the_config_asks_for_no_more_than_may_come():
    config = parse_config(manifest("configmap.yaml")["data"]["config.yaml"])
    for name in ("rayjob.yaml", "raycluster.yaml"):
        cluster = cluster_of(manifest(name))
        assert cluster["enableInTreeAutoscaling"]
        head, extract = groups(cluster)["head"], groups(cluster)["extract"]
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert extract["minReplicas"] == extract["replicas"] == 0
        resources = extract["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus = int(resources["nvidia.com/gpu"])
        assert 0 < config.workers.gpus_per_extractor <= gpus
        assert config.workers.cpus_per_extractor <= int(resources["cpu"])
        assert config.workers.max_extractors * config.workers.gpus_per_extractor <= extract["maxReplicas"] * gpus
        wanted = config.workers.extractor_labels.items()
        assert wanted <= extract["labels"].items()
    launcher = yaml.safe_load((DEPLOY / "cluster-aws.yaml").read_text())["available_node_types"]["extract"]
    assert config.workers.max_extractors <= launcher["max_workers"] * launcher["resources"]["GPU"]


def test_every_manifest_runs_the_ray_and_the_image_that_are_built():
    locked = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)
    assert {cluster_of(manifest(name))["rayVersion"] for name in MANIFESTS if manifest(name)["kind"] in CUSTOM} == {
        locked
    }
    assert {container["image"] for pod in pods().values() for container in pod["containers"]} == {
        "scalselect-ray:latest"
    }


def test_the_config_map_holds_the_scheduled_config():
    assert manifest("configmap.yaml")["data"] == {"config.yaml": (ROOT / "conf" / "scheduled.yaml").read_text()}


def test_the_cluster_launcher_takes_its_file():
    launcher = yaml.safe_load((DEPLOY / "cluster-aws.yaml").read_text())
    jsonschema.validate(launcher, json.loads((RAY / "autoscaler" / "ray-schema.json").read_text()))
    validate_config(prepare_config(copy.deepcopy(launcher)))  # as `ray up` does first
    types = launcher["available_node_types"]
    assert types[launcher["head_node_type"]]["resources"] == {"CPU": 0}
    assert types["extract"]["min_workers"] == 0
    assert types["extract"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert launcher["max_workers"] >= sum(kind.get("max_workers", 0) for kind in types.values())


def test_the_image_is_built_of_what_is_there_by_the_lock_file():
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    there: set[str] = set()
    installs = []
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), line
                assert f"!{source}" in ignore, f"{source} does not reach the build"
                there.add(source)
            assert target.startswith("/src/")
        for command in re.findall(r"pip install [^&|;]*", rest if word == "RUN" else ""):
            installs.append(command)
            assert "-c /src/constraints.txt" in command, "only locked versions"
            assert "constraints.txt" in there, "copied before it is used"
            assert "dev" not in command
    assert installs[-1].split()[-1] == "/src"
    assert there >= {"pyproject.toml", "scalselect_ray"}
    system = " ".join(line for line in lines if "apt-get install" in line).split()
    assert {"bash", "wget"} <= set(system), "KubeRay starts Ray with bash and probes it with wget"
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users
    assert users[-1] not in ("0", "root")


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    assert dashboard["uid"] == "scalselect"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_the_dashboard_asks_for_metrics_that_exist():
    ours = metrics.names()
    agent = (RAY / "dashboard" / "modules" / "reporter" / "reporter_agent.py").read_text()
    rays = {f"ray_{name}" for name in re.findall(r'"(\w+)": Gauge\(', agent)}
    for panels in (RAY / "dashboard" / "modules" / "metrics" / "dashboards").glob(
        "*_panels.py"
    ):  # what Ray's own dashboards ask for
        rays |= set(re.findall(r"\bray_\w+", panels.read_text()))
    asked: set[str] = set()
    for expression in expressions():
        bare = re.sub(r'"[^"]*"', '""', expression)
        assert all(bare.count(opening) == bare.count(closing) for opening, closing in ("()", "[]", "{}")), expression
        selected = re.findall(r"([A-Za-z_]\w*)\{", bare)
        assert selected, expression
        assert bare.count('SessionName=~""') == len(selected), f"{expression}: of the chosen session alone"
        unknown = set(selected) - ours - rays
        assert not unknown, f"{expression}: {unknown}"
        for tags in re.findall(r"by \(([^)]*)\)", bare):
            if set(selected) <= ours:
                assert {tag.strip() for tag in tags.split(",")} <= {"source", "reason", "step", "stage", "le"}, (
                    expression
                )
        asked |= set(selected)
    shown = {re.sub("_(count|sum)$", "_bucket", name) for name in ours}
    assert shown <= asked, f"nothing shows {shown - asked}"
