"""What deploy/ holds is valid by the schemas of those who read it."""

from pathlib import Path

import jsonschema
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"


def test_rayjob_is_valid_by_kuberays_schema(shared):
    definition = yaml.safe_load((shared / "crds" / "ray.io_rayjobs.yaml").read_text())
    job = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    schema = next(item for item in definition["spec"]["versions"] if job["apiVersion"].endswith(f"/{item['name']}"))["schema"][
        "openAPIV3Schema"
    ]
    jsonschema.validate(job, schema)
    assert set(job["spec"]) <= set(schema["properties"]["spec"]["properties"]), "an unknown key is dropped in silence"
    assert set(job["spec"]["rayClusterSpec"]) <= set(schema["properties"]["spec"]["properties"]["rayClusterSpec"]["properties"])


def test_image_copies_what_is_there():
    root = DEPLOY.parent
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            assert all((root / name).exists() for name in line.split()[1:-1]), line
