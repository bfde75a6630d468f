"""A stand-in for NVIDIA's driver library, so that tests see GPUs, or a driver that fails, on a machine without them.

    library = build_cuda_stub(tmp_path)
    subprocess.run([sys.executable, "-c", code], env=cuda_stub_environment(library, H100))

The library reads these variables, which ``cuda_stub_environment`` sets:

- CUDA_STUB_GPUS: the GPUs, each as name|compute capability|bytes of memory, separated by semicolons.
- CUDA_STUB_INIT: what cuInit returns, 0 by default. Without GPUs, it returns CUDA_ERROR_NO_DEVICE, 100, instead of 0.

It can be found only in a process that starts with the folder in LD_LIBRARY_PATH. No GPU computes anything: where
PyTorch or MXNet is built with CUDA, they fail as with a broken driver.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from needs import COMPILER

K80 = "Tesla K80|3.7|11996954624"
V100 = "Tesla V100-SXM2-16GB|7.0|16935419904"
T4 = "Tesla T4|7.5|15655829504"
H100 = "NVIDIA H100 80GB HBM3|9.0|85028765696"

_COMPILERS = ("cc", "gcc", "clang")
_SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101 };
enum { MAX_GPUS = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };

static struct { char name[128]; int major, minor; unsigned long long bytes; } gpus[MAX_GPUS];
static int num_gpus = -1;

static int number(const char *variable, int otherwise) {
    const char *text = getenv(variable);
    return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) {
    int result = number("CUDA_STUB_INIT", SUCCESS);
    if (flags || result) return flags ? INVALID_VALUE : result;
    const char *text = getenv("CUDA_STUB_GPUS");
    num_gpus = 0;
    while (text && *text && num_gpus < MAX_GPUS) {
        if (sscanf(text, "%127[^|]|%d.%d|%llu", gpus[num_gpus].name, &gpus[num_gpus].major, &gpus[num_gpus].minor,
                   &gpus[num_gpus].bytes) != 4) abort();
        num_gpus++;
        text = strchr(text, ';');
        if (text) text++;
    }
    return num_gpus ? SUCCESS : NO_DEVICE;
}

static int check(int device) {
    if (num_gpus < 0) return NOT_INITIALIZED;
    return device >= 0 && device < num_gpus ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetCount(int *count) {
    if (num_gpus < 0) return NOT_INITIALIZED;
    *count = num_gpus;
    return SUCCESS;
}

int cuDeviceGet(int *device, int index) {
    *device = index;
    return check(index);
}

int cuDeviceGetName(char *name, int length, int device) {
    if (check(device) == SUCCESS) snprintf(name, length, "%s", gpus[device].name);
    return check(device);
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    if (check(device) == SUCCESS) *bytes = gpus[device].bytes;
    return check(device);
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (check(device) != SUCCESS) return check(device);
    if (attribute == CAPABILITY_MAJOR) *value = gpus[device].major;
    else if (attribute == CAPABILITY_MINOR) *value = gpus[device].minor;
    else return INVALID_VALUE;
    return SUCCESS;
}

int cuGetErrorName(int code, const char **name) {
    *name = code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : NULL;
    return *name ? SUCCESS : INVALID_VALUE;
}
"""


def build_cuda_stub(folder: Path) -> Path:
    """Compile the stand-in into ``folder`` and return its path, or skip the test where there is no C compiler."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip(COMPILER)
    library = folder / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=_SOURCE, text=True, check=True)
    return library


def cuda_stub_environment(library: Path, *gpus: str, init: int = 0) -> dict[str, str]:
    """Return this process's environment with ``library`` as the driver, ``gpus``, and the variables of this module."""
    path = os.environ.get("LD_LIBRARY_PATH")
    return {
        **os.environ,
        "LD_LIBRARY_PATH": f"{library.parent}:{path}" if path else str(library.parent),
        "CUDA_STUB_GPUS": ";".join(gpus),
        "CUDA_STUB_INIT": str(init),
    }
