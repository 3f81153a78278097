"""Files on disk: written whole or not at all, read with mistakes named by file and line.

atomic   writing a file or a folder so that it appears whole
jsonl    one JSON object a line
images   opening, squaring and writing images; PIL images <-> pixel values
results  the JSON that every evaluation leaves
weights  whether safetensors are whole, and models that load whole or not at all
"""

__all__ = ["atomic", "images", "jsonl", "results", "weights"]
