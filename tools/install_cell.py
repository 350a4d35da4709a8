# @title Install the book's package: run this cell first
# The wheel comes with the book: it lies beside the notebooks and is published with the pages.
WHEEL = "$wheel"
ADDRESS = "$address"
EXTRAS = "$extras"  # what this chapter needs besides torch and numpy


def install() -> None:
    import importlib.util
    import pathlib
    import subprocess
    import sys
    import tempfile
    from importlib import metadata

    name = WHEEL.rpartition("/")[2]
    places = [pathlib.Path(place) for place in (f"../../{WHEEL}", WHEEL, name)]
    source = next((place.resolve().as_uri() for place in places if place.exists()), ADDRESS)
    if not source:
        raise FileNotFoundError(f"Put {name} beside this notebook: the book's page offers it.")

    # What is here stays as it is: a hosted notebook breaks when its torch or numpy is replaced.
    heavy = ("torch", "numpy")
    found = {name: next(iter(metadata.distributions(name=name)), None) for name in heavy}
    kept = {name: package.version for name, package in found.items() if package}
    if not importlib.util.find_spec("pip"):
        subprocess.run([sys.executable, "-m", "ensurepip"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        pins = pathlib.Path(folder, "keep.txt")
        pins.write_text("\n".join(f"{name}=={version}" for name, version in kept.items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(pins)]
        command += [f"coursepkg[{EXTRAS}] @ {source}"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"The package could not be installed. pip says:\n{done.stderr}")
    importlib.invalidate_caches()

    version = metadata.version("coursepkg")
    print("Installed: coursepkg", version, "from", source)
    for name in heavy:
        print("Left as it was:" if name in kept else "Installed:", name, metadata.version(name))
    loaded = sys.modules.get("coursepkg")
    if loaded and loaded.__version__ != version:
        print("Now restart the kernel: it still works with coursepkg", loaded.__version__)


install()
