#!/usr/bin/env python3
"""Compiles src/backend/cuda/kernels to the PTX that the binary carries, with NVRTC from PyPI (no GPU or CUDA is needed).

    scripts/build_ptx.py            writes src/backend/cuda/ptx
    scripts/build_ptx.py --check    fails if what is there is not what the sources give
    scripts/build_ptx.py --assemble compiles it further with ptxas and lists registers and spills of every kernel
"""

import argparse
import concurrent.futures
import ctypes
import pathlib
import re
import subprocess
import sys
import zlib

# Its PTX (8.4) is taken by drivers from 550 on; a later NVRTC would ask for later drivers.
NVRTC = "nvidia-cuda-nvrtc-cu12==12.4.127"
PTXAS = "nvidia-cuda-nvcc-cu12==12.9.86"
ARCHITECTURE = "compute_80"

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "src/backend/cuda/kernels"
PTX = ROOT / "src/backend/cuda/ptx"
TOOLS = ROOT / "target/cuda-tools"

FLOATS = ["F32", "F16", "BF16"]
LANES = """Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q1_0 Q2_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL
IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4""".split()
CACHES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "ANY"]


def modules():
    """Names of PTX files, and what each is made from: a source and definitions."""
    found = {"elementwise": ("elementwise.cu", []), "mend": ("mend.cu", [])}
    for kind in FLOATS + LANES:
        options = [f"-DTYPE={kind}", f"-DLANES={int(kind in LANES)}", f"-DTILES={int(kind != 'F32')}"]
        found[f"weights_{kind.lower()}"] = ("weights.cu", options)
    for kind in CACHES:
        found[f"attention_{kind.lower()}"] = ("attention.cu", [f"-DKIND=KV_{kind}"])
    return found


def install(package, folder):
    """Unpacks a package from PyPI under target/, once."""
    place = TOOLS / re.sub(r"[^\w.]+", "-", package)
    if not place.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), package]
        subprocess.run(command, check=True)
    return place / "nvidia" / folder


class Nvrtc:
    def __init__(self):
        folder = install(NVRTC, "cuda_nvrtc") / "lib"
        self.library = ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))

    def compile(self, name, source, options):
        call = self.library
        program = ctypes.c_void_p()
        text = (KERNELS / source).read_bytes()
        assert call.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None) == 0
        options = [f"--gpu-architecture={ARCHITECTURE}", "-std=c++17", f"-I{KERNELS}", *options]
        options = [option.encode() for option in options]
        status = call.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status:
            sys.exit(f"{name}:\n{self.text(program, 'ProgramLog').decode()}")
        ptx = self.text(program, "PTX").decode()
        call.nvrtcDestroyProgram(ctypes.byref(program))
        return slim(name, ptx)

    def text(self, program, what):
        size = ctypes.c_size_t()
        assert getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        buffer = ctypes.create_string_buffer(size.value)
        assert getattr(self.library, f"nvrtcGet{what}")(program, buffer) == 0
        return buffer.value


def slim(name, ptx):
    """PTX without comments and indentation; the first line says which module it is."""
    lines = (re.sub(r"//.*", "", line).strip() for line in ptx.splitlines())
    return f"// {name}\n" + "\n".join(line for line in lines if line) + "\n"


def build(name):
    return Nvrtc().compile(name, *modules()[name])


def assemble(name):
    ptxas = install(PTXAS, "cuda_nvcc") / "bin/ptxas"
    ptxas.chmod(0o755)
    lines = []
    for architecture in ["sm_80", "sm_89", "sm_90"]:
        command = [ptxas, "-v", f"-arch={architecture}", PTX / f"{name}.ptx", "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
        for kernel, frame, stores, loads, registers in re.findall(
            r"Function properties for (\w+)\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
            r".*Used (\d+) registers",
            done.stderr,
        ):
            lines.append(f"{architecture} {name} {kernel}: {registers} registers, {stores} + {loads} bytes spilled, frame {frame}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--assemble", action="store_true")
    options = parser.parse_args()
    install(NVRTC, "cuda_nvrtc")
    names = list(modules())
    with concurrent.futures.ProcessPoolExecutor() as pool:
        if options.assemble:
            install(PTXAS, "cuda_nvcc")
            for lines in pool.map(assemble, names):
                print("\n".join(lines))
            return
        built = dict(zip(names, pool.map(build, names)))
    there = {path.stem: path.read_text() for path in PTX.glob("*.ptx")}
    if options.check:
        stale = sorted(name for name in {*built, *there} if built.get(name) != there.get(name))
        if stale:
            sys.exit(f"not what the sources give, run scripts/build_ptx.py: {', '.join(stale)}")
        return
    PTX.mkdir(exist_ok=True)
    for name in set(there) - set(built):
        (PTX / f"{name}.ptx").unlink()
    for name, text in built.items():
        (PTX / f"{name}.ptx").write_text(text)
    total = "".join(built.values()).encode()
    print(f"{len(built)} modules, {len(total) >> 10} KiB, {len(zlib.compress(total)) >> 10} KiB compressed")


if __name__ == "__main__":
    main()
