"""llama.cpp's own server, for `serving.py`: run by a Python that has xllamacpp.

PYTHON serving_llama_cpp.py FILE.gguf --port 9000 --batch 8 --threads 2 --context 1024
"""

from __future__ import annotations

import argparse
import time

import xllamacpp


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8, help="texts at once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024, help="tokens of each text")
    options = parser.parse_args()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.model
    parameters.hostnames, parameters.port = ["127.0.0.1"], options.port
    parameters.n_parallel, parameters.n_ctx = options.batch, options.batch * options.context
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
