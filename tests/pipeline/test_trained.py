"""What RUN means while its training is stopped, killed, under way, begun again, or done: real trainings, very short."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bricks_core.diffusion.model import Choice
from bricks_core.errors import AlteredObject, DataError, UsageError
from bricks_core.exchange.checkpoints.checkpoint import find_checkpoint
from bricks_core.exchange.checkpoints.export import export_checkpoint
from bricks_core.exchange.checkpoints.screen import show_checkpoint, tell_exported
from bricks_core.generate.model import find_model
from bricks_core.models.beside import told_by
from bricks_core.pipeline.find import find_artifact
from bricks_core.pipeline.points import Pointer, point
from bricks_core.pipeline.screen import status_screen
from bricks_core.pipeline.trained import find_trained
from bricks_core.spec.train import DEFAULT_WEIGHTS, TrainSpec
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from bricks_core.storage.trainings import COMMIT, OPTIMIZER, begin, keyed
from tests.stages.train.apart import train_apart
from tests.stages.train.conftest import small_spec
from tests.stages.train.latents_made_up import (
    LATENTS_DIGEST,
    made_up_latents,
    state_folder,
    train_work,
    trajectory_of,
)

SPEC = small_spec()
"""8 steps, a checkpoint every 3 and at the end of each of two phases of 3 and 5."""
DIGEST = "0" * 31 + "2"


def begun(store: Store, spec: TrainSpec = SPEC) -> None:
    """Say that run `films` has begun it, as the stage does."""
    begin(store, "films", spec, keyed(train_work(store, spec).inputs["latents"].manifest, {}), LATENTS_DIGEST)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores with a training that is done, was stopped after 5 steps, was killed after 4, and has only begun."""
    folder = tmp_path_factory.mktemp("made")
    made_up_latents(open_store(str(folder / "begun")), folder / "scratch")
    ends = {"done": (("", 0), 0, 0), "stopped": (("step", 5), signal.SIGTERM, 143)}
    ends["killed"] = ("step", 5), signal.SIGKILL, -9
    for name, (at, send, code) in ends.items():
        shutil.copytree(folder / "begun", folder / name)
        assert train_apart(str(folder / name), SPEC, at=at, send=send) == code
    for name in ("begun", *ends):
        begun(open_store(str(folder / name)))
    return {name: folder / name for name in ("begun", *ends)}


@pytest.fixture
def store_of(made: dict[str, Path], tmp_path: Path) -> Callable[[str], Store]:
    """store_of("stopped"): a copy of that store, to spoil."""
    return lambda name: open_store(str(shutil.copytree(made[name], tmp_path / name)))


def finished(store: Store, spec: TrainSpec = SPEC) -> None:
    """Let run `films` point to the artifact."""
    (digest,) = (each.key.split("/")[2] for each in store.list("artifacts/train/") if "manifest" in each.key)
    pointer = Pointer(stage="train", digest=digest, cache_key=DIGEST, spec=spec.model_dump(mode="json"), inputs={})
    point("films", store, pointer)


@pytest.mark.parametrize("name", ["films", "films/train", "train/", "artifacts/train/"])
def test_a_finished_training_is_its_artifact_whatever_it_is_called_by(store_of, name):
    store = store_of("done")
    finished(store)
    if name.endswith("train/"):
        (digest,) = {each.key.split("/")[2] for each in store.list("artifacts/train/")}
        name += digest[:6]
    trained = find_trained(store, name)
    assert (list(trained.states), trained.unfinished, trained.spec) == ([0, 3, 6, 8], "", SPEC)
    assert trained.latents == LATENTS_DIGEST
    state = trained.state()
    assert state.step == 8
    with trained.local(state.files["ema"]) as file:
        assert file.read_bytes() == (state_folder(train_work(store, SPEC), SPEC, 8) / "ema.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "steps"), [("stopped", [0, 3, 5]), ("killed", [0, 3])])
def test_of_a_training_that_was_stopped_or_killed_the_committed_states_are_there_and_it_says_so(store_of, name, steps):
    store = store_of(name)
    trained = find_trained(store, "films")
    assert list(trained.states) == steps
    assert trained.unfinished == f"not finished: {steps[-1]} of 8 steps are done"
    assert trained.state().step == steps[-1]
    assert trained.state(3).step == 3
    with pytest.raises(UsageError, match=rf"has no checkpoint of step 4; it has {', '.join(map(str, steps))}\."):
        trained.state(4)


def test_a_state_whose_optimizer_is_taken_away_meanwhile_is_readable(store_of):
    store = store_of("stopped")
    trained = find_trained(store, "films")
    record = trajectory_of(train_work(store, SPEC), SPEC).records(store)[5]
    store.delete([record.folder + OPTIMIZER])  # before, or after, its record says so
    for again in (trained, find_trained(store, "films")):
        for stored in (*again.state(5).files.values(), again.state(5).config):
            with again.local(stored) as file:
                assert file.stat().st_size == stored.size_bytes
    kept = [file for file in record.files if file.key != record.folder + OPTIMIZER]
    store.put(record.folder + COMMIT, record.model_copy(update={"files": kept}).model_dump_json().encode())
    assert find_trained(store, "films").state().step == 5


def test_a_state_that_is_gone_when_it_is_read_is_told_with_those_that_are_there(store_of):
    store = store_of("stopped")
    trained = find_trained(store, "films")
    store.delete([trained.state(5).files["ema"].key])
    with (
        pytest.raises(AlteredObject, match=r"ema.safetensors is missing.*another by --step \(0, 3, 5\)"),
        trained.local(trained.state(5).files["ema"]),
    ):
        pass


def test_a_damaged_newest_state_is_passed_over_and_one_altered_in_its_bytes_is_refused(store_of, caplog):
    store = store_of("stopped")
    folder = state_folder(train_work(store, SPEC), SPEC, 5)
    whole = (folder / "ema.safetensors").read_bytes()
    (folder / "ema.safetensors").write_bytes(whole[:-1])
    assert find_trained(store, "films").state().step == 3
    assert "ema.safetensors is missing or altered, so the checkpoint before it is taken" in caplog.text
    (folder / "ema.safetensors").write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    trained = find_trained(store, "films")
    with pytest.raises(AlteredObject, match="is not what was committed"), trained.local(trained.state().files["ema"]):
        pass
    (folder / COMMIT).write_text("{", encoding="utf-8")
    assert list(find_trained(store, "films").states) == [0, 3]


def test_a_longer_training_that_is_not_finished_is_meant_and_the_one_before_is_named(store_of):
    store = store_of("done")
    finished(store)
    longer = small_spec(phases=[SPEC.phases[0], SPEC.phases[1].model_copy(update={"steps": 9})])
    assert train_apart(store.uri, longer, at=("step", 3), send=signal.SIGTERM) == 143
    begun(store, longer)
    trained = find_trained(store, "films")
    assert trained.unfinished == "not finished: 11 of 12 steps are done"
    assert list(trained.states) == [0, 3, 6, 8, 9, 11]
    assert find_trained(store, trained.earlier).num_steps == 8
    begun(store)
    assert find_trained(store, "films").unfinished == ""


def test_states_that_other_intervals_left_can_be_named_of_a_finished_training(store_of):
    store = store_of("done")
    other = small_spec(checkpoint_every_steps=2)
    assert train_apart(store.uri, other) == 0
    digest = digest_with(store, 4)  # 0, 3, 6 and 8; the other names 0, 2, 3 (the end of a phase), 4, 6 and 8
    point("films", store, Pointer(stage="train", digest=digest, cache_key=DIGEST, spec={}, inputs={}))
    trained = find_trained(store, "films")
    assert list(trained.states) == [0, 2, 3, 4, 6, 8]


def digest_with(store: Store, num_checkpoints: int) -> str:
    """The artifact that names so many checkpoints."""
    for digest in sorted({each.key.split("/")[2] for each in store.list("artifacts/train/")}):
        manifest = json.loads(store.get(f"artifacts/train/{digest}/manifest.json"))
        if manifest["counts"]["checkpoints"] == num_checkpoints:
            return digest
    raise AssertionError("none")


@pytest.mark.parametrize(
    ("name", "run", "words"),
    [
        ("begun", "films", "has begun its training and has no checkpoint of it yet"),
        ("stopped", "film", r'has no run film with a training \(did you mean "films"\?\)'),
        ("stopped", "train/abc", "no artifact of train whose digest begins with abc"),
    ],
)
def test_what_has_no_states_says_so(store_of, name, run, words):
    with pytest.raises(DataError, match=words):
        find_trained(store_of(name), run)


def test_show_of_an_unfinished_training_says_where_to_look(store_of):
    with pytest.raises(DataError, match="is not finished: bricks checkpoint show films tells"):
        find_artifact(store_of("stopped"), "films/train")


def test_status_tells_how_far_it_is_and_which_states_can_be_used(store_of, capsys):
    for name, words in (
        ("stopped", "not finished: 5 of 8 steps are kept, checkpoints 0, 3, 5 can be used"),
        ("killed", "not finished: 3 of 8 steps are kept, checkpoints 0, 3 can be used"),
        ("begun", "not finished: 0 of 8 steps are kept, no checkpoint yet"),
    ):
        status_screen(store_of(name), "films")
        assert words in capsys.readouterr().out
    store = store_of("done")
    finished(store)
    status_screen(store, "films")
    assert "not finished" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- shown and exported


def test_a_checkpoint_of_it_is_shown_and_exported_with_what_it_goes_with_and_that_it_is_not_finished(
    store_of, tmp_path, capsys
):
    store = store_of("stopped")
    with find_checkpoint("films", store) as found:
        show_checkpoint(found, all_tensors=False)
        shown = " ".join(capsys.readouterr().out.split())
        assert "training not finished: 5 of 8 steps are done" in shown
        assert "goes with patch-dct and hashed-words" in shown
        for format in ("open-sora-hub", "diffusers"):
            exported = export_checkpoint(found, tmp_path / format, format)
            assert exported.weights == "ema"
            tell_exported(exported)
            told = " ".join(capsys.readouterr().out.split())
            assert "films, step 5, EMA weights" in told
            assert "training not finished: 5 of 8 steps are done" in told
            assert ("the folder has no VAE of diffusers, and bricks generate" in told) == (format == "diffusers")
            assert "missing" not in told
            said = told_by(tmp_path / format)
            assert (said.weights, said.training) == ("ema", "not finished: 5 of 8 steps are done")
            assert said.encoders is not None
            assert (said.encoders.codec.kind, said.encoders.text.max_tokens) == ("patch-dct", 12)
    was = load_file(state_folder(train_work(store, SPEC), SPEC, 5) / "ema.safetensors")
    out = load_file(tmp_path / "open-sora-hub/model.safetensors")
    assert all(torch.equal(out[name], was[name]) for name in was)


def test_which_weights_are_meant_is_the_same_in_generate_export_and_report(store_of, tmp_path):
    store = store_of("stopped")
    folder = state_folder(train_work(store, SPEC), SPEC, 5)
    assert DEFAULT_WEIGHTS == "ema"
    for name in ("films", str(folder)):
        model = find_model(name, Choice(), lambda: store)
        assert model.identity["weights"] == DEFAULT_WEIGHTS
        assert "ema weights" in model.name
        with find_checkpoint(name, store) as found:
            out = tmp_path / Path(name).name
            assert export_checkpoint(found, out, "open-sora-hub").weights == DEFAULT_WEIGHTS
        assert find_model(str(out), Choice(), lambda: store).identity["weights"] == DEFAULT_WEIGHTS
    # Open-Sora's own training folder holds both, each in its place.
    with find_checkpoint("films", store) as found:
        assert export_checkpoint(found, tmp_path / "training", "open-sora-training").weights == "raw"


def test_a_states_own_folder_tells_what_it_goes_with(store_of):
    said = told_by(state_folder(train_work(store_of("stopped"), SPEC), SPEC, 3))
    assert said.encoders is not None
    assert (said.encoders.codec.kind, said.encoders.text.kind) == ("patch-dct", "hashed-words")
    assert (said.encoders.codec_id, said.encoders.text_id) == ("made up", "made up")
