"""Makes the files in files/ with NumPy itself: each holds 6 numbers in shape (2, 3), or what its name says.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6
    venv/bin/python tensor/tests/golden/numpy_files.py
"""

import pathlib

import numpy as np

assert np.__version__ == "2.4.6", np.__version__
HERE = pathlib.Path(__file__).with_name("files")
NUMBERS = np.array([[0, 1, 2.5], [-3, 200, 0]])
KINDS = {"bool": np.bool_, "u8": np.uint8, "i32": np.int32, "i64": np.int64, "f16": np.float16, "f32": np.float32, "f64": np.float64}
with np.errstate(invalid="ignore"):
    arrays = {name: np.abs(NUMBERS).astype(kind) if name == "u8" else NUMBERS.astype(kind) for name, kind in KINDS.items()}
for name, array in arrays.items():
    np.save(HERE / f"{name}.npy", array)
np.save(HERE / "fortran.npy", np.asfortranarray(arrays["f32"]))
np.save(HERE / "scalar.npy", np.array(2.5))
np.save(HERE / "empty.npy", np.zeros((0, 3), dtype=np.int64))
np.save(HERE / "line.npy", np.arange(1000, dtype=np.int32)[::100])
np.save(HERE / "big_endian.npy", arrays["f32"].astype(">f4"))
np.save(HERE / "records.npy", np.zeros(2, dtype=[("a", "<f4"), ("b", "<i4")]))
np.save(HERE / "void.npy", np.zeros(2, dtype="V2"))
for version in [(2, 0), (3, 0)]:
    with open(HERE / f"version{version[0]}.npy", "wb") as file:
        np.lib.format.write_array(file, arrays["f64"], version=version)
np.savez(HERE / "stored.npz", **arrays)
np.savez_compressed(HERE / "deflated.npz", a=np.zeros((40, 50), dtype=np.float32), b=arrays["i64"])
