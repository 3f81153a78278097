"""Files: atomic writes, and reads whose errors name file and line.

atomic   atomic writes of files and folders
jsonl    one JSON object a line; files of prompts
digests  digests of data sets
hub      names of the Hugging Face hub in place of folders and files
images   reading, cropping and writing images; PIL images <-> pixel values
results  the result JSON of every evaluation
weights  integrity of safetensors files, and models that refuse incomplete weights
"""

__all__ = ["atomic", "digests", "hub", "images", "jsonl", "results", "weights"]
