#!/usr/bin/env bash
# The original's line: docs/guides/original.md.
exec zerosearch original ppo "$@"
