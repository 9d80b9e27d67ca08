"""Pixels to latents and back: what the transformer learns is made here.

Letters: T frames, H and W pixels, t latents in time, C channels, h = floor(H / 8) and w = floor(W / 8) latents.

Three codecs behind one interface:
- `SdVae`: Stable Diffusion's autoencoder (arXiv:2112.10752 section 3.1) frame by frame, as Open-Sora 1.1 has it, C = 4;
- `PatchDct`: built in, no weights: four DCT coefficients of every 8x8 patch, C = 4;
- `WanVae`: Wan's autoencoder (arXiv:2503.20314 section 4.1), which shrinks time too: T = 4k + 1 frames are t = k + 1
  latents of 16 channels, the first frame alone and then four by four, each told of the frames before and of none after.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bricks_core.errors import DataError, SpecError
from bricks_core.models.chunks import in_chunks
from bricks_core.models.pretrained import DTYPES, explained, frozen, name_of, part_of, weights_digest
from bricks_core.models.tensor_files import aligned
from bricks_core.spec.latents import CodecSpec

PATCH = 8
LATENT_CHANNELS = 4


class LatentCodec(ABC):
    """Frames <-> latents. `id` says what made the latents (kind, weights, scale, type). It goes into the index, and
    latents of one id are never mixed with those of another.

    With a `time_stride` of 1 each frame is by itself, and they go in chunks of `chunk_frames` so that memory does not
    grow with T. Otherwise the frames of one call are one video, from its first frame on.
    """

    id: str
    channels: int = LATENT_CHANNELS
    space_stride: int = PATCH
    time_stride: int = 1

    def __init__(self, device: torch.device | str, chunk_frames: int):
        self.device = torch.device(device)
        self.chunk_frames = chunk_frames

    def num_latents(self, num_frames: int) -> int:
        """Latents in time of so many frames.

        Raises SpecError: they are no whole number of latents.
        """
        if num_frames < 1 or (num_frames - 1) % self.time_stride:
            near = self.whole_frames(num_frames)
            raise SpecError(
                f"{num_frames} frames are no whole number of latents: this codec joins {self.time_stride} frames after "
                f"the first. Take {near} or {near + self.time_stride}."
            )
        return 1 + (num_frames - 1) // self.time_stride

    def whole_frames(self, num_frames: int) -> int:
        """As many frames as make whole latents, from the first on: of 18, every fourth, 17."""
        return 1 + max(num_frames - 1, 0) // self.time_stride * self.time_stride

    @torch.no_grad()
    def encode(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 (T, H, W, 3), or float (T, 3, H, W) in [-1, 1] -> float32 (t, C, floor(H/8), floor(W/8)).

        Sides that are no multiple of 8 lose up to 7 pixels at the bottom and the right: 426 wide comes back 424 wide.
        Raises DataError for any other shape or type, SpecError for frames that make no whole latents.
        """
        frames = torch.from_numpy(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
        whole = frames.dtype == torch.uint8
        channels, sides = (-1, frames.shape[1:3]) if whole else (1, frames.shape[2:])
        if frames.ndim != 4 or frames.shape[channels] != 3 or not (whole or frames.is_floating_point()):
            raise DataError(
                f"Frames are uint8 (T, H, W, 3) or float (T, 3, H, W), these are {frames.dtype} {tuple(frames.shape)}."
            )
        stride = self.space_stride
        if min(sides) < stride:
            raise DataError(f"Frames of {sides[0]}x{sides[1]} pixels are smaller than one latent ({stride}x{stride}).")
        if not len(frames):
            return torch.zeros(0, self.channels, sides[0] // stride, sides[1] // stride, device=self.device)
        self.num_latents(len(frames))
        return self._in_chunks(lambda chunk: self._encode(aligned(chunk.to(self.device))), frames)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """float (t, C, h, w) -> float32 (T, 3, 8h, 8w) around [-1, 1]; who writes pictures clamps.

        Raises DataError for any other shape.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels or min(latents.shape[2:]) < 1:
            raise DataError(f"Latents are (T, {self.channels}, h, w), these are {tuple(latents.shape)}.")
        if not len(latents):
            height, width = (side * self.space_stride for side in latents.shape[2:])
            return torch.zeros(0, 3, height, width, device=self.device)
        return self._in_chunks(lambda chunk: self._decode(aligned(chunk.to(self.device).float())), latents)

    @abstractmethod
    def _encode(self, frames: Tensor) -> Tensor:
        """uint8 (T, H, W, 3) or float (T, 3, H, W) in [-1, 1] -> float32 (t, C, h, w), for a chunk."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """float32 (t, C, h, w) -> float32 (T, 3, 8h, 8w), for a chunk."""

    def _in_chunks(self, work: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        return in_chunks(work, frames, self.chunk_frames if self.time_stride == 1 else len(frames))


def load_codec(spec: CodecSpec, device: torch.device | str = "cpu") -> LatentCodec:
    """The codec that the run file asks for. Raises SpecError or ServiceUnavailable when its weights cannot be had."""
    if spec.kind == "sd-vae":
        return SdVae(spec.model, spec.revision, spec.dtype, device, spec.chunk_frames)
    if spec.kind == "wan-vae":
        return WanVae(spec.model, spec.revision, spec.dtype, device)
    return PatchDct(device, spec.chunk_frames)


def _floats(frames: Tensor) -> Tensor:
    """uint8 (T, H, W, 3) or float (T, 3, H, W) -> float32 (T, 3, H, W) in [-1, 1]."""
    if frames.dtype == torch.uint8:
        return frames.permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return frames.float()


class SdVae(LatentCodec):
    """diffusers' AutoencoderKL from a hub id or a folder; latents are multiplied by its scaling factor (0.18215).

    The mean of the posterior is kept, not a sample of it (Open-Sora samples). These autoencoders are trained with next
    to no weight on the prior, so their posterior is a needle whose width should not matter (our estimate; not yet
    measured on the published weights), and a mean has the same bytes on every run.
    """

    def __init__(
        self,
        model: str,
        revision: str = "",
        dtype: str = "float32",
        device: torch.device | str = "cpu",
        chunk_frames: int = 4,
    ):
        from diffusers import AutoencoderKL  # seconds and hundreds of megabytes that the built-in codec does without

        super().__init__(device, chunk_frames)
        with explained("The codec's sd-vae", model):
            vae: Any = AutoencoderKL.from_pretrained(model, revision=revision or None, torch_dtype=DTYPES[dtype])
        shrinks = 2 ** (len(vae.config.block_out_channels) - 1)
        if (shrinks, vae.config.latent_channels, vae.config.shift_factor) != (PATCH, LATENT_CHANNELS, None):
            raise SpecError(
                f"The autoencoder {model} makes {vae.config.latent_channels} channels at 1/{shrinks} of the size; the "
                "transformer takes 4 channels at 1/8, unshifted: use one of Stable Diffusion's, such as "
                "stabilityai/sd-vae-ft-ema."
            )
        self.scale = float(vae.config.scaling_factor)
        self.id = f"sd-vae:{name_of(model)}:{weights_digest(vae)}:scale={self.scale:g}:{dtype}:mean"
        self.vae = frozen(vae, self.device)

    def _encode(self, frames: Tensor) -> Tensor:
        return self.vae.encode(_floats(frames).to(self.vae.dtype)).latent_dist.mode().float() * self.scale

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode((latents / self.scale).to(self.vae.dtype)).sample.float()


class WanVae(LatentCodec):
    """diffusers' AutoencoderKLWan from a hub id or a folder, its own or a whole pipeline's (then in vae/).

    Latents are brought to about zero mean and unit variance, channel by channel, by the means and deviations in its
    config, as diffusers' pipelines do. The mean of the posterior is kept, as in `SdVae`.

    A prefix of a video's latents is the latents of the prefix, so that training reads clips from their first frame on.
    """

    def __init__(self, model: str, revision: str = "", dtype: str = "float32", device: torch.device | str = "cpu"):
        from diffusers import AutoencoderKLWan

        super().__init__(device, chunk_frames=1)
        place = part_of(model, "vae")
        with explained("The codec's wan-vae", model):
            vae: Any = AutoencoderKLWan.from_pretrained(
                model, subfolder=place, revision=revision or None, torch_dtype=DTYPES[dtype]
            )
        self.channels, self.space_stride = vae.config.z_dim, vae.config.scale_factor_spatial
        self.time_stride = vae.config.scale_factor_temporal
        if (self.time_stride, self.space_stride) != (4, PATCH):
            raise SpecError(
                f"The autoencoder {model} shrinks time by {self.time_stride} and sides by {self.space_stride}; 4 and 8 "
                "are known here: use that of Wan 2.1, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
            )
        mean, deviation = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
        scale = hashlib.sha256(repr((vae.config.latents_mean, vae.config.latents_std)).encode()).hexdigest()[:8]
        self.id = f"wan-vae:{name_of(model)}:{weights_digest(vae)}:scale={scale}:{dtype}:mean"
        self._mean, self._deviation = (each.to(self.device)[:, None, None, None] for each in (mean, deviation))
        self.vae = frozen(vae, self.device)

    def _encode(self, frames: Tensor) -> Tensor:
        video = _floats(frames).transpose(0, 1)[None].to(self.vae.dtype)  # (1, 3, T, H, W)
        latents = self.vae.encode(video).latent_dist.mode()[0].float()
        return ((latents - self._mean) / self._deviation).transpose(0, 1)

    def _decode(self, latents: Tensor) -> Tensor:
        latents = latents.transpose(0, 1) * self._deviation + self._mean
        pixels: Tensor = self.vae.decode(latents[None].to(self.vae.dtype)).sample
        return pixels[0].transpose(0, 1).float()


# Red, green and blue -> brightness, red against blue, green against both: orthonormal, and for natural pictures nearly
# their principal components (Ohta, Kanade, Sakai 1980, "Color information for region segmentation").
_COLOURS = torch.tensor([[1, 1, 1], [1, 0, -1], [-0.5, 1, -0.5]], dtype=torch.float64)
_COLOURS /= _COLOURS.norm(dim=1, keepdim=True)

# Rows 0 and 1 of the orthonormal DCT-II of 8 samples: the mean, and the slope from one side to the other.
_MEAN = np.full(PATCH, PATCH**-0.5)
_SLOPE = np.cos(np.pi * (np.arange(PATCH) + 0.5) / PATCH) / 2

# latent = (coefficient - shift) / scale. Measured over 84 frames of seven films (two of a real brick set, a generated
# brick film, two open films, two of real things) at 256x144: means -5.4, 1.3, 0.2, 0.0, deviations 5.7, 2.1, 1.1, 0.9;
# over four more generated brick films, which are more colourful: means -3.3, 0.5, 0.2, 0.0, deviations 6.0, 3.6, 1.5,
# 1.1. The scales lie between. Only brightness is shifted: films are dark, but what has no colour should have colour 0.
_SHIFT = torch.tensor([-5.0, 0.0, 0.0, 0.0])
_SCALE = torch.tensor([5.5, 2.8, 1.3, 1.0])

# How far neighbouring pixels know of each other, in pixels: see `_expectation`.
_REACH = 30.0
_LEVEL = 1e4


class PatchDct(LatentCodec):
    """Four coefficients of an orthonormal transform of every 8x8x3 patch, about zero mean and unit variance.

    Channels: 0 brightness, 1 red against blue, 2 green against both (each the patch's mean); 3 the slope of brightness
    from the left of the patch to its right. Across and not down, because what stands in brick films stands upright and
    walks sideways; and last, because guidance as Open-Sora has it leaves the last channel alone.

    Decoding is the picture that one expects given the coefficients, when neighbouring pixels are alike
    (`_expectation`): 1.4 to 5 dB nearer to the original than the plain inverse, and without its blocks. It keeps
    the coefficients, so encode(decode(z)) = z for any z, noise included.
    """

    id = "patch-dct:1"

    def __init__(self, device: torch.device | str = "cpu", chunk_frames: int = 16):
        super().__init__(device, chunk_frames)
        self._colours = _COLOURS.float().to(self.device)
        self._shift = _SHIFT.to(self.device)[:, None, None]
        self._scale = _SCALE.to(self.device)[:, None, None]
        self._basis = torch.from_numpy(np.stack([_MEAN, _SLOPE])).float().to(self.device)

    def _encode(self, frames: Tensor) -> Tensor:
        rows = _sums_of_rows(frames).unflatten(3, (-1, PATCH)) * float(_MEAN[0])
        colours = torch.einsum("kc,tchwb->tkhwb", self._colours, rows)
        means, slopes = colours @ self._basis[0], colours[:, 0] @ self._basis[1]
        return (torch.cat([means, slopes[:, None]], dim=1) - self._shift) / self._scale

    def _decode(self, latents: Tensor) -> Tensor:
        h, w = latents.shape[2:]
        coefficients = latents * self._scale + self._shift
        down, across = self._expected(h, False), self._expected(w, False)
        chroma = down @ coefficients[:, 1:3] @ across.T
        # (T, h, 2w): mean and slope of a patch stand side by side, as the columns of the matrix expect them.
        both = torch.stack([coefficients[:, 0], coefficients[:, 3]], dim=-1).flatten(2)
        brightness = down @ both @ self._expected(w, True).T
        return torch.einsum("kc,tkhw->tchw", self._colours, torch.cat([brightness[:, None], chroma], dim=1))

    def _expected(self, num_patches: int, slopes: bool) -> Tensor:
        return torch.tensor(_expectation(num_patches, slopes), device=self.device)


def _sums_of_rows(frames: Tensor) -> Tensor:
    """Sums over the eight rows of each patch -> float32 (T, 3, h, 8w): all that follows is an eighth of the work."""
    if frames.dtype != torch.uint8:
        h, w = frames.shape[2] // PATCH, frames.shape[3] // PATCH
        return frames[:, :, : h * PATCH, : w * PATCH].float().unflatten(2, (h, PATCH)).sum(dim=3)
    # Bytes are summed as whole numbers: exact, and 30 times as fast as making every pixel a float first.
    h, w = frames.shape[1] // PATCH, frames.shape[2] // PATCH
    patches = frames[:, : h * PATCH, : w * PATCH].reshape(len(frames), h, PATCH, w * PATCH * 3)
    sums = patches.to(torch.int16).sum(dim=2, dtype=torch.int16).float() / 127.5 - PATCH
    return sums.unflatten(2, (w * PATCH, 3)).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def _expectation(num_patches: int, slopes: bool) -> np.ndarray:
    """The line of pixels that one expects given its patches' coefficients: float32 (8 n, n), or (8 n, 2 n) with slopes.

    A line x of pixels with covariance R, seen as coefficients c = E x, has the conditional mean R E' (E R E')^-1 c
    (Gaussian conditioning; Rasmussen and Williams 2006, eq. A.6). As E times that matrix is the identity, the picture
    has exactly the coefficients it was made from. R is exp(-d/r), the model of neighbouring pixels for which the DCT
    is nearly the best transform (Ahmed, Natarajan, Rao 1974), over a level that it expects nothing of (a large
    constant), so that what is flat comes back flat. Smoother models (Matern 3/2, 5/2) were as near on photographs, but
    their rings around flat colours are wider. The covariance of a picture is taken as the product of that of its
    rows and that of its columns, so that a matrix on either side is enough.
    """
    basis = np.stack([_MEAN, _SLOPE] if slopes else [_MEAN])
    seen = np.kron(np.eye(num_patches), basis)
    pixels = np.arange(PATCH * num_patches)
    distances = np.abs(pixels[:, None] - pixels[None]) / _REACH
    known = (_LEVEL + np.exp(-distances)) @ seen.T
    return np.linalg.solve(seen @ known, known.T).T.astype(np.float32)
