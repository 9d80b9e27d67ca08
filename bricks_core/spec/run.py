"""The run file: one YAML that says the whole path, on a laptop as on a cluster."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from bricks_core.errors import SpecError, nearest
from bricks_core.spec.caption import CaptionSpec
from bricks_core.spec.clip import ClipSpec
from bricks_core.spec.cluster import ClusterSettings
from bricks_core.spec.earlier import gone
from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.spec.gates import Gate
from bricks_core.spec.ingest import IngestSpec
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.score import ScoreSpec
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import HOLDS_SECRET, How, Strict, What
from bricks_core.spec.train import WAN_TOKENS, TrainSpec, WanSpec


class Metadata(Strict):
    """Kubernetes' object metadata, as far as a run uses it."""

    name: How[str] = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=30)
    """Names the run. Lower-case letters, digits and dashes, at most 30, as Kubernetes wants it."""
    labels: How[dict[str, str]] = {}
    annotations: How[dict[str, str]] = {}


class TrackingSpec(Strict):
    """Where the numbers also go. Changes nothing that is computed."""

    wandb: How[Literal["auto", "offline", "off"]] = "auto"
    """auto: to W&B when logged in, else to files that `wandb sync` sends later."""
    wandb_project: How[str] = "bricks"

    @field_validator("wandb", mode="before")
    @classmethod
    def _off_is_a_word(cls, given: Any) -> Any:
        """For YAML 1.1, `off` and `no` are false, `on` and `yes` true."""
        if given is True:
            raise ValueError("on, yes and true do not say where to: write auto or offline.")
        return "off" if given is False else given


def address_to_notify(address: str) -> str:
    """The address, if it is one.

    Raises:
        ValueError: it is none. What was given is a secret and not repeated.
    """
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) and address.isascii()
    except ValueError:
        good = False
    if not good or any(each.isspace() for each in address):
        raise ValueError("this is no address to notify: write https://host/path.")
    return address


class RunSpec(Strict):
    """The stages' settings. Whatever is not written has its default."""

    ingest: What[IngestSpec]
    clip: What[ClipSpec] = ClipSpec()
    score: What[ScoreSpec] = ScoreSpec()
    caption: What[CaptionSpec] = CaptionSpec()
    latents: What[LatentsSpec] = LatentsSpec()
    train: What[TrainSpec | None] = None
    evaluate: What[EvaluateSpec | None] = None
    gates: How[list[Gate]] = []
    """What the evaluation must reach. Judged when its report is read, by `bricks ci report`: nothing runs for it."""
    inputs_of: How[str] = Field("", pattern=r"^$|^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=30)
    """Another run of the same store, whose answers to what this one asks too are taken for this one's: an evaluation of
    what that one trained needs no look at the films."""
    tracking: How[TrackingSpec] = TrackingSpec()
    notify: How[SecretStr | None] = Field(None, exclude=True)
    """An address that `bricks run` posts to when the run ends, fails, meets a cap or is evaluated. It is a secret and
    copied nowhere; BRICKS_NOTIFY_URL in the environment keeps it out of this file, too."""
    cluster: How[ClusterSettings] = ClusterSettings()
    suspend: How[bool] = False
    """On a cluster: start nothing more, and stop what runs at its last finished item. false goes on from there."""
    cancel: How[bool] = False
    """On a cluster: end the run for good. What is finished is kept, and another run that asks the same finds it."""

    @field_validator("notify", mode="before")
    @classmethod
    def _is_an_address(cls, given: Any) -> Any:
        try:
            return address_to_notify(given) if isinstance(given, str) else given
        except ValueError as error:
            raise PydanticCustomError(HOLDS_SECRET, "{why}", {"why": str(error)}) from None

    @model_validator(mode="after")
    def _encoded(self) -> Self:
        """What is trained on and sampled at has to be encoded first."""
        wanted = [
            (f"train.phases.{i}.buckets.{j}.resolution", bucket.resolution)
            for i, phase in enumerate(self.train.phases if self.train else [])
            for j, bucket in enumerate(phase.buckets)
        ]
        if self.evaluate:
            wanted.append(("evaluate.resolution", self.evaluate.resolution))
        for place, resolution in wanted:
            if resolution not in self.latents.resolutions:
                raise ValueError(
                    f"{place} is {resolution}, which is not encoded{nearest(resolution, self.latents.resolutions)}: "
                    f"latents.resolutions has {', '.join(self.latents.resolutions)}. Write the same in both."
                )
        return self

    @model_validator(mode="after")
    def _gates_on_what_is_trained(self) -> Self:
        buckets = {bucket.name for phase in (self.train.phases if self.train else []) for bucket in phase.buckets}
        for place, gate in enumerate(self.gates):
            if gate.bucket and self.train and gate.bucket not in buckets:
                raise ValueError(
                    f"gates.{place}.metric is {gate.metric}, and nothing is trained on a bucket "
                    f"{gate.bucket}{nearest(gate.bucket, buckets)}: train.phases has {', '.join(sorted(buckets))}."
                )
        return self

    @model_validator(mode="after")
    def _possible_for_the_family(self) -> Self:
        """What the network cannot do is told before anything is encoded for it."""
        if self.train is None:
            return self
        model, codec = self.train.model, self.latents.codec.kind
        if isinstance(model, WanSpec):
            self._check_wan(model)
        elif codec == "wan-vae":
            raise ValueError(
                "latents.codec.kind is wan-vae, whose latents have 16 channels, and stdit2 takes 4: write sd-vae or "
                "patch-dct, or set train.model.family to wan."
            )
        if self.evaluate:
            self.evaluate.check_family(model.family)
        return self

    def _check_wan(self, model: WanSpec) -> None:
        for name in self.latents.resolutions:
            # The classes named by one number have sides that divide by 16; 360p and its like have not.
            if any(not side.isdigit() or int(side) % 16 for side in name.split("x")):
                raise ValueError(
                    f"latents.resolutions has {name}, and wan makes patches of 16x16 pixels: write a size whose sides "
                    "divide by 16, such as 480x832."
                )
        tokens, codec = self.latents.text.max_tokens, self.latents.codec.kind
        if tokens > WAN_TOKENS:
            raise ValueError(
                f"latents.text.max_tokens is {tokens}, and wan reads {WAN_TOKENS} at most: set it to {WAN_TOKENS}."
            )
        if codec != "wan-vae" and model.in_channels != 4:
            raise ValueError(
                f"train.model.in_channels is {model.in_channels}, and {codec} makes latents of 4 channels: set "
                "latents.codec.kind to wan-vae."
            )

    @model_validator(mode="after")
    def _whole_latents_in_time(self) -> Self:
        """A codec that shrinks time is read from a clip's first frame on, 4k + 1 frames, none left out between."""
        stride = self.latents.codec.time_stride
        buckets = [
            (f"train.phases.{i}.buckets.{j}", bucket)
            for i, phase in enumerate(self.train.phases if self.train else [])
            for j, bucket in enumerate(phase.buckets)
        ]
        for place, bucket in buckets:
            if bucket.frame_interval > 1 and stride > 1:
                raise ValueError(
                    f"{place}.frame_interval is {bucket.frame_interval}, and {self.latents.codec.kind} joins {stride} "
                    "frames that follow each other: set it to 1."
                )
        frames = [(f"{place}.num_frames", bucket.num_frames) for place, bucket in buckets]
        if self.evaluate:
            frames.append(("evaluate.num_frames", self.evaluate.num_frames))
            frames += [(f"evaluate.lengths.{i}", each) for i, each in enumerate(self.evaluate.lengths)]
        for place, num_frames in frames:
            if (num_frames - 1) % stride:
                near = 1 + (num_frames - 1) // stride * stride
                raise ValueError(
                    f"{place} is {num_frames}, and {self.latents.codec.kind} has whole latents for 1, "
                    f"{stride + 1}, {2 * stride + 1} ... frames: take {near} or {near + stride}."
                )
        return self


class BrickRun(Strict):
    """A run: `bricks run FILE` on one machine, `kubectl apply -f FILE` on a cluster."""

    apiVersion: How[Literal["bricks.dev/v1alpha1"]]  # noqa: N815 (Kubernetes' spelling)
    kind: How[Literal["BrickRun"]]
    metadata: How[Metadata]
    spec: What[RunSpec]

    @property
    def name(self) -> str:
        return self.metadata.name

    def stage_spec(self, stage: str) -> Strict:
        """The settings of one stage.

        Raises:
            SpecError: the run file has no such section, and it has no default.
        """
        section = getattr(self.spec, stage)
        if section is None:
            raise SpecError(
                f"Run {self.name} has no spec.{stage}: write one (k8s/runs/quickstart.yaml has it), or stop before it "
                f"with --until {_before(stage)}."
            )
        return section


def without_gaps(run: BrickRun) -> BrickRun:
    """The run itself. A cluster runs all stages that have a section, so none may lack one that another comes after.

    Raises:
        SpecError: evaluate without train.
    """
    names = [name for name in STAGES if getattr(run.spec, name) is not None]
    missing = [name for name in list(STAGES)[: list(STAGES).index(names[-1])] if name not in names]
    if missing:
        raise SpecError(
            f"Run {run.name} has spec.{names[-1]} and no spec.{missing[0]}, which comes before it: write one "
            f"(k8s/runs/quickstart.yaml has it), or take spec.{names[-1]} out."
        )
    return run


def load_run(file: Path, overrides: list[str] | None = None) -> BrickRun:
    """Read and check a run file. `overrides` are field=value pairs such as train.held_out.num_samples=8.

    Raises:
        SpecError: with the place of every mistake, and the nearest right word where there is one.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{file} is not there; k8s/runs/quickstart.yaml is a run file to start from.") from None
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error}.") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{file} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(document, dict):
        raise SpecError(f"{file} holds no run: it must begin with apiVersion, kind, metadata and spec.")
    return run_in(document, overrides, str(file))


def run_in(document: dict[str, Any], overrides: list[str] | None, where: str) -> BrickRun:
    """The run of a document that was read from `where`. `overrides`: see `load_run`.

    Raises:
        SpecError: with the place of every mistake.
    """
    for override in overrides or []:
        _override(document, override)
    try:
        return BrickRun.model_validate(document)
    except ValidationError as error:
        raise SpecError("\n".join(f"{where}: {mistake}" for mistake in _sentences(error))) from None


def run_of(obj: dict[str, Any]) -> BrickRun:
    """The run that an object of a cluster is. What Kubernetes adds to one (uid, labels, status, …) changes nothing.

    Raises:
        SpecError: with the place of every mistake.
    """
    document = {"metadata": {"name": obj["metadata"]["name"]}}
    document |= {key: obj[key] for key in ("apiVersion", "kind", "spec") if key in obj}
    try:
        return without_gaps(BrickRun.model_validate(document))
    except ValidationError as error:
        raise SpecError("\n".join(_sentences(error))) from None


def run_schema() -> str:
    """The run file's JSON schema, as committed in docs/brickrun.schema.json, for editors and for the cluster."""
    return json.dumps(BrickRun.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def _before(stage: str) -> str:
    names = list(STAGES)
    return names[names.index(stage) - 1]


def _override(document: dict[str, Any], override: str) -> None:
    """Set one field of the document in place; list places are numbers, as in train.phases.0.steps=50."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise SpecError(f"--set {override} says nothing: write field=value, as in --set train.held_out.num_samples=8.")
    if path.removeprefix("spec.").partition(".")[0] == "notify":
        raise SpecError("--set notify would show the address to all who see processes: set BRICKS_NOTIFY_URL instead.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}.") from None
    names = path.split(".")
    place: Any = document if names[0] in {"metadata", "spec"} else document.setdefault("spec", {})
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        if isinstance(place, list):
            if not name.isdecimal() or int(name) >= len(place):
                raise SpecError(
                    f"--set {override}: {'.'.join(names[:depth])} has places 0 to {len(place) - 1}, not {name}."
                )
            if last:
                place[int(name)] = value
            else:
                if _is_source(names[: depth + 1]) and isinstance(place[int(name)], str):
                    place[int(name)] = {"path": place[int(name)]}  # as `Source` understands a mere path
                place = place[int(name)]
        elif isinstance(place, dict):
            if last:
                place[name] = value
            else:
                place = place.setdefault(name, {})
        else:
            raise SpecError(f"--set {override}: {'.'.join(names[:depth])} is a value and has nothing below it.")


def _is_source(names: list[str]) -> bool:
    return names[:-1] in (["ingest", "sources"], ["spec", "ingest", "sources"])


def _sentences(error: ValidationError) -> list[str]:
    return [_sentence(detail) for detail in error.errors()]


def _sentence(detail: ErrorDetails) -> str:
    """One mistake of the run file in words a person can act on."""
    place = ".".join(str(part) for part in detail["loc"] if part not in _DISCRIMINATORS)
    if detail["type"] == "extra_forbidden":
        if instead := gone(detail["loc"]):
            return instead
        known = fields_at(detail["loc"][:-1])
        name = str(detail["loc"][-1])
        return f'unknown key "{place}"{nearest(name, known)}; known here: {", ".join(known)}.'
    if detail["loc"][-1:] == ("[key]",):  # of a mapping whose keys are names, such as cluster.stages
        place, known = place.removesuffix(".[key]"), re.findall(r"'(\w+)'", detail["msg"])
        return f'unknown key "{place}"{nearest(str(detail["input"]), known)}; known here: {", ".join(known)}.'
    if detail["type"] == "missing":
        return f"{place} is missing."
    if detail["type"] == "union_tag_invalid":
        given, kinds = detail["ctx"]["tag"], re.findall(r"'(\w+)'", detail["ctx"]["expected_tags"])
        field = detail["ctx"]["discriminator"].strip("'")
        return f'{place}.{field} = "{given}" is unknown{nearest(given, kinds)}; known here: {", ".join(kinds)}.'
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == HOLDS_SECRET:
        return f"{place}: {message}"
    wants_text = detail["type"] == "string_type" or "'" in str(detail.get("ctx", {}).get("expected"))
    if wants_text and isinstance(detail["input"], bool | int | float | date):
        message = "for YAML, what is written there is no text: put it into quotes."
    return f"{place} = {detail['input']!r}: {message}" if _is_short(detail["input"]) else f"{place}: {message}"


_DISCRIMINATORS = ("constant", "cosine_constant", "one_cycle", "stdit2", "wan")


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and len(str(value)) <= 60


def fields_at(place: tuple[int | str, ...]) -> list[str]:
    """The keys a run file may have at a place, found by walking the JSON schema."""
    schema = BrickRun.model_json_schema()
    node: dict[str, Any] = schema
    for part in place:
        if part in _DISCRIMINATORS:
            node = _resolve(schema, {"$ref": node.get("discriminator", {}).get("mapping", {}).get(part, "")})
        elif isinstance(part, int):
            node = _resolve(schema, node.get("items", {}))
        else:
            node = _resolve(schema, node.get("properties", {}).get(part, {}))
    return list(node.get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference; of "this or null", take this."""
    for choice in node.get("anyOf", []):
        if "$ref" in choice:
            return _resolve(schema, choice)
    if "$ref" not in node:
        return node
    return schema["$defs"].get(node["$ref"].rpartition("/")[2], {})
