"""Trains the demo model that ships in bitnet_model/demo, from a plain-text corpus and a chat file.

    python -m tools.train_demo prepare CORPUS --data DATA                  tokenizer and rows, once (20 s)
    python -m tools.train_demo train --data DATA --out RUN --minutes 120   again to go on; ends at its deadline
    python -m tools.train_demo export RUN/checkpoint.pt --data DATA --out bitnet_model/demo
    python -m tools.train_demo evaluate bitnet_model/demo CORPUS/heldout.txt.xz
    python -m tools.train_demo sample bitnet_model/demo "Tell me a story about a dog."

With a GPU the same commands use it (bf16 autocast); a larger model is, for instance, `train --hidden 512 --heads 8
--kv-heads 4 --ffn 1536 --layers 10 --rows-per-step 64 --rows-per-pass 64`.
"""
