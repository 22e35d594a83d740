"""The model floor: checkpoint folder in, hidden states and logits out.

Knows config files, safetensors, the forward pass in the verbs of the `ops` seam. Does not know requests, scheduling,
text or HTTP, and no arithmetic kernel: those live in the wings.
"""
