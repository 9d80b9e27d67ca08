"""bricks checkpoint, as it is called: what it says, how it ends, and what it finds in a store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bricks_core.errors import DataError, UsageError
from bricks_core.exchange.checkpoints.bring_in import import_checkpoint, put_into
from bricks_core.exchange.checkpoints.checkpoint import find_checkpoint, open_checkpoint
from bricks_core.exchange.checkpoints.export import export_checkpoint
from bricks_core.exchange.checkpoints.screen import show_checkpoint, tell_exported, tell_imported
from bricks_core.models.stdit2 import STDiT2
from bricks_core.models.weights import find_weights, load_weights, save_config, save_weights
from bricks_core.pipeline.points import Pointer, point
from bricks_core.progress import Progress
from bricks_core.spec.stages import STAGES
from bricks_core.spec.train import CheckpointRow, Constant, Phase, TrainBucket, TrainSpec
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from bricks_core.storage.work import Joined, Work

ROOT = Path(__file__).parents[3]
TINY = {"hidden_size": 24, "depth": 1, "num_heads": 2, "caption_channels": 8, "model_max_length": 4}
DIGEST = "a1" * 16


def bricks_checkpoint(*arguments: object, **also) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.checkpoint", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **also,
    )


@pytest.fixture
def hub(tmp_path) -> Path:
    """A hub folder of a tiny network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    torch.manual_seed(0)
    model = STDiT2(**TINY)
    save_weights(model, folder / "model.safetensors")
    save_config(model, folder / "config.json")
    return folder


@pytest.fixture
def store(tmp_path) -> Store:
    """A store with a finished training of two checkpoints, which the run `film` has."""
    store = open_store(str(tmp_path / "store"))
    phase = Phase(
        name="one",
        steps=4,
        buckets=[TrainBucket(resolution="144p", num_frames=1, batch_size=1)],
        schedule=Constant(lr=1),
    )
    spec = TrainSpec(phases=[phase])
    work = Work(store, STAGES["train"], spec, DIGEST, {}, {}, Progress("train"))
    rows, objects = [], []
    for step in (0, 4):
        torch.manual_seed(step)
        model, folder, keys = STDiT2(**TINY), f"checkpoints/step-{step:06d}", {}
        for name in ("weights", "ema"):
            model.rope.freqs.data += 1  # the EMA is another
            save_weights(model, tmp_path / "file")
            keys[f"{name}_key"] = f"{folder}/{name}.safetensors"
            objects.append(work.put_file(keys[f"{name}_key"], tmp_path / "file"))
        save_config(model, tmp_path / "file")
        objects.append(work.put_file(f"{folder}/config.json", tmp_path / "file"))
        rows.append(CheckpointRow(id=folder, step=step, phase="one", state_key=f"{folder}/state.json", **keys))
    tables = {name: rows if name == "checkpoints" else [] for name in STAGES["train"].tables}
    work.commit(Joined(tables, objects=objects))
    pointer = Pointer(
        stage="train", digest=DIGEST, cache_key=DIGEST, spec=spec.model_dump(mode="json"), inputs=work.input_digests
    )
    point("film", store, pointer)
    return store


# -------------------------------------------------------------------------------------------------------- in the store


@pytest.mark.parametrize("name", ["film", "film/train", "train/a1a1", f"artifacts/train/{DIGEST}/"])
def test_a_runs_checkpoint_is_found_as_bricks_show_finds_artifacts(store, tmp_path, name):
    for step, found in ((None, 4), (0, 0), (4, 4)):
        with find_checkpoint(name, store, step) as checkpoint:
            assert checkpoint.step == found
            out = tmp_path / f"out-{step}"
            export_checkpoint(checkpoint, out, "open-sora-hub", weights="ema")
        folder = Path(store.uri) / f"artifacts/train/{DIGEST}/checkpoints/step-{found:06d}"
        was = load_file(folder / "ema.safetensors")
        assert all(torch.equal(tensor, was[each]) for each, tensor in load_file(out / "model.safetensors").items())
        with find_checkpoint(str(folder), store) as by_path:
            assert by_path.weights.headings == open_checkpoint(folder).weights.headings


@pytest.mark.parametrize(
    ("name", "step", "error", "why"),
    [
        ("film", 3, UsageError, "has no checkpoint of step 3; it has 0, 4"),
        ("fil", None, DataError, r'has no run fil with a training \(did you mean "film"\?\)'),
        ("train/b", None, DataError, "has no artifact of train whose digest begins with b"),
        ("./film", None, UsageError, "is not there"),
        ("film/latents", None, UsageError, "is no path here, and no RUN or train/DIGEST of the store"),
        ("owner/model", None, UsageError, r"If it is a hub id, .*: bricks checkpoint import owner/model --out FOLDER"),
    ],
)
def test_what_is_not_in_the_store_is_told_so(store, name, step, error, why):
    with pytest.raises(error, match=why), find_checkpoint(name, store, step):
        pass


def test_a_path_longer_than_the_file_system_allows_is_told(tmp_path):
    shown = bricks_checkpoint("show", tmp_path / ("x" * 300))
    assert shown.returncode == 64
    assert "longer than a file system allows" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_the_next_command_can_be_copied_whatever_the_folder_is_called(hub, tmp_path, capsys):
    tell_imported(import_checkpoint(str(hub), tmp_path / "my model"))
    assert f"bricks generate '{tmp_path / 'my model'}' makes" in " ".join(capsys.readouterr().out.split())


def test_a_trained_step_is_told_to_upstream(store, tmp_path):
    with find_checkpoint("film", store) as checkpoint:
        export_checkpoint(checkpoint, tmp_path / "epoch0-global_step4", "open-sora-training")
    states = json.loads((tmp_path / "epoch0-global_step4/running_states.json").read_text(encoding="utf-8"))
    assert states == {"epoch": 0, "step": 4, "global_step": 4, "sample_start_index": None}


def test_what_was_imported_is_what_training_begins_with(hub, tmp_path):
    import_checkpoint(str(hub), tmp_path / "in", dtype="bfloat16")
    model, was = STDiT2(**TINY), load_file(hub / "model.safetensors")
    for place, narrow in ((tmp_path / "in", True), (hub, False), (hub / "model.safetensors", False)):
        load_weights(model, find_weights(place))
        for name, tensor in model.state_dict().items():
            expected = was[name].bfloat16().float() if narrow and name != "rope.freqs" else was[name]
            assert torch.equal(tensor, expected), (place, name)


# -------------------------------------------------------------------------------------------------------- on the screen


def test_show_says_what_it_is_by_part_and_each_tensor_when_asked(hub, capsys):
    show_checkpoint(open_checkpoint(hub), all_tensors=False)
    shown = capsys.readouterr().out
    model = STDiT2(**TINY)
    numbers = sum(tensor.numel() for tensor in model.state_dict().values())
    in_mlp = sum(parameter.numel() for parameter in model.blocks[0].mlp.parameters())
    for words in (
        "a model folder as Open-Sora publishes it",
        "given: hidden_size 24, depth 1, num_heads 2",
        f"{len(model.state_dict())} tensors, {numbers:,} numbers, float32",
        "EMA         none",
        "step        not known",
        f"{in_mlp:,}",
        "Every tensor of the network that its config describes is there, and no other.",
    ):
        assert words in shown
    assert "blocks.0.mlp.fc1.weight" not in shown
    show_checkpoint(open_checkpoint(hub), all_tensors=True)
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if ".weight" in line or ".bias" in line] == sorted(
        name for name in model.state_dict() if name.endswith(("weight", "bias"))
    )


def test_show_says_which_fields_it_could_only_assume(hub, capsys):
    (hub / "config.json").unlink()
    show_checkpoint(open_checkpoint(hub), all_tensors=False)
    shown = capsys.readouterr().out
    assert "read from the tensors: hidden_size 24, depth 1, num_heads 2" in shown
    assert "which no tensor shows, so as STDiT2-XL/2 has them: input_sq_size 512, class_dropout_prob 0.1" in shown
    assert "Every tensor of a network of this shape is there, and no other." in shown


def test_show_lists_what_differs_and_names_the_first(hub, capsys):
    state = load_file(hub / "model.safetensors")
    del state["t_block.1.bias"]
    save_file(state | {"extra.weight": torch.ones(3)}, hub / "model.safetensors")
    with pytest.raises(DataError, match=r"^2 tensors .* the first is t_block\.1\.bias is missing\.$"):
        show_checkpoint(open_checkpoint(hub), all_tensors=False)
    shown = capsys.readouterr().out
    assert "unknown to this network" in shown
    assert "extra.weight is unknown" in shown


def test_import_and_export_say_what_was_done_and_what_is_missing(hub, tmp_path, capsys):
    (hub / "optimizer").mkdir()
    (hub / "config.json").unlink()
    tell_imported(import_checkpoint(str(hub), tmp_path / "in"))
    told = capsys.readouterr().out
    assert "read from the tensors" in told
    assert "optimizer/ (Adam's moments; training begins with new ones)" in told
    assert f"train.init_from: {tmp_path}/in" in told
    tell_exported(export_checkpoint(open_checkpoint(tmp_path / "in"), tmp_path / "out", "open-sora-training"))
    told = capsys.readouterr().out
    assert "optimizer/, which upstream's --load asks for" in told
    assert "ema.pt    float32, the weights: there is no EMA" in told
    assert "running_states.json" in told


def test_what_is_imported_goes_into_the_store_where_training_in_any_pod_finds_it(hub, store, tmp_path, capsys):
    imported = import_checkpoint(str(hub), tmp_path / "in")
    put_into(store, "weights/tiny/", imported)
    put_into(store, "weights/tiny", imported)
    assert store.get("weights/tiny/weights.safetensors") == (tmp_path / "in" / "weights.safetensors").read_bytes()
    assert {each.key for each in store.list("weights/")} == {
        f"weights/tiny/{name}" for name in ("config.json", "provenance.json", "weights.safetensors")
    }
    tell_imported(imported, "weights/tiny/")
    assert "with train.init_from: weights/tiny a run" in capsys.readouterr().out


def test_weights_in_the_store_are_not_replaced_by_others_unless_that_is_asked_for(hub, store, tmp_path):
    put_into(store, "weights/tiny", import_checkpoint(str(hub), tmp_path / "in"))
    save_weights(STDiT2(**TINY), hub / "model.safetensors")
    other = import_checkpoint(str(hub), tmp_path / "other")
    with pytest.raises(UsageError, match="holds other weights"):
        put_into(store, "weights/tiny", other)
    put_into(store, "weights/tiny", other, force=True)
    assert store.get("weights/tiny/weights.safetensors") == (tmp_path / "other" / "weights.safetensors").read_bytes()
    with pytest.raises(UsageError, match="where the store keeps what runs make"):
        put_into(store, "artifacts/train/x", other)


# ------------------------------------------------------------------------------------------------------ as it is called


def test_the_command_line_imports_and_ends_with_the_exit_code_of_what_went_wrong(hub, tmp_path):
    done = bricks_checkpoint("import", hub, "--out", tmp_path / "in")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "in/weights.safetensors").read_bytes() == (hub / "model.safetensors").read_bytes()
    os.truncate(hub / "model.safetensors", 50_000)
    done = bricks_checkpoint("show", hub)
    assert done.returncode == 65
    assert done.stderr.startswith("checkpoint: ")
    assert "is no safetensors file: it ends at byte 50,000, within " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_import_leaves_nothing_in_its_place_and_the_next_completes_it(tmp_path):
    shape = {"hidden_size": 576, "depth": 6, "num_heads": 8, "caption_channels": 64}
    (tmp_path / "hub").mkdir()
    model = STDiT2(**shape)
    save_weights(model, tmp_path / "hub/model.safetensors")
    save_config(model, tmp_path / "hub/config.json")
    command = [sys.executable, "-m", "jobs.checkpoint", "import", tmp_path / "hub", "--out", tmp_path / "in"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    aside = tmp_path / ".in.new/weights.safetensors"
    while not (aside.exists() and aside.stat().st_size > 1_000_000):
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "in").exists()
    import_checkpoint(str(tmp_path / "hub"), tmp_path / "in")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["hub", "in"]
    assert load_file(tmp_path / "in/weights.safetensors").keys() == model.state_dict().keys()
