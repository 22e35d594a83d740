"""Trains the demo model that ships in bitnet_model/demo, from a plain-text corpus and a chat file.

    python -m tools.train_demo prepare CORPUS --data DATA                  tokenizer and rows, once (20 s)
    python -m tools.train_demo train --data DATA --out RUN --minutes 120   again to go on; ends at its deadline
    python -m tools.train_demo plot RUN/log.jsonl loss.png
    python -m tools.train_demo export RUN/checkpoint.pt --data DATA --out bitnet_model/demo
    python -m tools.evaluate bitnet_model/demo CORPUS/heldout.txt.xz --answers

A second stage goes on from the weights of a first with rates that fall from its start and the chat-heavy mix:
`train --start RUN/checkpoint.pt --muon-lr 0.009 --adam-lr 0.0018 --decay-from 0.05 --chat-from 0 --out SECOND`.

On a machine with a GPU, in minutes (an H200 goes through some 950,000 tokens a second); OUT then holds a model of 54 M
parameters in files below 16 MiB, and with --call-minutes the same line again goes on until it says 100 %:

    python -m tools.train_demo all CORPUS --work WORK --out OUT --minutes 4 --max-part-mib 15

A call on a new machine, without WORK, goes on from what an earlier one exported: add `--start FOLDER`. The machine
needs torch, numpy, tokenizers, safetensors and rich, and no network.
"""
