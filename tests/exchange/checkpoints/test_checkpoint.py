"""Checkpoints of upstream, of diffusers and ours, brought in and out without losing a bit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bricks_core.errors import DataError, ServiceUnavailable, SpecError, TryLater, UsageError
from bricks_core.exchange.checkpoints.bring_in import import_checkpoint
from bricks_core.exchange.checkpoints.checkpoint import Checkpoint, find_checkpoint, network_of, open_checkpoint
from bricks_core.exchange.checkpoints.export import export_checkpoint
from bricks_core.exchange.checkpoints.open_sora import hub_config, write_shards
from bricks_core.exchange.checkpoints.screen import show_checkpoint, tell_exported
from bricks_core.models.stdit2 import STDiT2
from bricks_core.models.tensor_files import Heading, Tensors, open_tensors, safetensors_bytes, write_safetensors
from bricks_core.models.weights import FIELDS, expected_headings, infer_shape, load_network, shape_of

TINY = {
    "hidden_size": 24,
    "depth": 1,
    "num_heads": 2,
    "caption_channels": 8,
    "model_max_length": 4,
    "input_sq_size": 32,
    "class_dropout_prob": 0.2,
}
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def whole(shape) -> dict:
    """All fields of a shape, as they come from JSON."""
    return json.loads(json.dumps({name: each.default for name, each in FIELDS.items()} | shape))


def state_of(shape, dtype=torch.float32, seed=0) -> dict[str, torch.Tensor]:
    """Random weights of a network of this shape."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(heading.shape, generator=generator).to(dtype)
        for name, heading in expected_headings(shape).items()
    }


def ours(folder: Path, shape=TINY, dtype=torch.float32, ema: bool = False, **also) -> Path:
    """A checkpoint folder of ours."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state_of(shape, dtype), folder / "weights.safetensors")
    if ema:
        save_file(state_of(shape, torch.float32, seed=1), folder / "ema.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["STDiT2"], **whole(shape), **also}), encoding="utf-8"
    )
    return folder


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same names, types and bits."""
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8))
        for name in a
    )


def tree(folder: Path) -> list[str]:
    return sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file())


# --------------------------------------------------------------------------------------------------------- round trips

SHAPES = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from([12, 24, 36]),
        "depth": st.integers(1, 2),
        "num_heads": st.sampled_from([1, 2, 3]),
        "in_channels": st.integers(1, 4),
        "patch_size": st.sampled_from([(1, 2, 2), (1, 1, 1), (1, 2, 4)]),
        "pred_sigma": st.booleans(),
        "mlp_ratio": st.sampled_from([4.0, 1.5, 2.3, 3.1]),
        "caption_channels": st.integers(1, 9),
        "model_max_length": st.integers(1, 5),
        "qk_norm": st.booleans(),
        "input_sq_size": st.sampled_from([512, 32]),
    }
).filter(lambda shape: shape["hidden_size"] % (2 * shape["num_heads"]) == 0)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    SHAPES,
    st.sampled_from(FLOATS),
    st.booleans(),
    st.sampled_from(["open-sora-hub", "open-sora-training", "diffusers"]),
    st.sampled_from(["raw", "ema"]),
)
def test_what_is_exported_in_its_own_types_is_imported_bit_by_bit(tmp_path_factory, shape, dtype, ema, format, weights):
    folder = tmp_path_factory.mktemp("trip")
    first = ours(folder / "first", shape, dtype, ema)
    weights = weights if ema else "raw"
    export_checkpoint(open_checkpoint(first), folder / "out", format, weights=weights, dtype="stored")
    import_checkpoint(str(folder / "out"), folder / "back")
    chosen = "ema.safetensors" if weights == "ema" else "weights.safetensors"
    assert same(folder / "back/weights.safetensors", first / chosen)
    assert (folder / "back/ema.safetensors").exists() == (format == "open-sora-training")
    if format == "open-sora-training" and ema:
        assert same(folder / "back/ema.safetensors", first / "ema.safetensors")
    back, was = (json.loads((each / "config.json").read_text(encoding="utf-8")) for each in (folder / "back", first))
    assert shape_of(back) == shape_of(was)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_survive_the_published_float32(tmp_path, dtype):
    first = ours(tmp_path / "first", dtype=dtype)
    export_checkpoint(open_checkpoint(first), tmp_path / "hub", "open-sora-hub")
    assert {tensor.dtype for tensor in load_file(tmp_path / "hub/model.safetensors").values()} == {torch.float32}
    name = str(dtype).removeprefix("torch.")
    import_checkpoint(str(tmp_path / "hub"), tmp_path / "back", dtype=name)
    back, was = load_file(tmp_path / "back/weights.safetensors"), load_file(first / "weights.safetensors")
    assert back.pop("rope.freqs").dtype == torch.float32  # never narrower: frame 63 would be 0.22 rad off
    assert all(torch.equal(back[name], was[name]) and back[name].dtype == dtype for name in back)


@settings(deadline=None, max_examples=25)
@given(SHAPES)
def test_a_networks_shape_is_read_from_its_tensors(shape):
    headings = expected_headings(shape)
    inferred = infer_shape(Tensors(Path("any"), (), headings, lambda name: torch.empty(0)))
    assert expected_headings(inferred.shape) == headings
    assumed = {"input_sq_size": 512, "class_dropout_prob": 0.1}  # no tensor shows them
    ratio = {"mlp_ratio": int(shape["hidden_size"] * shape["mlp_ratio"]) / shape["hidden_size"]}
    assert whole(inferred.shape) == whole(shape) | assumed | {"mlp_ratio": pytest.approx(ratio["mlp_ratio"])}
    assert set(inferred.assumed) == set(assumed)


# ------------------------------------------------------------------------------------------------ upstream's hub folder


def test_a_hub_export_is_as_published(tmp_path):
    export_checkpoint(open_checkpoint(ours(tmp_path / "first")), tmp_path / "hub", "open-sora-hub")
    assert tree(tmp_path / "hub") == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((tmp_path / "hub/config.json").read_text(encoding="utf-8"))
    assert config == {
        "architectures": ["STDiT2"],
        "model_type": "STDiT2",
        "torch_dtype": "float32",
        "caption_channels": 8,
        "class_dropout_prob": 0.2,
        "depth": 1,
        "drop_path": 0.0,
        "enable_flash_attn": False,
        "enable_layernorm_kernel": False,
        "freeze": None,
        "hidden_size": 24,
        "in_channels": 4,
        "input_size": [32, 60, 106],
        "input_sq_size": 32,
        "mlp_ratio": 4.0,
        "model_max_length": 4,
        "no_temporal_pos_emb": False,
        "num_heads": 2,
        "patch_size": [1, 2, 2],
        "pred_sigma": True,
        "qk_norm": True,
    }


def test_the_full_size_hub_file_has_the_published_bytes_to_the_last(tmp_path, golden_json):
    small = expected_headings(TINY)
    write_safetensors(tmp_path / "small", small, state_of(TINY).__getitem__)
    assert (tmp_path / "small").stat().st_size == safetensors_bytes(small)  # so it is as it is written
    full = expected_headings({})
    published = golden_json("stdit2_xl2_state_dict")["public_file"]["size_bytes"]
    assert safetensors_bytes(full) == published == 3_073_157_592
    assert hub_config(whole({}), "float32")["hidden_size"] == 1152


def test_upstreams_file_and_hub_folder_are_imported_with_keys_we_have_no_use_for(tmp_path):
    (tmp_path / "hub").mkdir()
    save_file(state_of(TINY), tmp_path / "hub/model.safetensors", {"format": "pt"})
    published = hub_config(whole(TINY), "float32") | {
        "auto_map": {"AutoModel": "x.Y"},
        "transformers_version": "4.38.2",
    }
    (tmp_path / "hub/config.json").write_text(json.dumps(published), encoding="utf-8")
    (tmp_path / "hub/modeling_stdit2.py").write_text("raise SystemExit('upstream code was run')", encoding="utf-8")
    for number, source in enumerate((tmp_path / "hub", tmp_path / "hub/model.safetensors")):
        out = tmp_path / f"out{number}"
        imported = import_checkpoint(str(source), out)
        assert tree(out) == ["config.json", "provenance.json", "weights.safetensors"]
        assert same(out / "weights.safetensors", tmp_path / "hub/model.safetensors")
        assert not imported.network.inferred
        model = load_network(out / "weights.safetensors", out / "config.json")
        assert shape_of(model.config) == whole(TINY)


def test_shards_of_safetensors_are_imported(tmp_path):
    STDiT2(**TINY).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*-of-*.safetensors"))) > 1
    import_checkpoint(str(tmp_path / "sharded"), tmp_path / "out")
    model = load_network(tmp_path / "out/weights.safetensors", tmp_path / "out/config.json")
    again = STDiT2.from_pretrained(tmp_path / "sharded")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_hub_that_does_not_answer_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ServiceUnavailable, match=r"The checkpoint nobody/nothing is not on this disk and the hub"):
        import_checkpoint("nobody/nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ upstream's .pt files


def test_a_legacy_pt_file_loses_its_positions_and_its_null_caption_gets_the_configs_length(tmp_path):
    state = state_of(TINY)
    legacy = {"pos_embed": torch.zeros(1, 9, 24), "pos_embed_temporal": torch.zeros(1, 4, 24)}
    torch.save(state | legacy, tmp_path / "old.pt")
    for length in (3, 7):
        config = tmp_path / f"{length}.json"
        config.write_text(json.dumps(whole(TINY) | {"model_max_length": length}), encoding="utf-8")
        imported = import_checkpoint(str(tmp_path / "old.pt"), tmp_path / f"out{length}", config=config)
        assert imported.network.dropped == ("pos_embed", "pos_embed_temporal")
        assert imported.network.resized == (f"y_embedder.y_embedding: from 4 rows to {length}",)
        kept = load_file(tmp_path / f"out{length}/weights.safetensors")
        rows, was = kept.pop("y_embedder.y_embedding"), state["y_embedder.y_embedding"]
        assert torch.equal(rows, was[[0, 1, 2, 3, 3, 3, 3][:length]])
        assert kept.keys() == state.keys() - {"y_embedder.y_embedding"}
        assert all(torch.equal(tensor, state[name]) for name, tensor in kept.items())
        provenance = json.loads((tmp_path / f"out{length}/provenance.json").read_text(encoding="utf-8"))
        assert (provenance["dropped"], provenance["resized"]) == (
            ["pos_embed", "pos_embed_temporal"],
            list(imported.network.resized),
        )


def test_without_a_config_the_shape_is_inferred_and_what_was_assumed_is_kept(tmp_path):
    torch.save(state_of(TINY), tmp_path / "model.pth")
    imported = import_checkpoint(str(tmp_path / "model.pth"), tmp_path / "out")
    assert imported.network.inferred
    provenance = json.loads((tmp_path / "out/provenance.json").read_text(encoding="utf-8"))
    assert provenance["config"] == "inferred from the tensors"
    assert provenance["assumed"] == ["input_sq_size", "class_dropout_prob"]
    assert json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))["num_heads"] == 2


class Harmful:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_code_in_any_pickle_of_a_training_checkpoint_is_not_run(tmp_path):
    for number, place in enumerate(("model/pytorch_model-00001.bin", "ema.pt")):
        folder = training(tmp_path / str(number))
        torch.save(state_of(TINY) | {"x": Harmful(tmp_path / "was_run")}, folder / place)
        with pytest.raises(DataError, match=rf"{place} wants \w+\.mkdir to be run while it is read"):
            import_checkpoint(str(folder), tmp_path / "out")
        assert not (tmp_path / "was_run").exists()
        assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ upstream's training checkpoints


def training(folder: Path, dtype=torch.bfloat16, shard_bytes: int = 20_000) -> Path:
    """A training checkpoint as upstream's trainer leaves it, optimizer and all, made without our export."""
    (folder / "optimizer").mkdir(parents=True)
    (folder / "optimizer/pytorch_optim_group.bin").write_bytes(b"never read")
    state = state_of(TINY, dtype)
    headings = {name: Heading(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    write_shards(headings, state.__getitem__, folder / "model", shard_bytes=shard_bytes)
    torch.save(state_of(TINY, torch.float32, seed=1), folder / "ema.pt")
    states = {"epoch": 3, "step": 51, "global_step": 251, "sample_start_index": None}
    (folder / "running_states.json").write_text(json.dumps(states), encoding="utf-8")
    torch.save({"seed": 42, "epoch": 3, "last_micro_batch_access_index": 51}, folder / "sampler")
    return folder


def test_a_training_checkpoint_is_imported_with_its_ema_and_its_step(tmp_path):
    folder = training(tmp_path / "epoch3-global_step251")
    assert len(list((folder / "model").glob("pytorch_model-*.bin"))) > 1
    imported = import_checkpoint(str(folder), tmp_path / "out")
    assert all(words.split()[0] in ("optimizer/", "sampler") for words in imported.checkpoint.left_out)
    assert len(imported.checkpoint.left_out) == 2
    expected = tmp_path / "expected.safetensors"
    for name, state in (("weights", state_of(TINY, torch.bfloat16)), ("ema", state_of(TINY, torch.float32, seed=1))):
        save_file(state, expected)
        assert same(tmp_path / "out" / f"{name}.safetensors", expected)
    again = open_checkpoint(tmp_path / "out")
    assert again.step == 251
    export_checkpoint(again, tmp_path / "next", "open-sora-training")
    assert (tmp_path / "next/running_states.json").read_text(encoding="utf-8").split() == (
        json.dumps(json.loads((folder / "running_states.json").read_text(encoding="utf-8")), indent=4).split()
    )


def test_a_training_export_is_laid_out_as_upstreams(tmp_path):
    first = ours(tmp_path / "first", ema=True)
    export_checkpoint(open_checkpoint(first), tmp_path / "out", "open-sora-training")
    assert tree(tmp_path / "out") == [
        "README.md",
        "config.json",
        "ema.pt",
        "model/pytorch_model-00001.bin",
        "model/pytorch_model.bin.index.json",
        "running_states.json",
    ]
    shard = torch.load(tmp_path / "out/model/pytorch_model-00001.bin", weights_only=True)
    was, ema = load_file(first / "weights.safetensors"), load_file(first / "ema.safetensors")
    assert shard.keys() == was.keys()
    assert all(torch.equal(shard[name], was[name].bfloat16()) for name in was)  # rotary frequencies too, as upstream
    index = json.loads((tmp_path / "out/model/pytorch_model.bin.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in was.values())
    assert set(index["weight_map"].values()) == {"pytorch_model-00001.bin"}
    saved = torch.load(tmp_path / "out/ema.pt", weights_only=True)
    assert all(torch.equal(saved[name], ema[name]) and saved[name].dtype == torch.float32 for name in ema)


def test_shards_are_no_larger_than_their_limit_unless_by_one_tensor(tmp_path):
    state = {f"t{i}": torch.zeros(size) for i, size in enumerate((10, 10, 10, 300, 5, 20))}
    headings = {name: Heading(torch.float32, tuple(tensor.shape)) for name, tensor in state.items()}
    write_shards(headings, state.__getitem__, tmp_path / "model", shard_bytes=100)
    names = [list(torch.load(tmp_path / f"model/pytorch_model-0000{i}.bin")) for i in range(1, 5)]
    assert names == [["t0", "t1"], ["t2"], ["t3"], ["t4", "t5"]]
    assert open_tensors(tmp_path / "model/pytorch_model.bin.index.json").headings == headings


def test_without_an_ema_upstreams_ema_begins_as_a_copy_of_the_weights(tmp_path):
    first = ours(tmp_path / "first", dtype=torch.bfloat16)
    export_checkpoint(open_checkpoint(first), tmp_path / "out", "open-sora-training")
    saved = torch.load(tmp_path / "out/ema.pt", weights_only=True)
    assert all(torch.equal(saved[n], t.float()) for n, t in load_file(first / "weights.safetensors").items())
    with pytest.raises(UsageError, match="has no EMA weights"):
        export_checkpoint(open_checkpoint(first), tmp_path / "other", "open-sora-hub", weights="ema")


def test_of_an_experiment_one_checkpoint_must_be_named(tmp_path):
    for step in (251, 1001, 501):
        training(tmp_path / f"epoch0-global_step{step}")
    with pytest.raises(DataError, match=r"holds 3 training checkpoints: name one, such as .*epoch0-global_step1001"):
        open_checkpoint(tmp_path)


# ------------------------------------------------------------------------------------------------------------ diffusers


def test_a_diffusers_folder_loads_as_a_pipeline_with_the_parts_that_were_given(tmp_path, tiny_vae, tiny_t5, capsys):
    from bricks_core.diffusion.text_to_video import STDiT2Pipeline

    shape = TINY | {"caption_channels": 32}
    first = ours(tmp_path / "first", shape, torch.bfloat16)
    vae, t5 = tiny_vae(tmp_path / "vae"), tiny_t5(tmp_path / "t5")
    given = {"vae": str(vae), "text_encoder": str(t5)}
    tell_exported(export_checkpoint(open_checkpoint(first), tmp_path / "whole", "diffusers", **given))
    assert "missing" not in capsys.readouterr().out
    pipeline = STDiT2Pipeline.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    was = load_file(first / "weights.safetensors")
    assert all(torch.equal(tensor, was[name].float()) for name, tensor in pipeline.transformer.state_dict().items())
    frames = pipeline("a red brick", num_frames=1, height=16, width=16, num_inference_steps=1, output_type="np").frames
    assert frames.shape == (1, 1, 16, 16, 3)
    tell_exported(export_checkpoint(open_checkpoint(first), tmp_path / "alone", "diffusers"))
    assert "vae, text_encoder, tokenizer: put them in" in capsys.readouterr().out
    assert {file.split("/")[0] for file in tree(tmp_path / "alone")} == {
        "README.md",
        "model_index.json",
        "scheduler",
        "transformer",
    }


def test_parts_that_cannot_be_had_or_do_not_go_with_the_format_are_refused(tmp_path):
    first = open_checkpoint(ours(tmp_path / "first"))
    with pytest.raises(SpecError, match=r"The autoencoder .*/gone is no folder"):
        export_checkpoint(first, tmp_path / "out", "diffusers", vae=str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="holds the network alone"):
        export_checkpoint(first, tmp_path / "out", "open-sora-hub", text_encoder="x")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- what is wrong


def damaged(folder: Path, change) -> Path:
    """A hub folder whose tensors were changed."""
    folder.mkdir()
    state = state_of(TINY)
    change(state)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(whole(TINY)), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.pop("t_block.1.bias"), r"t_block\.1\.bias is missing"),
        (lambda s: s.update(extra=torch.ones(1)), "extra is unknown"),
        (lambda s: s.update({"rope.freqs": torch.ones(7)}), r"rope\.freqs is \(7,\) instead of \(6,\)"),
        (lambda s: s.update({"t_block.1.bias": torch.ones(144, dtype=torch.int32)}), "bias is int32, no numbers"),
        (lambda s: s.update(state_of(TINY | {"depth": 2})), r"blocks\.1\.\S+ is unknown.* and \d+ more"),
        (lambda s: s.clear() or s.update(w=torch.ones(2)), "x_embedder.proj.weight is missing"),
    ],
)
def test_the_first_wrong_tensor_is_named(tmp_path, change, why):
    folder = damaged(tmp_path / "hub", change)
    with pytest.raises(DataError, match=why):
        import_checkpoint(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert tree(tmp_path) == ["hub/config.json", "hub/model.safetensors"]


def test_tensors_that_are_of_no_one_network_are_told_so_without_a_config_too(tmp_path):
    state = state_of(TINY) | {"blocks.0.mlp.fc2.weight": torch.ones(3, 3)}
    save_file(state, tmp_path / "mixed.safetensors")
    with pytest.raises(
        DataError, match=r"is not of the shape that its other tensors have: blocks\.0\.mlp\.fc2\.weight"
    ):
        network_of(open_checkpoint(tmp_path / "mixed.safetensors"))
    for name, wrong in (("x_embedder.proj.weight", torch.ones(2)), ("blocks.99999999.attn.proj.bias", torch.ones(2))):
        save_file(state_of(TINY) | {name: wrong}, tmp_path / "odd.safetensors")
        with pytest.raises(DataError, match="holds no STDiT2"):
            network_of(open_checkpoint(tmp_path / "odd.safetensors"))


def test_an_ema_of_another_size_is_told_of(tmp_path):
    folder = ours(tmp_path / "first", ema=True)
    save_file(state_of(TINY | {"depth": 2}), folder / "ema.safetensors")
    with pytest.raises(DataError, match=r"ema\.safetensors is not of its config\.json: blocks\.1\.\S+ is unknown"):
        network_of(open_checkpoint(folder))


def test_missing_shards_and_missing_indexes_are_named(tmp_path):
    folder = training(tmp_path / "one")
    (folder / "model/pytorch_model-00002.bin").unlink()
    with pytest.raises(DataError, match=r"names pytorch_model-00002\.bin for \S+, but that shard is not there"):
        open_checkpoint(folder)
    folder = training(tmp_path / "two")
    (folder / "model/pytorch_model.bin.index.json").unlink()
    with pytest.raises(DataError, match=r"shards such as pytorch_model-00001\.bin but no index"):
        open_checkpoint(folder)


def test_what_holds_no_checkpoint_is_told_so(tmp_path):
    with pytest.raises(DataError, match="holds no file of weights"):
        open_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="is not there"):
        open_checkpoint(tmp_path / "gone")
    for name in ("a.safetensors", "b.safetensors"):
        save_file(state_of(TINY), tmp_path / name)
    with pytest.raises(DataError, match="holds 2 files of weights, and which is meant cannot be told"):
        open_checkpoint(tmp_path)
    hub = damaged(tmp_path / "hub", lambda state: None)
    (hub / "config.json").write_text('{"depth": 1000000000}', encoding="utf-8")
    with pytest.raises(DataError, match="says 1000000000 blocks, and there are"):
        network_of(open_checkpoint(hub))
    for content in (
        "",
        "[1]",
        "{",
        '{"architectures": ["PixArt"]}',
        '{"hidden_size": "wide"}',
        '{"num_heads": 0}',
        '{"depth": 1e9}',
    ):
        (hub / "config.json").write_text(content, encoding="utf-8")
        with pytest.raises(
            (DataError, SpecError), match=r"describes? |description of a network|cannot be built|is that of"
        ):
            network_of(open_checkpoint(hub))


# --------------------------------------------------------------------------------------------------- writing the folder


def test_the_same_again_changes_nothing_and_another_is_only_replaced_by_force(tmp_path):
    first, other = ours(tmp_path / "first"), ours(tmp_path / "other", dtype=torch.bfloat16)
    for format in ("open-sora-hub", "open-sora-training", "diffusers"):
        out = tmp_path / format
        assert not export_checkpoint(open_checkpoint(first), out, format).was_there
        before = {file: (out / file).stat().st_mtime_ns for file in tree(out)}
        assert export_checkpoint(open_checkpoint(first), out, format).was_there
        with pytest.raises(UsageError, match="holds something else: give --out another folder, or add --force"):
            export_checkpoint(open_checkpoint(other), out, format)
        assert before == {file: (out / file).stat().st_mtime_ns for file in tree(out)}
        assert not export_checkpoint(open_checkpoint(other), out, format, force=True).was_there
        assert before != {file: (out / file).stat().st_mtime_ns for file in tree(out)}
    out = tmp_path / "in"
    assert not import_checkpoint(str(first), out).was_there
    assert import_checkpoint(str(first), out).was_there
    with pytest.raises(UsageError, match="holds something else"):
        import_checkpoint(str(other), out)
    import_checkpoint(str(other), out, force=True)
    assert same(out / "weights.safetensors", other / "weights.safetensors")
    assert {each.name for each in tmp_path.iterdir() if each.name.startswith(".")} == set()


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    first, other = ours(tmp_path / "first"), ours(tmp_path / "other", dtype=torch.bfloat16)
    import_checkpoint(str(first), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    import_checkpoint(str(other), tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert same(tmp_path / "real/weights.safetensors", other / "weights.safetensors")


def test_a_folder_of_other_things_is_not_replaced_even_by_force(tmp_path):
    first = ours(tmp_path / "first")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letters.txt").write_text("dear", encoding="utf-8")
    for force in (False, True):
        with pytest.raises(UsageError, match=r"is there and holds other things \(letters\.txt\)"):
            import_checkpoint(str(first), tmp_path / "home", force=force)
    with pytest.raises(UsageError, match="is a file"):
        import_checkpoint(str(first), tmp_path / "home/letters.txt", force=True)
    with pytest.raises(UsageError, match="is what is read"):
        import_checkpoint(str(first), first, force=True)
    assert tree(tmp_path / "home") == ["letters.txt"]


@pytest.mark.parametrize("states", [3, [], "x", None])
def test_a_provenance_that_tells_no_place_in_training_is_passed_over(tmp_path, states):
    import_checkpoint(str(ours(tmp_path / "first")), tmp_path / "out")
    (tmp_path / "out/provenance.json").write_text(json.dumps({"running_states": states}), encoding="utf-8")
    assert open_checkpoint(tmp_path / "out").step is None


def test_what_a_kill_left_beside_the_folder_is_taken_away_by_the_next(tmp_path):
    first = ours(tmp_path / "first")
    import_checkpoint(str(first), tmp_path / "out")
    half = tmp_path / ".out.new"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "out").rename(tmp_path / ".out.before")  # killed between the two renames of a replacement
    assert import_checkpoint(str(first), tmp_path / "out").was_there
    assert tree(tmp_path / "out") == ["config.json", "provenance.json", "weights.safetensors"]
    assert not half.exists()
    assert not (tmp_path / ".out.before").exists()


def test_two_processes_do_not_write_the_same_folder(tmp_path):
    import fcntl

    first = ours(tmp_path / "first")
    (tmp_path / ".out.new").mkdir()
    lock = os.open(tmp_path / ".out.new", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(TryLater, match="is being written by another process"):
            import_checkpoint(str(first), tmp_path / "out")
        assert (tmp_path / ".out.new").exists()
    finally:
        os.close(lock)
    import_checkpoint(str(first), tmp_path / "out")


def test_where_it_came_from_is_kept_with_its_hashes(tmp_path):
    import hashlib

    first = ours(tmp_path / "first", ema=True)
    import_checkpoint(str(first), tmp_path / "out")
    provenance = json.loads((tmp_path / "out/provenance.json").read_text(encoding="utf-8"))
    assert provenance["from"] == str(first)
    assert provenance["layout"] == "bricks"
    assert {each["file"]: each["sha256"] for each in provenance["files"]} == {
        name: hashlib.sha256((first / name).read_bytes()).hexdigest()
        for name in ("weights.safetensors", "ema.safetensors")
    }


def test_a_checkpoint_of_a_path_has_no_steps(tmp_path):
    with (
        pytest.raises(UsageError, match="has no steps to choose from"),
        find_checkpoint(str(ours(tmp_path / "first")), None, 3),
    ):
        pass


def test_a_checkpoint_is_read_by_its_headings_alone_before_it_is_used(tmp_path):
    checkpoint = open_checkpoint(ours(tmp_path / "first"))
    assert isinstance(checkpoint, Checkpoint)
    shutil.rmtree(tmp_path / "first")
    assert network_of(checkpoint).shape == whole(TINY)


# ------------------------------------------------------------------------------------------------------- another family


@pytest.fixture
def wan(tmp_path) -> Path:
    """A pipeline's folder as Wan is published: transformer and its config."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8}
    network = WanTransformer3DModel(**shape, freq_dim=16, ffn_dim=16, num_layers=2)
    network.save_pretrained(tmp_path / "wan/transformer")
    return tmp_path / "wan"


def test_wan_goes_in_and_out_through_diffusers_bit_by_bit(wan, tmp_path, capsys):
    import_checkpoint(str(wan), tmp_path / "in")
    was = wan / "transformer/diffusion_pytorch_model.safetensors"
    assert same(tmp_path / "in/weights.safetensors", was)
    export_checkpoint(open_checkpoint(tmp_path / "in"), tmp_path / "out", "diffusers")
    assert same(tmp_path / "out/transformer/diffusion_pytorch_model.safetensors", was)
    assert json.loads((tmp_path / "out/model_index.json").read_text(encoding="utf-8"))["_class_name"] == "WanPipeline"
    assert capsys.readouterr().err.count("cannot be saved") == 0  # that parts stay empty is meant
    show_checkpoint(open_checkpoint(tmp_path / "in"), all_tensors=False)
    shown = capsys.readouterr().out
    assert "given: Wan, " in shown
    assert "num_attention_heads 2" in " ".join(shown.split())  # lines are broken
    assert "blocks: attn1" in shown
    assert "Every tensor of the network that its config describes is there, and no other." in shown


def test_what_wan_keeps_exact_stays_float32_when_it_becomes_narrower(wan, tmp_path):
    from bricks_core.diffusion.families import family_of

    import_checkpoint(str(wan), tmp_path / "in", dtype="bfloat16")
    kept = load_file(tmp_path / "in/weights.safetensors")
    was = load_file(wan / "transformer/diffusion_pytorch_model.safetensors")
    exact = {name for name, tensor in kept.items() if tensor.dtype == torch.float32}
    assert "blocks.0.scale_shift_table" in exact
    assert "blocks.0.attn1.to_q.weight" not in exact
    assert all(torch.equal(kept[name], was[name]) for name in exact)
    config = json.loads((tmp_path / "in/config.json").read_text(encoding="utf-8"))
    network = family_of(config).load(tmp_path / "in/weights.safetensors", config, dtype=torch.bfloat16)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


def test_wan_with_a_wrong_tensor_and_for_open_sora_is_refused(wan, tmp_path):
    checkpoint = open_checkpoint(wan)
    with pytest.raises(UsageError, match="is Open-Sora's and holds STDiT2"):
        export_checkpoint(checkpoint, tmp_path / "out", "open-sora-hub")
    file = wan / "transformer/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["blocks.1.attn2.to_k.bias"]
    save_file(state, file)
    with pytest.raises(DataError, match=r"not of its config\.json: blocks\.1\.attn2\.to_k\.bias is missing"):
        import_checkpoint(str(wan), tmp_path / "in")
