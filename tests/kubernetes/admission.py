"""What an API server lets in, and what it makes of it: schemas, defaults, pruning, and the rules of Jobs and Pods.

Core kinds are held against the strict schemas of Kubernetes 1.33 (kubernetes-validate): stricter than a real server,
which drops unknown fields of a plain create. Custom kinds are held against their structural schema and pruned.
Not done here: CEL rules (x-kubernetes-validations), quantities, most rules of the core kinds we do not make.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
from kubernetes_validate.utils import schema_contents
from referencing import Registry
from referencing import Resource as Document

from tests.kubernetes.failures import Failure, Object, Resource, bad_request, invalid

VERSION = "1.33"
_SCHEMAS = "kubernetes-json-schema/v1.33.0-local-strict"
Mistakes = list[tuple[str, str]]


def admit(resource: Resource, old: Object | None, new: Object, subresource: str) -> Object:
    """The object as it is stored; Failure when it cannot be."""
    mistakes = [*(_check_name(resource, new) if old is None else ()), *_check_metadata(new["metadata"])]
    if resource.schema is not None:
        return _admit_custom(resource, new, mistakes)
    new = _tidy(new)
    if subresource == "status":
        return new
    if resource.kind == "CustomResourceDefinition" and old is None:
        _hold_to_schema(resource, new)
        return _published(new)
    new = _defaulted(resource, old, new)
    if old is None or {**new, "metadata": 0, "status": 0} != {**old, "metadata": 0, "status": 0}:
        _hold_to_schema(resource, new)
        mistakes += _CHECKS[resource.kind](old, new) if resource.kind in _CHECKS else []
    if mistakes:
        raise invalid(resource, new["metadata"]["name"], mistakes)
    return new


_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_WORD = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_KEY = re.compile(rf"([a-z0-9.-]{{1,253}}/)?(?=.{{1,63}}$){_WORD}")
_LABEL = re.compile(rf"(?=.{{0,63}}$)({_WORD})?")


def _check_name(resource: Resource, obj: Object) -> Iterator[tuple[str, str]]:
    name = obj["metadata"]["name"]
    if len(name) > 253:
        yield "metadata.name", f'Invalid value: "{name}": must be no more than 253 characters'
    elif not _NAME.fullmatch(name) and resource.group != "rbac.authorization.k8s.io":
        yield "metadata.name", f'Invalid value: "{name}": {_NAME_RULE}'


def _check_metadata(meta: Object) -> Iterator[tuple[str, str]]:
    for key, value in (meta.get("labels") or {}).items():
        if not _KEY.fullmatch(key):
            yield "metadata.labels", f'Invalid value: "{key}": name part must consist of alphanumeric characters'
        if not _LABEL.fullmatch(value):
            text = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'"
            yield "metadata.labels", f'Invalid value: "{value}": {text}'
    for key in meta.get("annotations") or {}:
        if not _KEY.fullmatch(key.lower()):
            yield "metadata.annotations", f'Invalid value: "{key}": name part must consist of alphanumeric characters'
    for finalizer in meta.get("finalizers") or []:
        if not _KEY.fullmatch(finalizer):
            yield (
                "metadata.finalizers",
                f'Invalid value: "{finalizer}": name part must consist of alphanumeric characters',
            )


def _tidy(obj: Object) -> Object:
    """Without what Go leaves out of core kinds: nulls, and maps and lists of metadata and data that are empty."""
    tidy: Object = _without_nulls(obj)
    tidy["metadata"] = {key: value for key, value in tidy["metadata"].items() if value not in ({}, [])}
    for key in ("data", "binaryData"):
        if tidy.get(key) == {}:
            del tidy[key]
    return tidy


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


# Core kinds


@functools.cache
def _definitions() -> Any:
    return Document.from_contents(schema_contents(f"{_SCHEMAS}/_definitions.json", VERSION))


@functools.cache
def _validator(kind: str, api_version: str) -> jsonschema.Draft202012Validator | None:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    try:
        schema = schema_contents(f"{_SCHEMAS}/{kind.lower()}-{group}.json", VERSION)
    except FileNotFoundError:
        return None
    registry = _definitions() @ (Document.from_contents(schema) @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


def _hold_to_schema(resource: Resource, obj: Object) -> None:
    validator = _validator(resource.kind, resource.api_version)
    error = validator and jsonschema.exceptions.best_match(validator.iter_errors(obj))
    if not error:
        return
    where = _path(error.absolute_path)
    if error.validator == "additionalProperties":
        unknown = re.findall(r"'([^']+)' (?:was|were)|'([^']+)',", error.message)
        name = next((one or two for one, two in unknown), "?")
        raise bad_request(f'strict decoding error: unknown field "{f"{where}.{name}" if where else name}"')
    if error.validator == "required":
        missing = error.message.split("'")[1]
        raise invalid(resource, obj["metadata"]["name"], [(f"{where}.{missing}".lstrip("."), "Required value")])
    kind = f"{resource.kind} in version {json.dumps(resource.api_version)}"
    raise bad_request(f"{kind} cannot be handled as a {resource.kind}: {where}: {error.message[:300]}")


def _path(parts: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _defaulted(resource: Resource, old: Object | None, new: Object) -> Object:
    """With what the server fills in, as far as our controllers and tests read it."""
    match resource.kind:
        case "Pod":
            _default_pod(new["spec"])
            if old is None:
                new["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
        case "Job":
            if "spec" in new:
                _default_job(new)
            if old is None:
                new["status"] = {}
        case "Namespace" if old is None:
            new.setdefault("metadata", {}).setdefault("labels", {})["kubernetes.io/metadata.name"] = new["metadata"][
                "name"
            ]
            new.setdefault("spec", {})["finalizers"] = ["kubernetes"]
            new["status"] = {"phase": "Active"}
        case "Service":
            new.setdefault("spec", {}).setdefault("type", "ClusterIP")
            for port in new["spec"].get("ports", []):
                port.setdefault("protocol", "TCP")
        case "Secret":
            new.setdefault("type", "Opaque")
            _encode(new)
    return new


def _encode(secret: Object) -> None:
    import base64

    for key, value in (secret.pop("stringData", None) or {}).items():
        secret.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()


def _default_pod(spec: Object) -> None:
    for key, value in (
        ("restartPolicy", "Always"),
        ("terminationGracePeriodSeconds", 30),
        ("dnsPolicy", "ClusterFirst"),
    ):
        spec.setdefault(key, value)
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    for container in [*spec.get("containers", []), *spec.get("initContainers", [])]:
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        container.setdefault("resources", {})
        for port in container.get("ports", []):
            port.setdefault("protocol", "TCP")
        for resource, amount in (container["resources"].get("limits") or {}).items():
            container["resources"].setdefault("requests", {}).setdefault(resource, amount)


def _default_job(job: Object) -> None:
    spec, name, uid = job["spec"], job["metadata"]["name"], job["metadata"]["uid"]
    if "template" not in spec:
        return
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("backoffLimit", 6 if spec.get("backoffLimitPerIndex") is None else 2147483647)
    spec.setdefault("suspend", False)
    policy = "Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed"
    spec.setdefault("podReplacementPolicy", policy)
    _default_pod(spec["template"].setdefault("spec", {}))
    if not spec.get("manualSelector"):
        labels = spec["template"].setdefault("metadata", {}).setdefault("labels", {})
        labels |= {"batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": name}
        labels |= {"controller-uid": uid, "job-name": name}
        spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    for condition in [
        each
        for rule in (spec.get("podFailurePolicy") or {}).get("rules", [])
        for each in rule.get("onPodConditions", [])
    ]:
        condition.setdefault("status", "True")


# Rules


def _supported(value: Any, allowed: tuple[str, ...]) -> str:
    return f"Unsupported value: {json.dumps(value)}: supported values: {', '.join(map(json.dumps, allowed))}"


def _check_pod(spec: Object, where: str) -> Iterator[tuple[str, str]]:
    if not spec.get("containers"):
        yield f"{where}.containers", "Required value"
    names: set[str] = set()
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for i, container in enumerate(spec.get("containers", [])):
        at = f"{where}.containers[{i}]"
        if container["name"] in names:
            yield f"{at}.name", f'Duplicate value: "{container["name"]}"'
        names.add(container["name"])
        if not container.get("image"):
            yield f"{at}.image", "Required value"
        for j, mount in enumerate(container.get("volumeMounts", [])):
            if mount["name"] not in volumes:
                yield f"{at}.volumeMounts[{j}].name", f'Not found: "{mount["name"]}"'
    if spec["restartPolicy"] not in ("Always", "OnFailure", "Never"):
        yield f"{where}.restartPolicy", _supported(spec["restartPolicy"], ("Always", "OnFailure", "Never"))


def _check_job(old: Object | None, new: Object) -> Mistakes:
    return list(_job_changes(old["spec"], new["spec"]) if old else _job_rules(new))


def _job_rules(job: Object) -> Iterator[tuple[str, str]]:
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    indexed = spec["completionMode"] == "Indexed"
    if spec["completionMode"] not in ("Indexed", "NonIndexed"):
        yield "spec.completionMode", _supported(spec["completionMode"], ("Indexed", "NonIndexed"))
    for key in ("parallelism", "completions", "backoffLimit", "backoffLimitPerIndex", "activeDeadlineSeconds"):
        if (spec.get(key) or 0) < 0:
            yield f"spec.{key}", f"Invalid value: {spec[key]}: must be greater than or equal to 0"
    if indexed and spec.get("completions") is None:
        yield "spec.completions", "Required value: when completion mode is Indexed"
    if indexed and len(f"{name}-{(spec.get('completions') or 1) - 1}") > 63:
        host = f"{name}-{spec['completions'] - 1}"
        yield "metadata.name", f'Invalid value: "{name}": will not able to create pod with invalid DNS label: {host}'
    if len(name) > 63:
        yield "spec.template.labels", f'Invalid value: "{name}": must be no more than 63 characters'
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        yield "spec.backoffLimitPerIndex", "Required value: when maxFailedIndexes is specified"
    if spec.get("backoffLimitPerIndex") is not None and not indexed:
        value = spec["backoffLimitPerIndex"]
        yield "spec.backoffLimitPerIndex", f"Invalid value: {value}: requires indexed completion mode"
    yield from _failure_policy(spec)
    if pod["restartPolicy"] == "Always":
        yield "spec.template.spec.restartPolicy", 'Required value: valid values: "OnFailure", "Never"'
    elif pod["restartPolicy"] not in ("OnFailure", "Never"):
        yield "spec.template.spec.restartPolicy", _supported(pod["restartPolicy"], ("OnFailure", "Never"))
    elif spec.get("podFailurePolicy") and pod["restartPolicy"] != "Never":
        text = 'Invalid value: "OnFailure": only "Never" is supported when podFailurePolicy is specified'
        yield "spec.template.spec.restartPolicy", text
    yield from _check_pod(pod, "spec.template.spec")


def _failure_policy(spec: Object) -> Iterator[tuple[str, str]]:
    actions = ("Count", "FailIndex", "FailJob", "Ignore")
    containers = {each["name"] for each in spec["template"]["spec"].get("containers", [])}
    for i, rule in enumerate((spec.get("podFailurePolicy") or {}).get("rules", [])):
        at = f"spec.podFailurePolicy.rules[{i}]"
        if rule["action"] not in actions:
            yield f"{at}.action", _supported(rule["action"], actions)
        if rule["action"] == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
            yield f"{at}.action", 'Invalid value: "FailIndex": requires the backoffLimitPerIndex to be set'
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if bool(codes) == bool(conditions):
            how = "both" if codes else "one of"
            rest = "is not supported" if codes else "is required"
            yield at, f"Invalid value: specifying {how} OnExitCodes and OnPodConditions {rest}"
        if codes and codes.get("operator") not in ("In", "NotIn"):
            yield f"{at}.onExitCodes.operator", _supported(codes.get("operator"), ("In", "NotIn"))
        if codes and codes.get("containerName") and codes["containerName"] not in containers:
            text = "must be one of the container or initContainer names in the pod template"
            yield f"{at}.onExitCodes.containerName", f'Invalid value: "{codes["containerName"]}": {text}'
    if spec.get("podFailurePolicy") and spec["podReplacementPolicy"] != "Failed":
        yield "spec.podReplacementPolicy", _supported(spec["podReplacementPolicy"], ("Failed",))


def _job_changes(old: Object, new: Object) -> Iterator[tuple[str, str]]:
    """Only how many at once, whether at all, and when to end it may be changed later."""
    elastic = new.get("completionMode") == "Indexed" and new.get("completions") == new.get("parallelism")
    for key in ("completions", "completionMode", "selector", "template", "backoffLimitPerIndex", "podFailurePolicy"):
        if old.get(key) != new.get(key) and not (key == "completions" and elastic):
            yield f"spec.{key}", f"Invalid value: {json.dumps(new.get(key))}: field is immutable"


def _check_plain_pod(old: Object | None, new: Object) -> Mistakes:
    if old is None:
        return list(_check_pod(new["spec"], "spec"))
    changeable = ("containers", "initContainers", "activeDeadlineSeconds", "tolerations", "nodeName")
    if {**old["spec"], **dict.fromkeys(changeable)} != {**new["spec"], **dict.fromkeys(changeable)}:
        return [("spec", "Forbidden: pod updates may not change fields other than `spec.containers[*].image`")]
    return []


def _check_config_map(old: Object | None, new: Object) -> Mistakes:
    text = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
    mistakes = [
        (f"data[{key}]", f'Invalid value: "{key}": {text}')
        for key in new.get("data") or {}
        if not re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key)
    ]
    if old and old.get("immutable"):
        kept = {"immutable": bool(new.get("immutable")), "data": (old.get("data") or {}) == (new.get("data") or {})}
        fixed = "Forbidden: field is immutable when `immutable` is set"
        mistakes += [(key, fixed) for key, is_kept in kept.items() if not is_kept]
    return mistakes


_CHECKS = {
    "ConfigMap": _check_config_map,
    "Job": _check_job,
    "Pod": _check_plain_pod,
    "Secret": _check_config_map,
}


# Custom kinds


def _published(crd: Object) -> Object:
    """A new CRD: at once established."""
    for name in ("NamesAccepted", "Established"):
        condition = {"type": name, "status": "True", "reason": name, "message": ""}
        crd.setdefault("status", {}).setdefault("conditions", []).append(condition)
    names = dict(crd["spec"]["names"])
    names.setdefault("listKind", names["kind"] + "List")
    names.setdefault("singular", names["kind"].lower())
    crd["spec"]["names"] = names
    crd["status"] |= {"acceptedNames": names, "storedVersions": [_stored(crd)["name"]]}
    return crd


def _stored(crd: Object) -> Object:
    return next(each for each in crd["spec"]["versions"] if each.get("storage"))


def custom_resources(crd: Object) -> list[Resource]:
    """What a CRD serves. Versions are not converted: the stored one is what is kept."""
    names, group = crd["spec"]["names"], crd["spec"]["group"]
    version = _stored(crd)
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or {"x-kubernetes-preserve-unknown-fields": True}
    return [
        Resource(
            group,
            version["name"],
            names["kind"],
            names["plural"],
            namespaced=crd["spec"]["scope"] == "Namespaced",
            status="status" in (version.get("subresources") or {}),
            short_names=tuple(names.get("shortNames", ())),
            schema=schema,
            categories=tuple(names.get("categories", ())),
        )
    ]


@functools.lru_cache(64)
def _custom_validator(schema: str) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(_as_json_schema(json.loads(schema)))


def _as_json_schema(schema: Any) -> Any:
    """OpenAPI's dialect in JSON Schema's words: nullable, int-or-string; keywords only a server knows are left out."""
    if isinstance(schema, list):
        return [_as_json_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: _as_json_schema(each) for name, each in value.items()}
        elif not key.startswith("x-kubernetes-") and key not in ("nullable", "default", "format", "description"):
            made[key] = _as_json_schema(value)
    for limit, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if made.pop(exclusive, False) is True:  # OpenAPI 3.0's is a flag, JSON Schema's the number itself
            made[exclusive] = made.pop(limit)
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
        if "enum" in made:
            made["enum"] = [*made["enum"], None]
    return made


def _admit_custom(resource: Resource, obj: Object, mistakes: Mistakes) -> Object:
    schema = dict(resource.schema or {})
    schema["properties"] = {
        **schema.get("properties", {}),
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    }
    new: Object = _fitted(copy.deepcopy(obj), schema)
    new["metadata"] = {key: value for key, value in new["metadata"].items() if value not in ({}, [], None)}
    for error in _custom_validator(json.dumps(schema, sort_keys=True)).iter_errors(new):
        mistakes.append(_mistake(error))
    if mistakes:
        raise invalid(resource, new["metadata"]["name"], mistakes)
    return new


def _fitted(value: Any, schema: Object) -> Any:
    """Pruned to what the schema knows, and with its defaults."""
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_fitted(each, schema["items"]) for each in value]
    if not isinstance(value, dict):
        return value
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    fitted = {}
    for key, each in value.items():
        if each is None and key in properties and not properties[key].get("nullable"):
            continue  # a null that may not be is as good as nothing
        if key in properties:
            fitted[key] = _fitted(each, properties[key])
        elif isinstance(others, dict):
            fitted[key] = _fitted(each, others)
        elif others is True or schema.get("x-kubernetes-preserve-unknown-fields"):
            fitted[key] = each
    if schema.get("x-kubernetes-embedded-resource"):
        fitted |= {key: value[key] for key in ("apiVersion", "kind", "metadata") if key in value}
    for key, each in properties.items():
        if key not in fitted and "default" in each:
            fitted[key] = _fitted(copy.deepcopy(each["default"]), each)
    return fitted


def unknown_fields(resource: Resource, obj: Object) -> list[str]:
    """Where an object of a custom kind has fields that its schema does not know."""
    schema = dict(resource.schema or {})
    keep = {"x-kubernetes-preserve-unknown-fields": True}
    schema["properties"] = {**schema.get("properties", {}), "metadata": keep, "apiVersion": {}, "kind": {}}
    return list(_dropped(obj, _fitted(copy.deepcopy(obj), schema), ""))


def _dropped(before: Any, after: Any, where: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before:
            at = f"{where}.{key}".lstrip(".")
            if key in after:
                yield from _dropped(before[key], after[key], at)
            elif before[key] is not None:
                yield at
    elif isinstance(before, list) and isinstance(after, list):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _dropped(one, other, f"{where}[{i}]")


def _mistake(error: jsonschema.ValidationError) -> tuple[str, str]:
    """In the words of the server's own validation."""
    where, value = _path(error.absolute_path) or "<nil>", json.dumps(error.instance)
    wanted: Any = error.validator_value
    match error.validator:
        case "required":
            missing = error.message.split("'")[1]
            return (f"{where}.{missing}" if where != "<nil>" else missing), "Required value"
        case "enum":
            return where, _supported(error.instance, tuple(wanted))
        case "type":
            kinds = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
            was = kinds.get(type(error.instance), "null")
            wanted = wanted if isinstance(wanted, str) else wanted[0]
            return where, f'Invalid value: "{was}": {where} in body must be of type {wanted}: "{was}"'
        case "pattern":
            return where, f"Invalid value: {value}: {where} in body should match '{wanted}'"
        case "minimum":
            text = f"{where} in body should be greater than or equal to {wanted}"
            return where, f"Invalid value: {value}: {text}"
        case "maximum":
            return (
                where,
                f"Invalid value: {value}: {where} in body should be less than or equal to {wanted}",
            )
        case "maxLength" | "maxItems":
            return where, f"Too long: may not be longer than {wanted}"
        case _:
            return where, f"Invalid value: {value[:200]}: {where} in body: {error.message[:200]}"


__all__ = ["Failure", "admit", "custom_resources", "unknown_fields"]
