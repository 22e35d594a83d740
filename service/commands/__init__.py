"""The subcommands of `bitnet` beside `serve`, one file each.

A command reads its flags, calls the floors below and prints; whatever computes stands in `bitnet_model/`. Modules here
import torch and the web stack inside functions only, so that `--help` and a wrong flag answer at once.
"""
