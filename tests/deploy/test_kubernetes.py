"""The manifests are what Kubernetes and Kubeflow Trainer read, and they agree with the image and the scripts."""

import signal
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from kubernetes_validate.utils import all_versions

from modeling_pure.errors import EXIT_CODES, InputError, RunStopped
from tests.deploy.conftest import DEPLOY, ROOT, accepted, documents

FOLDER = DEPLOY / "kubernetes"
(JOB,) = documents(FOLDER / "train.yaml")
(TRAIN_JOB,) = documents(FOLDER / "trainjob.yaml")
PLAIN = [document for path in sorted(FOLDER.glob("*.yaml")) for document in documents(path) if document != TRAIN_JOB]
DEPLOYMENT, SERVICE = documents(FOLDER / "tensorboard.yaml")
PATCH = TRAIN_JOB["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
# Pods as (specification, container): the node of a TrainJob has its container from two places.
TRAIN_POD = PATCH["template"]["spec"]["template"]["spec"]
PODS = {
    "job": (JOB["spec"]["template"]["spec"], JOB["spec"]["template"]["spec"]["containers"][0]),
    "tensorboard": (DEPLOYMENT["spec"]["template"]["spec"], DEPLOYMENT["spec"]["template"]["spec"]["containers"][0]),
    "trainjob": (TRAIN_POD, TRAIN_JOB["spec"]["trainer"] | TRAIN_POD["containers"][0]),
}


def phase(changes: dict[str, str]) -> dict:
    """The Job of another phase, as the sed commands of the manifest make it."""
    text = (FOLDER / "train.yaml").read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    return yaml.safe_load(text)


*OLDER, NEWEST = dict.fromkeys(one for one in all_versions() if one.split(".")[1] >= "31")
PHASES = [JOB, phase({"pretrain": "grpo"}), phase({"train_pretrain": "eval_medqa", "pretrain": "eval"})]


@pytest.mark.parametrize("version", [*(pytest.param(one, marks=pytest.mark.slow) for one in OLDER), NEWEST])
@pytest.mark.parametrize("document", [*PLAIN, *PHASES[1:]], ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_knows_every_key(document, version):
    kubernetes_validate.validate(document, version, strict=True)


def test_kubernetes_would_not_take_another_key():
    wrong = JOB | {"spec": JOB["spec"] | {"podFailurePolicie": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.32", strict=True)


def test_kubeflow_trainer_reads_the_train_job_and_loses_nothing():
    assert TRAIN_JOB["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert TRAIN_JOB["kind"] == "TrainJob"
    assert TrainerV1alpha1TrainJob.from_dict(TRAIN_JOB).to_dict() == TRAIN_JOB  # it would drop a key it knows not
    # The pod's part as a pod: the classes above are not strict about what they nest.
    container = {**PODS["trainjob"][1], "resources": TRAIN_JOB["spec"]["trainer"]["resourcesPerNode"]}
    container = {key: value for key, value in container.items() if key not in ("numNodes", "numProcPerNode")}
    del container["resourcesPerNode"]
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": {**TRAIN_POD, "containers": [container]}}
    kubernetes_validate.validate(pod, "1.32", strict=True)


@pytest.mark.parametrize("job", PHASES, ids=lambda job: job["metadata"]["name"])
def test_the_phases_run_what_is_there(job, monkeypatch):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    python, *command = container["args"]
    assert python == "python"
    assert accepted(command, monkeypatch)
    assert job["metadata"]["name"] == f"pure-{Path(command[-1]).stem}"


def test_the_train_job_starts_all_ranks_with_one_recipe(monkeypatch):
    trainer = TRAIN_JOB["spec"]["trainer"]
    assert accepted(trainer["args"], monkeypatch)
    assert (ROOT / trainer["command"][-1]).is_file()
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]


def test_the_job_tells_exit_codes_apart():
    policy = JOB["spec"]["podFailurePolicy"]["rules"]
    by_code = {code: rule["action"] for rule in policy for code in rule.get("onExitCodes", {}).get("values", ())}
    for_good = {EXIT_CODES[kind]: "FailJob" for kind in (InputError, RunStopped)}  # a lost rank is worth another try
    assert by_code == for_good | {128 + signal.SIGTERM: "Ignore"}
    names = {rule["onExitCodes"]["containerName"] for rule in policy if "onExitCodes" in rule}
    assert names == {JOB["spec"]["template"]["spec"]["containers"][0]["name"]}
    assert JOB["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # else the policy is refused


@pytest.mark.parametrize("pod", ["job", "trainjob"])
def test_there_is_time_to_save_and_room_for_the_workers(pod):
    spec, container = PODS[pod]
    (seconds,) = (int(one["value"]) for one in container["env"] if one["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    assert spec["terminationGracePeriodSeconds"] > seconds > 60
    shared = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}["/dev/shm"]
    assert {one["name"]: one for one in spec["volumes"]}[shared]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("pod", PODS)
def test_pods_agree_with_the_image_and_the_storage(pod):
    spec, container = PODS[pod]
    volumes = {one["name"]: one for one in spec["volumes"]}
    mounted = {one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]}
    (claim,) = documents(FOLDER / "storage.yaml")
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert mounted["/pure/runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert "WORKDIR /pure\n" in dockerfile
    assert "HF_HOME=/pure/runs/" in dockerfile
    assert f"--uid {spec['securityContext']['runAsUser']} " in dockerfile
    assert container["image"] == PODS["job"][1]["image"]


def test_no_manifest_holds_a_secret():
    assert not [document for document in PLAIN if document["kind"] == "Secret"]
    for pod in ("job", "trainjob"):
        (token,) = (one for one in PODS[pod][1]["env"] if one["name"] == "HF_TOKEN")
        assert "value" not in token
        assert token["valueFrom"]["secretKeyRef"]["optional"]


def test_tensorboard_is_found_by_its_service():
    pod = DEPLOYMENT["spec"]["template"]
    assert SERVICE["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (port,) = pod["spec"]["containers"][0]["ports"]
    assert SERVICE["spec"]["ports"][0]["targetPort"] == port["name"]
    assert str(port["containerPort"]) in pod["spec"]["containers"][0]["args"]
    assert "type" not in SERVICE["spec"]  # within the cluster alone: TensorBoard knows no passwords
