"""A real language model on loopback: llama.cpp's server in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SERVE = """
import sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
if sys.argv[2:]:
    params.chat_template = sys.argv[2]
params.use_jinja = True
params.n_ctx, params.n_parallel, params.port = 4096, 1, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def serving(model: Path, folder: Path, template: str | None = None) -> Iterator[str]:
    """Serve a GGUF file, with a chat template of its own or this one; gives the endpoint's URL."""
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-c", _SERVE, str(model), *([] if template is None else [template])]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            try:
                for line in process.stdout:
                    if line.startswith("listening "):
                        yield f"{line.split()[1]}/v1"
                        break
                else:
                    pytest.fail(f"the server did not start: {(folder / 'log').read_text()[-2000:]}")
            finally:
                process.kill()
                process.wait()
