# All images at once: docker buildx bake            (docs/images.md says more)
# Some of them:       docker buildx bake controller clip
# To your registry:   REGISTRY=registry.example.org/you VERSION=0.1.0 docker buildx bake --push
#
# Every variable below can be set in the environment.

variable "REGISTRY" {
  default = "ghcr.io/bricks"
}
variable "VERSION" {
  default = "0.1.0"
}
# The commit: it is the second tag of every image, and in every manifest that an image writes.
variable "REVISION" {
  default = ""
}
# When that commit was made, as seconds since 1970 and as RFC 3339: images are the same whenever they are built.
variable "SOURCE_DATE_EPOCH" {
  default = ""
}
variable "CREATED" {
  default = ""
}
# A release names it by digest: python:3.11-slim-bookworm@sha256:…
variable "BASE" {
  default = "python:3.11-slim-bookworm"
}
# Debian's packages as of a moment: 20261101T000000Z
variable "APT_SNAPSHOT" {
  default = ""
}
# cpu, cu126, cu130: builds of PyTorch's own index. Empty: PyPI's, which is for CUDA 13.
variable "TORCH_FLAVOUR" {
  default = ""
}
variable "TORCH_INDEX" {
  default = "https://download.pytorch.org/whl"
}
# Open-Sora 1.1 into the image that trains, for side-by-side runs: 40 digits of a commit.
variable "OPEN_SORA_COMMIT" {
  default = ""
}
variable "PLATFORMS" {
  default = "linux/amd64"
}
# A repository for the build's cache, such as registry.example.org/you/bricks-cache. Empty: only the builder's own.
variable "CACHE" {
  default = ""
}

group "default" {
  targets = ["controller", "ingest", "clip", "score", "caption", "latents", "train", "evaluate"]
}

# bricks-clip:0.1.0 and, where it is known, bricks-clip:<commit>: the latter is never another image later.
function "tags" {
  params = [name]
  result = compact([
    "${REGISTRY}/bricks-${name}:${VERSION}",
    REVISION == "" ? "" : "${REGISTRY}/bricks-${name}:${REVISION}",
  ])
}

# What all builds have in common.
target "_every" {
  context   = "."
  platforms = split(",", PLATFORMS)
  args = {
    SOURCE_DATE_EPOCH = SOURCE_DATE_EPOCH
  }
  output = ["type=image,rewrite-timestamp=true,compression=zstd,oci-mediatypes=true"]
}

# The lower floors. They get no name of their own: a registry holds their layers as parts of the images above.
target "_base" {
  inherits   = ["_every"]
  dockerfile = "images/base/Dockerfile"
  args = {
    BASE          = BASE
    APT_SNAPSHOT  = APT_SNAPSHOT
    TORCH_FLAVOUR = TORCH_FLAVOUR
    TORCH_INDEX   = TORCH_INDEX
  }
}

target "base" {
  inherits   = ["_base"]
  target     = "base"
  cache-from = CACHE == "" ? [] : ["type=registry,ref=${CACHE}:base"]
  cache-to   = CACHE == "" ? [] : ["type=registry,ref=${CACHE}:base,mode=max"]
}

target "torch" {
  inherits   = ["_base"]
  target     = "torch"
  cache-from = CACHE == "" ? [] : ["type=registry,ref=${CACHE}:torch"]
  cache-to   = CACHE == "" ? [] : ["type=registry,ref=${CACHE}:torch,mode=max"]
}

target "code" {
  inherits = ["_base"]
  target   = "code"
}

# An image that goes to the registry. Who built it from what, and what is in it, goes along as attestations.
target "_image" {
  inherits = ["_every"]
  args = {
    CREATED  = CREATED
    REVISION = REVISION
    VERSION  = VERSION
  }
  attest = ["type=provenance,mode=max", "type=sbom"]
}

target "_without_torch" {
  inherits = ["_image"]
  contexts = {
    bricks-base = "target:base"
    bricks-code = "target:code"
  }
}

target "_with_torch" {
  inherits = ["_image"]
  contexts = {
    bricks-torch = "target:torch"
    bricks-code  = "target:code"
  }
}

target "controller" {
  inherits   = ["_without_torch"]
  dockerfile = "images/controller/Dockerfile"
  tags       = tags("controller")
}

target "ingest" {
  inherits   = ["_without_torch"]
  dockerfile = "images/ingest/Dockerfile"
  tags       = tags("ingest")
}

target "clip" {
  inherits   = ["_without_torch"]
  dockerfile = "images/clip/Dockerfile"
  tags       = tags("clip")
}

target "score" {
  inherits   = ["_without_torch"]
  dockerfile = "images/score/Dockerfile"
  tags       = tags("score")
}

target "caption" {
  inherits   = ["_without_torch"]
  dockerfile = "images/caption/Dockerfile"
  tags       = tags("caption")
}

target "latents" {
  inherits   = ["_with_torch"]
  dockerfile = "images/latents/Dockerfile"
  tags       = tags("latents")
}

target "train" {
  inherits   = ["_with_torch"]
  dockerfile = "images/train/Dockerfile"
  tags       = tags("train")
  args = {
    OPEN_SORA_COMMIT = OPEN_SORA_COMMIT
    TORCH_FLAVOUR    = TORCH_FLAVOUR
    TORCH_INDEX      = TORCH_INDEX
  }
}

target "evaluate" {
  inherits   = ["_with_torch"]
  dockerfile = "images/evaluate/Dockerfile"
  tags       = tags("evaluate")
}
