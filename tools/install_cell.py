# @title Install the book's package: run this cell first
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
from importlib import metadata

# The wheel comes with the book: it lies beside the notebooks and is published with the pages.
WHEEL = "$wheel"
ADDRESS = "$address"
EXTRAS = "$extras"  # what this chapter needs besides torch and numpy

places = [pathlib.Path("../..", WHEEL), pathlib.Path(pathlib.Path(WHEEL).name)]
source = next((place.resolve().as_uri() for place in places if place.exists()), ADDRESS)
if not source:
    raise FileNotFoundError(f"Put {WHEEL}, which comes with the book, beside this notebook.")

# What is here stays as it is: a hosted notebook breaks when its torch or numpy is replaced.
kept = {n: metadata.version(n) for n in ("torch", "numpy") if importlib.util.find_spec(n)}
with tempfile.TemporaryDirectory() as folder:
    pins = pathlib.Path(folder, "keep.txt")
    pins.write_text("\n".join(f"{name}=={version}" for name, version in kept.items()))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(pins)]
    command += [f"coursepkg[{EXTRAS}] @ {source}"]
    done = subprocess.run(command, capture_output=True, text=True)
if done.returncode:
    raise RuntimeError(f"The package could not be installed. pip says:\n{done.stderr}")
importlib.invalidate_caches()

print("Installed: coursepkg", metadata.version("coursepkg"), "from", source)
for name in ("torch", "numpy"):
    print("Left as it was:" if name in kept else "Installed:", name, metadata.version(name))
