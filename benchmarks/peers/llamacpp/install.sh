#!/bin/sh
# Builds llama.cpp, which the source archive of xllamacpp holds, and the bridge: `sh install.sh ENVIRONMENT`.
set -eu
here=$(dirname "$0")
unpacked=$1/$(sed "s/==/-/" "$here/source.txt")
# The system's cmake and ninja, or those of the environment.
PATH=$PATH:$1/bin
if [ ! -d "$unpacked" ]; then
    "$1/bin/pip" download --quiet --no-deps --no-binary xllamacpp --requirement "$here/source.txt" --dest "$1"
    tar xzf "$1"/xllamacpp-*.tar.gz -C "$1"
fi
source=$(cd "$unpacked" && pwd)/thirdparty/llama.cpp
cmake -G Ninja -S "$here" -B "$1/objects" -DLLAMA_CPP="$source"
ninja -C "$1/objects" ${JOBS:+-j$JOBS} bridge
