#!/usr/bin/env bash
# The original's line: docs/guides/original-lines.md.
exec zerosearch original ppo "$@"
