#!/bin/sh
# Builds llama.cpp, which the source archive of xllamacpp holds, and the bridge: `sh install.sh ENVIRONMENT`.
set -eu
here=$(dirname "$0")
# The system's cmake and ninja, or those of the environment.
PATH=$PATH:$1/bin
if ! ls "$1"/xllamacpp-*/thirdparty > /dev/null 2>&1; then
    "$1/bin/pip" download --quiet --no-deps --no-binary xllamacpp --requirement "$here/source.txt" --dest "$1"
    tar xzf "$1"/xllamacpp-*.tar.gz -C "$1"
fi
source=$(cd "$1" && pwd)/$(basename "$1"/xllamacpp-*/)/thirdparty/llama.cpp
cmake -G Ninja -S "$here" -B "$1/objects" -DLLAMA_CPP="$source"
ninja -C "$1/objects" ${JOBS:+-j$JOBS} bridge
