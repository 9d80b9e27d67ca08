"""Runs in a container of an image, with nothing but that image: says as JSON what is in it and what may be written.

python inside.py MODULE...       imports them (a name that ends with .* with all below it)
"""

import contextlib
import importlib
import importlib.util
import json
import os
import pkgutil
import sys

NOT_OURS = ("/proc", "/sys", "/dev", "/inside.py")
WATCHED = ("av", "cv2", "diffusers", "kopf", "kubernetes", "openai", "pip", "torch", "transformers", "wandb")


def every(names):
    for name in names:
        if name.endswith(".*"):
            package = importlib.import_module(name[:-2])
            yield from (found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."))
        else:
            yield name


def writable(folder="/"):
    """The uppermost folders, and files elsewhere, that this user may change."""
    for entry in os.scandir(folder):
        if entry.path in NOT_OURS or entry.is_symlink():
            continue
        if os.access(entry.path, os.W_OK):
            yield entry.path
        elif entry.is_dir() and os.access(entry.path, os.R_OK | os.X_OK):
            yield from writable(entry.path)


def main():
    failed, uncompiled = {}, []
    with contextlib.redirect_stdout(sys.stderr):
        for name in list(every(sys.argv[1:])):
            try:
                importlib.import_module(name)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
        for module in list(sys.modules.values()):
            file, cached = getattr(module, "__file__", None) or "", getattr(module, "__cached__", None)
            if file.startswith(sys.prefix) and file.endswith(".py") and cached and not os.path.exists(cached):
                uncompiled.append(file)
    found = {
        "user": [os.getuid(), os.getgid()],
        "prefix": sys.prefix,
        "failed": failed,
        "uncompiled": uncompiled,
        "there": [name for name in WATCHED if importlib.util.find_spec(name)],
        "writable": sorted(writable()),
        "home": os.path.expanduser("~"),
    }
    print(json.dumps(found))


main()
