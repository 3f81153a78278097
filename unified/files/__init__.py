"""Files: atomic writes, and reads whose errors name file and line.

atomic           atomic writes of files and folders
jsonl            one JSON object a line; files of prompts
json_lists       one JSON list a file, item by item
digests          digests of data sets
hub              names of the Hugging Face hub in place of folders and files
images           the one opener of images; squares; writing; PIL images <-> pixel values
image_modes      what a picture shows, as 8-bit sRGB
image_sets       the images of a folder; those that cannot be read, and what squares leave out
image_sources    a picture in a text: data: URI, base64, file: URL or path
image_integrity  whether an image file is whole
parquet          damaged parquet files in one line
records          names of the files in which a run says what it was
results          the result JSON of every evaluation
weights          integrity of safetensors files, and models that refuse incomplete weights
"""

__all__ = [
    "atomic",
    "digests",
    "hub",
    "image_integrity",
    "image_modes",
    "image_sets",
    "image_sources",
    "images",
    "json_lists",
    "jsonl",
    "parquet",
    "records",
    "results",
    "weights",
]
