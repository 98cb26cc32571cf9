#!/bin/bash
# Counts lines, words and bytes of whatever comes on standard input.
read -r lines words bytes < <(wc)
printf '{"lines":%d,"words":%d,"bytes":%d}\n' "$lines" "$words" "$bytes"
