#!/bin/sh
# The command of the example: reads a path, as a JSON string, and writes checksum, size and name of that file.
set -eu

path=$(cat)
path=${path#\"}
path=${path%\"}
cksum "$path"
